// SPDX-License-Identifier: Apache-2.0
//! What goes over the wire (`docs/protocol.md`, "Attestation service").

use release::log::EntryProof;
use serde::{Deserialize, Serialize};
use types::{Base64, Document, Hex32, ModelId};

use crate::{Token, Work};

/// Answer to `POST /v1/challenges`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChallengeAnswer {
    /// Seconds since 1970 at which the token ends.
    pub expires: u64,
    /// The token.
    pub token: Token,
    /// What the request must bring beside evidence; nothing, as long as the service is not busy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub work: Option<Work>,
}

/// `POST /v1/key-release` (`chrysalis/key-release-request/v1`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyReleaseRequest {
    /// `chrysalis/key-release-request/v1`.
    pub schema: String,
    /// The token whose challenge the evidence answers.
    pub token: Token,
    /// The model whose key is asked for.
    pub model: ModelId,
    /// The canonical evidence document.
    pub evidence: Base64<MAX_EVIDENCE>,
    /// What solves the work that the challenge asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub work: Option<u64>,
}

/// Answer to a key release (`chrysalis/key-release/v1`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyReleaseAnswer {
    /// `chrysalis/key-release/v1`.
    pub schema: String,
    /// The model whose key this is.
    pub model: ModelId,
    /// Version of the key.
    pub key_version: u32,
    /// HPKE's encapsulated key.
    pub enc: Hex32,
    /// The sealed key: 32 bytes and the tag.
    #[serde(with = "hex::serde")]
    pub ciphertext: [u8; 48],
    /// Proof that the release was authorised on the audit log before the key was sealed.
    pub audit: EntryProof,
}

impl Document for KeyReleaseRequest {
    const SCHEMA: &'static str = "chrysalis/key-release-request/v1";
    const MAX_BYTES: usize = 3 << 20;

    fn schema(&self) -> &str {
        &self.schema
    }
}

impl Document for KeyReleaseAnswer {
    const SCHEMA: &'static str = "chrysalis/key-release/v1";
    const MAX_BYTES: usize = 64 * 1024;

    fn schema(&self) -> &str {
        &self.schema
    }
}

/// Most bytes of an evidence document.
pub const MAX_EVIDENCE: usize = 2 << 20;
