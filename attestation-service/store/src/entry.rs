// SPDX-License-Identifier: Apache-2.0
//! Entries of the audit log: canonical JSON documents.

use std::collections::BTreeMap;

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

/// Key releases were refused more often than the log takes entries for (`chrysalis/audit/refusals/v1`): their number,
/// and how often each code was among the reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusalsEntry {
    /// `chrysalis/audit/refusals/v1`.
    pub schema: String,
    /// When the first was refused, unix seconds, by the service's clock.
    pub from: u64,
    /// When the last was refused.
    pub until: u64,
    /// How many, 1 or more.
    pub refusals: u64,
    /// Codes of the reasons, 1 to 64. `other` stands for codes that found no place.
    pub codes: BTreeMap<String, u64>,
}

/// A command of a model's owner was accepted (`chrysalis/audit/owner-command/v1`). Written before it is carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnerEntry {
    /// `chrysalis/audit/owner-command/v1`.
    pub schema: String,
    /// When, unix seconds, by the service's clock.
    pub unix: u64,
    /// The model.
    pub model: ModelId,
    /// The command's sequence.
    pub sequence: u64,
    /// SHA-256 of the signed command as it was sent.
    pub command: Sha256Digest,
}

/// The operator changed what keys are released by, or imported a key (`chrysalis/audit/operator-change/v1`). Written
/// after the change, and before anything that is released by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorEntry {
    /// `chrysalis/audit/operator-change/v1`.
    pub schema: String,
    /// When, unix seconds, by the clock of the machine that the operator's program ran on.
    pub unix: u64,
    /// Counts the changes of a store, from 1. An entry that stands twice has one number.
    pub number: u64,
    /// What was done.
    pub act: OperatorAct,
    /// To what: the digest of a release or a platform, the identity of a model (and `/version` of a key, `/sequence`
    /// of a command), the name of a policy. 1 to 256 characters.
    pub subject: String,
    /// SHA-256 of what was set: of a release's bundle, of a policy, of owners' sorted keys behind their threshold in 4
    /// bytes, of the document of tenants that an owner's command set. A key has none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub content: Option<Sha256Digest>,
}

/// What the operator did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperatorAct {
    /// A release was imported.
    ReleaseImported,
    /// A release was revoked.
    ReleaseRevoked,
    /// A platform was revoked.
    PlatformRevoked,
    /// A model was revoked.
    ModelRevoked,
    /// A policy was set: the appraisal policy, or the one that a release was imported under.
    PolicySet,
    /// The owners of a model were registered.
    OwnersRegistered,
    /// A key was imported.
    KeyImported,
    /// Not the operator's act: a command of a model's owner was carried out. Its own entry says which, and only that it
    /// was accepted.
    OwnerCommanded,
}

/// An entry of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum AuditEntry {
    /// A key was authorised to be released.
    KeyRelease(KeyReleaseEntry),
    /// A release was refused.
    Refusal(RefusalEntry),
    /// Releases were refused, and counted.
    Refusals(RefusalsEntry),
    /// An owner commanded.
    Owner(OwnerEntry),
    /// The operator changed something.
    Operator(OperatorEntry),
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

impl Document for RefusalsEntry {
    const SCHEMA: &'static str = "chrysalis/audit/refusals/v1";
    const MAX_BYTES: usize = 8192;

    fn schema(&self) -> &str {
        &self.schema
    }
}

impl Document for OwnerEntry {
    const SCHEMA: &'static str = "chrysalis/audit/owner-command/v1";
    const MAX_BYTES: usize = 8192;

    fn schema(&self) -> &str {
        &self.schema
    }
}

impl Document for OperatorEntry {
    const SCHEMA: &'static str = "chrysalis/audit/operator-change/v1";
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
            Self::Refusals(entry) => entry.to_canonical()?,
            Self::Owner(entry) => entry.to_canonical()?,
            Self::Operator(entry) => entry.to_canonical()?,
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
            RefusalsEntry::SCHEMA => Self::Refusals(RefusalsEntry::from_canonical(bytes)?),
            OwnerEntry::SCHEMA => Self::Owner(OwnerEntry::from_canonical(bytes)?),
            OperatorEntry::SCHEMA => Self::Operator(OperatorEntry::from_canonical(bytes)?),
            _ => return Err(EntryError::Schema),
        };
        entry.check()?;
        Ok(entry)
    }

    fn check(&self) -> Result<(), EntryError> {
        let rule = |ok, field, rule| if ok { Ok(()) } else { Err(EntryError::Field { field, rule }) };
        match self {
            Self::KeyRelease(entry) => rule(entry.key_version > 0, "key_version", "1 or more"),
            Self::Owner(entry) => rule(entry.sequence > 0, "sequence", "1 or more"),
            Self::Operator(entry) => {
                let subject = &entry.subject;
                rule(entry.number > 0, "number", "1 or more")?;
                let plain = (1..=256).contains(&subject.len()) && subject.bytes().all(|b| b.is_ascii_graphic());
                rule(plain, "subject", "1 to 256 characters of ASCII without spaces")
            }
            Self::Refusal(entry) => {
                let codes = &entry.codes;
                rule((1..=64).contains(&codes.len()) && codes.iter().all(|code| is_code(code)), "codes", CODES)
            }
            Self::Refusals(entry) => {
                let codes = &entry.codes;
                rule(entry.refusals > 0, "refusals", "1 or more")?;
                rule(entry.from <= entry.until, "until", "not before from")?;
                rule((1..=64).contains(&codes.len()) && codes.keys().all(|code| is_code(code)), "codes", CODES)?;
                rule(codes.values().all(|count| *count > 0), "codes", "counts of 1 or more")
            }
        }
    }
}

fn is_code(code: &str) -> bool {
    (1..=64).contains(&code.len()) && code.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

const CODES: &str = "1 to 64 codes in snake_case";
