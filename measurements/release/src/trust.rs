// SPDX-License-Identifier: Apache-2.0
//! Whom a verifier of releases trusts.

use serde::{Deserialize, Serialize};
use types::{CanonicalError, Document};

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
