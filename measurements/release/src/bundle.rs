// SPDX-License-Identifier: Apache-2.0
//! The sigstore bundle, version 0.3, that carries a release: DSSE envelope, hint of the key, log entry with its proof.
//!
//! The log entry has the form that version 2 of Rekor gives DSSE envelopes (`hashedrekord` 0.0.2 over the
//! pre-authentication encoding), and our log is a tile log as Rekor's is, so stock verifiers that know the
//! release key and our log's key check signature and inclusion alike. They do not check witnesses.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use types::{CanonicalError, Sha256Digest, canonical};

use crate::dsse::{IN_TOTO, pre_authentication_encoding};
use crate::key::{KeyError, ReleaseKey, ReleasePublicKey};
use crate::log::{EntryProof, LogKey};
use crate::statement::{MAX_STATEMENT, Statement, StatementError};

/// Media type of the bundle.
pub const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Most bytes of a bundle.
pub const MAX_BUNDLE: usize = 2 * 1024 * 1024;

/// A bundle, well formed and not verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Bundle {
    media_type: String,
    verification_material: VerificationMaterial,
    dsse_envelope: Envelope,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct VerificationMaterial {
    public_key: KeyHint,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    tlog_entries: Vec<LogEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyHint {
    hint: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Envelope {
    payload: Bytes,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeSignature {
    sig: Bytes,
    /// DSSE's own hint, not authenticated and not used.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    keyid: Option<String>,
}

/// A `TransparencyLogEntry` of sigstore's protobuf specifications, as a Rekor version 2 fills it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct LogEntry {
    /// Protobuf leaves out the number zero.
    #[serde(default)]
    pub(crate) log_index: Decimal,
    pub(crate) log_id: LogId,
    pub(crate) kind_version: KindVersion,
    pub(crate) inclusion_proof: Option<InclusionProof>,
    pub(crate) canonicalized_body: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct LogId {
    pub(crate) key_id: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KindVersion {
    pub(crate) kind: String,
    pub(crate) version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct InclusionProof {
    /// Zero may be left out here, too.
    #[serde(default)]
    pub(crate) log_index: Decimal,
    pub(crate) root_hash: Bytes,
    pub(crate) tree_size: Decimal,
    #[serde(default)]
    pub(crate) hashes: Vec<Bytes>,
    pub(crate) checkpoint: CheckpointText,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckpointText {
    pub(crate) envelope: String,
}

/// Why a bundle could not be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// More than [`MAX_BUNDLE`] bytes.
    #[error("a bundle has at most {MAX_BUNDLE} bytes")]
    TooLarge,
    /// Not JSON of the bundle's form.
    #[error("not a bundle with a key hint and a DSSE envelope (line {line}, column {column})")]
    Form {
        /// Line of the first error.
        line: usize,
        /// Column of the first error.
        column: usize,
    },
    /// Another media type.
    #[error("mediaType must be {MEDIA_TYPE}")]
    MediaType,
    /// The envelope does not carry an in-toto statement.
    #[error("payloadType must be {IN_TOTO}")]
    PayloadType,
    /// Not exactly one signature.
    #[error("the envelope must have one signature")]
    Signatures,
    /// More than one log entry.
    #[error("a bundle has at most one log entry")]
    LogEntries,
    /// The statement to be signed.
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// A key could not be encoded.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Serialising failed.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
    /// The proof is of another log or another entry.
    #[error("the proof is not of this bundle's entry in this log")]
    Proof,
}

impl Bundle {
    /// Signs a statement. The bundle has no log entry yet, so no verifier accepts it.
    ///
    /// # Errors
    /// [`BundleError::Statement`].
    pub fn sign(statement: &Statement, key: &ReleaseKey) -> Result<Self, BundleError> {
        let payload = statement.to_canonical()?;
        let signature = key.sign(&pre_authentication_encoding(IN_TOTO, &payload));
        Ok(Self {
            media_type: MEDIA_TYPE.to_owned(),
            verification_material: VerificationMaterial {
                public_key: KeyHint { hint: key.public().hint()? },
                tlog_entries: Vec::new(),
            },
            dsse_envelope: Envelope {
                payload: Bytes(payload),
                payload_type: IN_TOTO.to_owned(),
                signatures: vec![EnvelopeSignature { sig: Bytes(signature), keyid: None }],
            },
        })
    }

    /// Reads a bundle. Nothing is verified.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, BundleError> {
        if bytes.len() > MAX_BUNDLE {
            return Err(BundleError::TooLarge);
        }
        let bundle: Self =
            serde_json::from_slice(bytes).map_err(|e| BundleError::Form { line: e.line(), column: e.column() })?;
        if bundle.media_type != MEDIA_TYPE {
            return Err(BundleError::MediaType);
        }
        if bundle.dsse_envelope.payload_type != IN_TOTO {
            return Err(BundleError::PayloadType);
        }
        if bundle.dsse_envelope.signatures.len() != 1 {
            return Err(BundleError::Signatures);
        }
        if bundle.verification_material.tlog_entries.len() > 1 {
            return Err(BundleError::LogEntries);
        }
        Ok(bundle)
    }

    /// The bundle as JSON.
    ///
    /// # Errors
    /// [`BundleError::Canonical`].
    pub fn to_json(&self) -> Result<Vec<u8>, BundleError> {
        Ok(canonical::to_bytes(self)?)
    }

    /// The statement's bytes.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.dsse_envelope.payload.0
    }

    /// SHA-256 of the statement's bytes: the release's digest. It does not change when log entries or cosignatures do.
    #[must_use]
    pub fn digest(&self) -> Sha256Digest {
        Sha256Digest::of(self.payload())
    }

    /// Whether the one signature is by `key`.
    #[must_use]
    pub fn is_signed_by(&self, key: &ReleasePublicKey) -> bool {
        key.verifies(&self.signed_bytes(), self.signature())
    }

    /// What stands in the log for this bundle, given the key that signed it.
    ///
    /// # Errors
    /// [`BundleError::Key`] or [`BundleError::Canonical`].
    pub fn log_entry(&self, key: &ReleasePublicKey) -> Result<Vec<u8>, BundleError> {
        let digest = Sha256Digest::of(&self.signed_bytes());
        Ok(canonical::to_bytes(&serde_json::json!({
            "apiVersion": ENTRY_VERSION,
            "kind": ENTRY_KIND,
            "spec": {"hashedRekordV002": {
                "data": {"algorithm": "SHA2_256", "digest": STANDARD.encode(digest.as_bytes())},
                "signature": {
                    "content": STANDARD.encode(self.signature()),
                    "verifier": {
                        "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                        "publicKey": {"rawBytes": STANDARD.encode(key.to_der()?)},
                    },
                },
            }},
        }))?)
    }

    /// The same bundle with `proof` of its entry in `log`, in place of any it had.
    ///
    /// # Errors
    /// [`BundleError::Proof`] when the proof does not verify for this entry.
    pub fn with_proof(mut self, key: &ReleasePublicKey, log: &LogKey, proof: &EntryProof) -> Result<Self, BundleError> {
        let body = self.log_entry(key)?;
        let checkpoint = proof.verify(log).map_err(|_| BundleError::Proof)?;
        if proof.leaf != crate::log::leaf_hash(&body) {
            return Err(BundleError::Proof);
        }
        self.verification_material.tlog_entries = vec![LogEntry {
            log_index: Decimal(proof.index),
            log_id: LogId { key_id: Bytes(log.log_id().as_bytes().to_vec()) },
            kind_version: KindVersion { kind: ENTRY_KIND.to_owned(), version: ENTRY_VERSION.to_owned() },
            inclusion_proof: Some(InclusionProof {
                log_index: Decimal(proof.index),
                root_hash: Bytes(checkpoint.head().root().as_bytes().to_vec()),
                tree_size: Decimal(proof.tree_size),
                hashes: proof.path.iter().map(|hash| Bytes(hash.as_bytes().to_vec())).collect(),
                checkpoint: CheckpointText { envelope: proof.checkpoint.clone() },
            }),
            canonicalized_body: Bytes(body),
        }];
        Ok(self)
    }

    pub(crate) fn hint(&self) -> &str {
        &self.verification_material.public_key.hint
    }

    pub(crate) fn signed_bytes(&self) -> Vec<u8> {
        pre_authentication_encoding(&self.dsse_envelope.payload_type, self.payload())
    }

    pub(crate) fn signature(&self) -> &[u8] {
        self.dsse_envelope.signatures.first().map_or(&[], |signature| &signature.sig.0)
    }

    pub(crate) fn logged(&self) -> Option<&LogEntry> {
        self.verification_material.tlog_entries.first()
    }
}

/// Protobuf's JSON form of `bytes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > MAX_STATEMENT.div_ceil(3) * 4 {
            return Err(de::Error::custom("too many bytes"));
        }
        STANDARD.decode(text).map(Self).map_err(|_| de::Error::custom("not base64"))
    }
}

/// Protobuf's JSON form of a non-negative `int64`: a decimal string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Decimal(pub(crate) u64);

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_string())
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number: u64 = text.parse().map_err(|_| de::Error::custom("not a decimal number"))?;
        let exact = number.to_string() == text && i64::try_from(number).is_ok();
        if exact { Ok(Self(number)) } else { Err(de::Error::custom("not a decimal int64")) }
    }
}

pub(crate) const ENTRY_KIND: &str = "hashedrekord";
pub(crate) const ENTRY_VERSION: &str = "0.0.2";
