// SPDX-License-Identifier: Apache-2.0
//! The audit entry that a release needs: canonical JSON of `chrysalis/audit/key-release/v1`, in exactly the form
//! that the audit log's own reader accepts.

use serde::Serialize;
use types::{CanonicalError, ModelId, Sha256Digest, canonical};

/// What the log says about a release: that it was authorised, not that it was delivered.
#[derive(Serialize)]
pub(crate) struct Entry<'a> {
    pub(crate) schema: &'static str,
    /// Seconds since 1970.
    pub(crate) unix: u64,
    pub(crate) decision: &'static str,
    pub(crate) model: &'a ModelId,
    pub(crate) key_version: u32,
    pub(crate) release: &'a Sha256Digest,
    pub(crate) evidence: &'a Sha256Digest,
    /// SHA-256 of the challenge.
    pub(crate) challenge: Sha256Digest,
    pub(crate) platform: &'a Sha256Digest,
}

impl Entry<'_> {
    pub(crate) const SCHEMA: &'static str = "chrysalis/audit/key-release/v1";
    pub(crate) const AUTHORISED: &'static str = "authorised";

    pub(crate) fn to_canonical(&self) -> Result<Vec<u8>, CanonicalError> {
        canonical::to_bytes(self)
    }
}
