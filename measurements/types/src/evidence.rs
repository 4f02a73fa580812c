// SPDX-License-Identifier: Apache-2.0
//! Evidence: one content-addressed document, and the small proof that a connection carries.
//!
//! Nothing in it is true because it stands here. A verifier recomputes REPORTDATA, RTMR3 and MRCONFIGID
//! from it and compares them with a verified quote.

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{Base64, Document, Hex32, Role, RuntimeEvent, Sha256Digest};

/// Most bytes of a quote with its certificate chain.
pub const MAX_QUOTE: usize = 16 * 1024;
/// Most bytes of the firmware's event log.
pub const MAX_FIRMWARE_LOG: usize = 256 * 1024;
/// Most bytes of the configuration.
pub const MAX_CONFIG: usize = 64 * 1024;
/// Most bytes of one GPU report or its certificate chain.
pub const MAX_GPU_BLOB: usize = 64 * 1024;

/// The evidence document (`chrysalis/evidence/v1`), at most 2 MiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// `chrysalis/evidence/v1`.
    pub schema: String,
    /// What the guest is for.
    pub role: Role,
    /// The TDX quote whose REPORTDATA binds the fields below.
    pub quote: Base64<MAX_QUOTE>,
    /// SHA-256 of the DER SPKI of the guest's TLS key.
    pub spki_sha256: Sha256Digest,
    /// The Ed25519 public key that signs receipts.
    pub instance_key: Hex32,
    /// An X25519 public key for HPKE: the one of this key release, or of the guest's sessions; zero where neither exists.
    pub hpke_key: Hex32,
    /// GPU evidence; without a GPU an empty list of epoch 0.
    pub gpu: GpuEvidence,
    /// Hash of the newest receipt, zero before the first.
    pub receipt_head: Sha256Digest,
    /// Number of receipts so far.
    pub receipt_count: u64,
    /// What makes the quote fresh.
    pub freshness: Freshness,
    /// The events of RTMR3 so far.
    pub events: Vec<RuntimeEvent>,
    /// The firmware's log (CCEL) where the machine has one: it explains RTMR0–2, it proves nothing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub firmware_log: Option<Base64<MAX_FIRMWARE_LOG>>,
    /// The exact bytes of the guest's configuration.
    pub guest_config: Base64<MAX_CONFIG>,
    /// What the guest knows of the time.
    pub time: TimeState,
}

/// Reports of all GPUs of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuEvidence {
    /// Counts collections of a boot, from 1. 0 without a GPU.
    pub epoch: u64,
    /// The guest's own randomness in the GPU nonce. Zero without a GPU.
    pub random: Hex32,
    /// Reports, sorted by device UUID.
    pub reports: Vec<GpuReport>,
    /// Reports of NVSwitches, sorted by device UUID; left out where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub switches: Vec<GpuReport>,
    /// What the driver says of itself; left out without a GPU.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub driver: Option<GpuDriver>,
}

impl GpuEvidence {
    /// Of a guest without a GPU.
    pub const NONE: Self =
        Self { epoch: 0, random: Hex32::new([0; 32]), reports: Vec::new(), switches: Vec::new(), driver: None };
}

/// What the driver told the measured guest (NVML). No GPU signs it: it is worth as much as the image that states it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuDriver {
    /// Version of the driver, e.g. `550.163.01`: 1 to 32 digits and points ([`GpuDriver::is_version`]).
    #[serde(deserialize_with = "version")]
    pub version: String,
    /// Confidential mode is on (`ccFeature`), or protected PCIe is.
    pub confidential: bool,
    /// DevTools mode is on: no confidentiality.
    pub dev_tools: bool,
    /// Protected PCIe is on (`multiGpuMode`).
    pub protected_pcie: bool,
}

impl GpuDriver {
    /// Whether `text` is 1 to 32 digits and points: it reaches terminals and logs.
    #[must_use]
    pub fn is_version(text: &str) -> bool {
        (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    }
}

/// Evidence of one GPU or NVSwitch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuReport {
    /// The device's UUID as NVIDIA's libraries print it ([`GpuReport::is_uuid`]).
    #[serde(deserialize_with = "uuid")]
    pub uuid: String,
    /// The SPDM measurement report.
    pub report: Base64<MAX_GPU_BLOB>,
    /// The device's certificate chain, PEM.
    pub chain: Base64<MAX_GPU_BLOB>,
}

impl GpuReport {
    /// Whether `text` is `GPU-` or `SWX-`, then 1 to 64 hexadecimal digits and hyphens. Which digits, only NVIDIA's libraries say: a
    /// UUID orders reports and proves nothing.
    #[must_use]
    pub fn is_uuid(text: &str) -> bool {
        let rest = text.strip_prefix("GPU-").or_else(|| text.strip_prefix("SWX-"));
        let good = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
        rest.is_some_and(|rest| (1..=64).contains(&rest.len()) && rest.bytes().all(good))
    }
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let refused = || de::Error::custom("a driver's version is 1 to 32 digits and points");
    GpuDriver::is_version(&text).then_some(text).ok_or_else(refused)
}

fn uuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let refused = || de::Error::custom("a device's UUID is GPU- or SWX-, then 1 to 64 hexadecimal digits and hyphens");
    GpuReport::is_uuid(&text).then_some(text).ok_or_else(refused)
}

/// Which kind of leaf makes a quote fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FreshnessKind {
    /// None: the quote proves that the key was born in such a guest, not when.
    None,
    /// Challenges of those who connected to this guest by TLS, bound by the exporter.
    Tls,
    /// HPKE sessions.
    Hpke,
    /// One key release.
    KeyRelease,
    /// Challenges of guests that this guest connected to by TLS, bound by the exporter: of another kind than those of the
    /// other side, so that neither side's proof passes for the other's.
    TlsClient,
}

impl FreshnessKind {
    /// The byte in REPORTDATA and in leaves.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Tls => 1,
            Self::Hpke => 2,
            Self::KeyRelease => 3,
            Self::TlsClient => 4,
        }
    }
}

/// The freshness part of REPORTDATA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freshness {
    /// Kind of the tree's leaves.
    pub kind: FreshnessKind,
    /// Number of leaves; 0 for [`FreshnessKind::None`].
    pub tree_size: u64,
    /// Root of the tree; zero for [`FreshnessKind::None`].
    pub root: Sha256Digest,
}

impl Freshness {
    /// No freshness: a quote made before any challenge.
    #[must_use]
    pub const fn none() -> Self {
        Self { kind: FreshnessKind::None, tree_size: 0, root: Sha256Digest::ZERO }
    }
}

/// What the guest knows of the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeState {
    /// Seconds since 1970 that are surely past: the image's `SOURCE_DATE_EPOCH`.
    pub floor: u64,
    /// The time as the pinned service signed it, once the guest has asked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attested: Option<AttestedTime>,
}

/// A time that the service signed for a nonce of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestedTime {
    /// Seconds since 1970.
    pub unix: u64,
    /// The guest's nonce.
    pub nonce: Hex32,
    /// The service's Ed25519 public key; SHA-256 of its SPKI is the pin of the configuration.
    pub service_key: Hex32,
    /// Ed25519 over [`AttestedTime::signed_bytes`].
    pub signature: Base64<64>,
}

impl AttestedTime {
    /// What the service signs: "chrysalis/time/v1" ‖ nonce ‖ unix u64, big-endian.
    #[must_use]
    pub fn signed_bytes(nonce: &Hex32, unix: u64) -> Vec<u8> {
        [b"chrysalis/time/v1".as_slice(), nonce.as_bytes(), &unix.to_be_bytes()].concat()
    }
}

impl Document for Evidence {
    const SCHEMA: &'static str = "chrysalis/evidence/v1";
    const MAX_BYTES: usize = 2 << 20;

    fn schema(&self) -> &str {
        &self.schema
    }
}

/// What one connection needs: a fresh quote over a tree that holds the connection's leaf. At most 32 KiB.
/// The rest stands in the evidence document named by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionProof {
    /// `chrysalis/connection-proof/v1`.
    pub schema: String,
    /// SHA-256 of the canonical evidence document with this guest's keys, configuration and log.
    pub evidence: Sha256Digest,
    /// A quote whose REPORTDATA has the fields of that evidence, but the receipts and freshness below.
    pub quote: Base64<MAX_QUOTE>,
    /// Hash of the newest receipt when the quote was made.
    pub receipt_head: Sha256Digest,
    /// Number of receipts then.
    pub receipt_count: u64,
    /// The tree.
    pub freshness: Freshness,
    /// Index of the connection's leaf.
    pub leaf_index: u64,
    /// Inclusion path, leaf to root, exactly as long as index and size demand.
    pub path: Vec<Sha256Digest>,
}

impl Document for ConnectionProof {
    const SCHEMA: &'static str = "chrysalis/connection-proof/v1";
    const MAX_BYTES: usize = 32 * 1024;

    fn schema(&self) -> &str {
        &self.schema
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_about_gpus_has_one_form() {
        let driver = |version: &str| {
            let json = serde_json::json!({"version": version, "confidential": true, "dev_tools": false, "protected_pcie": false});
            let driver = serde_json::from_value::<GpuDriver>(json.clone()).map_err(|error| error.to_string())?;
            assert_eq!(serde_json::to_value(&driver).unwrap(), json);
            Ok::<_, String>(driver)
        };
        assert_eq!(driver("550.163.01").unwrap().version, "550.163.01");
        for bad in ["", "550 1", "550\n", "\u{1b}[2J", "550.x", &"1".repeat(33)] {
            assert_eq!(driver(bad).unwrap_err(), "a driver's version is 1 to 32 digits and points", "{bad:?}");
        }
        let report = |uuid: &str| {
            let json = serde_json::json!({"uuid": uuid, "report": "AQ==", "chain": "Ag=="});
            let report = serde_json::from_value::<GpuReport>(json.clone()).map_err(|error| error.to_string())?;
            assert_eq!(serde_json::to_value(&report).unwrap(), json);
            Ok::<_, String>(report)
        };
        for good in ["GPU-0a1B2c3d-0000-1111-2222-333344445555", "SWX-0A"] {
            assert_eq!(report(good).unwrap().uuid, good);
        }
        for bad in ["", "GPU-", "a0", "GPU-a\n", "GPU-x", "MIG-a0", "GPU-\u{1b}[2J", &format!("GPU-{}", "a".repeat(65))]
        {
            let error = report(bad).unwrap_err();
            assert_eq!(
                error, "a device's UUID is GPU- or SWX-, then 1 to 64 hexadecimal digits and hyphens",
                "{bad:?}"
            );
        }
    }
}
