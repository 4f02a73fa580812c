// SPDX-License-Identifier: Apache-2.0
//! Whom a verifier of releases trusts.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use types::{CanonicalError, Document, canonical};

use crate::key::ReleasePublicKey;
use crate::log::{LogKey, WitnessKey};

/// Keys that a release must be signed, logged and witnessed by (`chrysalis/release-trust/v1`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustPolicy {
    /// `chrysalis/release-trust/v1`.
    pub schema: String,
    /// Keys of accepted signers, base64 of DER `SubjectPublicKeyInfo`; one of them must have signed.
    pub release_keys: Vec<ReleasePublicKey>,
    /// Key and origin of the log, as `origin+id+key`.
    pub log: LogKey,
    /// Keys of accepted witnesses, as `name+id+key`.
    pub witnesses: Vec<WitnessKey>,
    /// How many different witnesses must have cosigned, at least 1.
    pub threshold: u32,
}

/// Why a policy was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustPolicyError {
    /// Not canonical, unknown field, bad key, ….
    #[error(transparent)]
    Document(#[from] CanonicalError),
    /// A field breaks its rule.
    #[error("{field} must be {rule}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is allowed.
        rule: &'static str,
    },
}

impl Document for TrustPolicy {
    const SCHEMA: &'static str = "chrysalis/release-trust/v1";
    const MAX_BYTES: usize = 64 * 1024;

    fn schema(&self) -> &str {
        &self.schema
    }
}

impl TrustPolicy {
    /// Makes a checked policy.
    ///
    /// # Errors
    /// [`TrustPolicyError::Field`].
    pub fn new(
        release_keys: Vec<ReleasePublicKey>,
        log: LogKey,
        witnesses: Vec<WitnessKey>,
        threshold: u32,
    ) -> Result<Self, TrustPolicyError> {
        let policy = Self { schema: Self::SCHEMA.to_owned(), release_keys, log, witnesses, threshold };
        policy.check()?;
        Ok(policy)
    }

    /// Reads and checks a policy from exactly its canonical bytes.
    ///
    /// # Errors
    /// [`TrustPolicyError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TrustPolicyError> {
        let policy = Self::from_canonical(bytes)?;
        policy.check()?;
        Ok(policy)
    }

    /// The same log as a sigstore trusted root, for stock verifiers. They take the release key by hand and check
    /// signature and inclusion; they know nothing of witnesses and of a statement's validity.
    ///
    /// # Errors
    /// [`TrustPolicyError::Document`].
    pub fn to_sigstore_trusted_root(&self) -> Result<Vec<u8>, TrustPolicyError> {
        let key = [ED25519_SPKI.as_slice(), self.log.public_key()].concat();
        let start = serde_json::json!({"start": "1970-01-01T00:00:00Z"});
        Ok(canonical::to_bytes(&serde_json::json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [{
                "baseUrl": format!("https://{}", self.log.origin()),
                "hashAlgorithm": "SHA2_256",
                "publicKey": {"rawBytes": STANDARD.encode(key), "keyDetails": "PKIX_ED25519", "validFor": start},
                "logId": {"keyId": STANDARD.encode(self.log.log_id().as_bytes())},
            }],
            "certificateAuthorities": [],
            "ctlogs": [],
            "timestampAuthorities": [],
        }))?)
    }

    /// Checks the rules that the fields' types don't hold.
    ///
    /// # Errors
    /// [`TrustPolicyError::Field`].
    pub fn check(&self) -> Result<(), TrustPolicyError> {
        let rule = |ok, field, rule| if ok { Ok(()) } else { Err(TrustPolicyError::Field { field, rule }) };
        rule((1..=64).contains(&self.release_keys.len()), "release_keys", "a list of 1 to 64 keys")?;
        rule(self.witnesses.len() <= 64, "witnesses", "a list of at most 64 keys")?;
        let mut keys: Vec<_> = self.witnesses.iter().map(WitnessKey::public_key).collect();
        keys.sort_unstable();
        keys.dedup();
        rule(keys.len() == self.witnesses.len(), "witnesses", "a list of different keys")?;
        rule(!keys.contains(&self.log.public_key()), "witnesses", "other keys than the log's")?;
        let reachable = usize::try_from(self.threshold).is_ok_and(|k| (1..=keys.len()).contains(&k));
        rule(reachable, "threshold", "1 to the number of witnesses")
    }
}

/// DER of a `SubjectPublicKeyInfo` up to the key's 32 bytes (RFC 8410).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
