// SPDX-License-Identifier: Apache-2.0
//! The audit log's entry about a key: made by the service before a key leaves, read by auditors.

use serde::{Deserialize, Serialize};

use crate::{Document, ModelId, Sha256Digest};

/// A key was authorised to be released (`chrysalis/audit/key-release/v1`). It says *authorised*: whether the guest
/// got the key is unknown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyReleaseEntry {
    /// `chrysalis/audit/key-release/v1`.
    pub schema: String,
    /// When, unix seconds, by the service's clock.
    pub unix: u64,
    /// The model whose key it is.
    pub model: ModelId,
    /// Version of the key, from 1.
    pub key_version: u32,
    /// Digest of the release that the guest runs.
    pub release: Sha256Digest,
    /// SHA-256 of the evidence document.
    pub evidence: Sha256Digest,
    /// SHA-256 of the challenge.
    pub challenge: Sha256Digest,
    /// The platform's name: SHA-256("chrysalis/platform/v1" ‖ PPID).
    pub platform: Sha256Digest,
    /// SHA-256 of the document of the model's tenants that is sealed with the key; absent where the model has none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tenants: Option<Sha256Digest>,
    /// `authorised`.
    pub decision: Authorised,
}

/// The only decision of a [`KeyReleaseEntry`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Authorised {
    /// The key may leave.
    Authorised,
}

impl Document for KeyReleaseEntry {
    const SCHEMA: &'static str = "chrysalis/audit/key-release/v1";
    const MAX_BYTES: usize = 4096;

    fn schema(&self) -> &str {
        &self.schema
    }
}
