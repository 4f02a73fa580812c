// SPDX-License-Identifier: Apache-2.0
//! Entries of the audit log: canonical JSON documents.

use serde::{Deserialize, Serialize};
use types::{CanonicalError, Document, KeyReleaseEntry, ModelId, Sha256Digest};

/// A key release was refused (`chrysalis/audit/refusal/v1`). Written after the refusal was answered, if at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusalEntry {
    /// `chrysalis/audit/refusal/v1`.
    pub schema: String,
    /// When, unix seconds, by the service's clock.
    pub unix: u64,
    /// The model that was asked for, where the request could be read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model: Option<ModelId>,
    /// SHA-256 of the evidence document, where there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub evidence: Option<Sha256Digest>,
    /// SHA-256 of the challenge, where there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub challenge: Option<Sha256Digest>,
    /// Codes of the reasons, 1 to 64, without their texts.
    pub codes: Vec<String>,
}

/// An entry of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum AuditEntry {
    /// A key was authorised to be released.
    KeyRelease(KeyReleaseEntry),
    /// A release was refused.
    Refusal(RefusalEntry),
}

/// Why an entry was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Not canonical, too large, ….
    #[error(transparent)]
    Document(#[from] CanonicalError),
    /// Its schema is not one of the audit log's.
    #[error("not an entry of a known schema")]
    Schema,
    /// A field breaks its rule.
    #[error("{field} must be {rule}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is allowed.
        rule: &'static str,
    },
}

impl Document for RefusalEntry {
    const SCHEMA: &'static str = "chrysalis/audit/refusal/v1";
    const MAX_BYTES: usize = 8192;

    fn schema(&self) -> &str {
        &self.schema
    }
}

impl AuditEntry {
    /// The bytes that stand in the log.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, EntryError> {
        let bytes = match self {
            Self::KeyRelease(entry) => entry.to_canonical()?,
            Self::Refusal(entry) => entry.to_canonical()?,
        };
        // The same rules as for reading, the schema's value included.
        Self::parse(&bytes)?;
        Ok(bytes)
    }

    /// Reads an entry from exactly its bytes.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, EntryError> {
        #[derive(Deserialize)]
        struct Schema {
            schema: String,
        }
        if bytes.len() > RefusalEntry::MAX_BYTES {
            return Err(CanonicalError::TooLarge { max: RefusalEntry::MAX_BYTES, found: bytes.len() }.into());
        }
        let found: Schema = serde_json::from_slice(bytes).map_err(|_| EntryError::Schema)?;
        let entry = match found.schema.as_str() {
            KeyReleaseEntry::SCHEMA => Self::KeyRelease(KeyReleaseEntry::from_canonical(bytes)?),
            RefusalEntry::SCHEMA => Self::Refusal(RefusalEntry::from_canonical(bytes)?),
            _ => return Err(EntryError::Schema),
        };
        entry.check()?;
        Ok(entry)
    }

    fn check(&self) -> Result<(), EntryError> {
        let rule = |ok, field, rule| if ok { Ok(()) } else { Err(EntryError::Field { field, rule }) };
        match self {
            Self::KeyRelease(entry) => rule(entry.key_version > 0, "key_version", "1 or more"),
            Self::Refusal(entry) => {
                let code = |code: &String| {
                    (1..=64).contains(&code.len())
                        && code.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
                };
                let codes = &entry.codes;
                rule((1..=64).contains(&codes.len()) && codes.iter().all(code), "codes", "1 to 64 codes in snake_case")
            }
        }
    }
}
