// SPDX-License-Identifier: Apache-2.0
//! Why a pack was refused.

use crate::index::KeyName;
use std::io;
use thiserror::Error;
use types::{Blake3Digest, Refusal};

/// Why a pack was refused or could not be read.
#[derive(Debug, Error)]
pub enum PackError {
    /// The public part or the disk's header breaks a rule.
    #[error("{field}: {detail}")]
    Malformed {
        /// The part of the pack.
        field: &'static str,
        /// The rule.
        detail: String,
    },
    /// An object or the header ends too early.
    #[error("{field} ends before its length")]
    Truncated {
        /// The part of the pack.
        field: String,
    },
    /// The pack is of another model than expected.
    #[error("the pack is of the model {found}, expected is {expected}")]
    Identity {
        /// Expected identity or label.
        expected: String,
        /// What the pack says or holds.
        found: String,
    },
    /// The key does not match the pack's commitment.
    #[error("the key given is not the pack's key {key}")]
    KeyCommitment {
        /// The key that the pack names.
        key: KeyName,
    },
    /// The ciphertext of an object was changed.
    #[error("object {object}: the BLAKE3 of its ciphertext is {found}, pack.json says {expected}")]
    ObjectDigest {
        /// Its number.
        object: u32,
        /// As `pack.json` says.
        expected: Blake3Digest,
        /// Of the bytes that were read.
        found: Blake3Digest,
    },
    /// An object's ciphertext is as `pack.json` says, but was not made with this key for this place in this model.
    #[error("object {object}: its ciphertext does not decrypt with this key in this place of this model")]
    ObjectDecrypt {
        /// Its number.
        object: u32,
    },
    /// The decrypted manifest breaks a rule.
    #[error("manifest: {detail}")]
    Manifest {
        /// The rule.
        detail: String,
    },
    /// The decrypted bytes of a file are not those that the manifest names.
    #[error("file {path}: the BLAKE3 of its content is not the one in the manifest")]
    FileDigest {
        /// Its path in the manifest.
        path: String,
    },
    /// The files need more room than is allowed.
    #[error("the model's files have {needed} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Bytes of all files together.
        needed: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The directory to write to holds something already.
    #[error("the directory to write to is not empty")]
    TargetNotEmpty,
    /// Reading or writing failed.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl PackError {
    pub(crate) fn malformed(field: &'static str, detail: impl std::fmt::Display) -> Self {
        Self::Malformed { field, detail: detail.to_string() }
    }

    pub(crate) fn manifest(detail: impl std::fmt::Display) -> Self {
        Self::Manifest { detail: detail.to_string() }
    }

    /// For `map_err`: what was attempted.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::Io { what, source }
    }

    /// For `map_err` while reading `field`: an early end is [`PackError::Truncated`].
    pub(crate) fn reading(field: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let field = field.into();
        |source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated { field },
            _ => Self::Io { what: format!("reading {field}"), source },
        }
    }

    /// Stable code for scripts and for the guest's failure lines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "model_pack_malformed",
            Self::Truncated { .. } => "model_pack_truncated",
            Self::Identity { .. } => "model_identity_mismatch",
            Self::KeyCommitment { .. } => "model_key_commitment_mismatch",
            Self::ObjectDigest { .. } => "model_object_digest_mismatch",
            Self::ObjectDecrypt { .. } => "model_object_decrypt_failed",
            Self::Manifest { .. } => "model_manifest_malformed",
            Self::FileDigest { .. } => "model_file_digest_mismatch",
            Self::TooLarge { .. } => "model_too_large",
            Self::TargetNotEmpty => "model_target_not_empty",
            Self::Io { .. } => "model_io_failed",
        }
    }

    /// Whether the pack is at fault, not the machine that reads it.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Io { .. } | Self::TargetNotEmpty)
    }

    /// As a refusal with its fix.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        Refusal::new(self.code(), &self.field(), self.to_string(), self.fix())
    }

    fn field(&self) -> String {
        match self {
            Self::Malformed { field, .. } => (*field).to_owned(),
            Self::Truncated { field } => field.clone(),
            Self::Identity { .. } => "identity".to_owned(),
            Self::KeyCommitment { .. } => "key_commitment".to_owned(),
            Self::ObjectDigest { object, .. } | Self::ObjectDecrypt { object } => format!("objects[{object}]"),
            Self::Manifest { .. } => "manifest".to_owned(),
            Self::FileDigest { path } => path.clone(),
            Self::TooLarge { .. } => "files".to_owned(),
            Self::TargetNotEmpty | Self::Io { .. } => "target".to_owned(),
        }
    }

    fn fix(&self) -> &'static str {
        match self {
            Self::Malformed { .. } | Self::Truncated { .. } | Self::ObjectDigest { .. } => {
                "fetch the pack again; if it stays so, ask its publisher for it"
            }
            Self::Identity { .. } => "use the pack of the model that is expected, or expect the model of this pack",
            Self::KeyCommitment { .. } => "use the key that pack.json names",
            Self::ObjectDecrypt { .. } => "the pack was altered together with its digests: get it from its owner",
            Self::Manifest { .. } | Self::FileDigest { .. } => {
                "the pack was made wrongly: make it again with `model pack`"
            }
            Self::TooLarge { .. } => "give the guest more memory",
            Self::TargetNotEmpty => "give an empty directory",
            Self::Io { .. } => "mend the disk or the directory, then try again",
        }
    }
}
