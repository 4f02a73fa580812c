// SPDX-License-Identifier: Apache-2.0
//! What init asks of the attester.

use serde::{Deserialize, Serialize};
use types::{Base64, GpuEvidence, Hex32, RuntimeEvent, Sha256Digest, Sha384Digest, TimeState, evidence};

use crate::serving::MAX_EVIDENCE;

/// A control request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ControlRequest {
    /// MRCONFIGID of this TD, read through a TD report, and the attester's public keys.
    Report {},
    /// What evidence will say, once, before the first evidence. The attester checks the digest of the configuration
    /// against MRCONFIGID.
    Configure(Box<Configuration>),
    /// Extends RTMR3 with the next event of the boot.
    Extend {
        /// The event.
        event: RuntimeEvent,
    },
    /// Evidence for one key release: only between the events `gpu` and `keys`, and never after `seal`.
    KeyReleaseEvidence {
        /// The service's challenge.
        challenge: Hex32,
        /// TLS exporter of the connection to the service.
        binding: Hex32,
        /// X25519 key made for this release.
        hpke_key: Hex32,
    },
    /// From now on no control request but `extend` is answered.
    Seal {},
}

/// What evidence says beside keys and quote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// The exact bytes of the guest's configuration.
    pub guest_config: Base64<{ evidence::MAX_CONFIG }>,
    /// Floor and attested time.
    pub time: TimeState,
    /// GPU evidence of the boot; epoch 0 and no report without a GPU.
    pub gpu: GpuEvidence,
    /// The firmware's event log (CCEL), where the machine has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub firmware_log: Option<Base64<{ evidence::MAX_FIRMWARE_LOG }>>,
}

/// Answer to a control request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ControlAnswer {
    /// To `report`.
    Report {
        /// MRCONFIGID.
        mr_config_id: Sha384Digest,
        /// SHA-256 of the DER SPKI of the TLS key.
        spki_sha256: Sha256Digest,
        /// The Ed25519 key that signs receipts.
        instance_key: Hex32,
    },
    /// To `configure`.
    Configured {},
    /// To `extend`.
    Extended {},
    /// To `key-release-evidence`.
    KeyReleaseEvidence {
        /// The canonical evidence document.
        evidence: Base64<MAX_EVIDENCE>,
    },
    /// To `seal`.
    Sealed {},
}
