// SPDX-License-Identifier: Apache-2.0
//! What the service answered, judged: bytes in, what they prove out. The connection brings the bytes, and the host may have
//! made them where the service's key is not pinned rightly.

use attested_channel::ed25519_spki_sha256;
use ed25519_dalek::{Signature, VerifyingKey};
use key_release_protocol::{ChallengeAnswer, KeyReleaseAnswer, Opened, ReleaseKeyPair, SealContext};
use types::{
    Document as _, Hex32, ModelId, Sha256Digest, Tenants, canonical, evidence::AttestedTime, refusal::Refusals,
};

use crate::{ClientError, OwnerAnswer, Released};

/// A signed time for `nonce`, by the key behind `pin`, not before `floor` (seconds since 1970).
///
/// # Errors
/// [`ClientError::Answer`], [`ClientError::Time`].
pub fn time(body: &[u8], nonce: &Hex32, pin: &Sha256Digest, floor: u64) -> Result<AttestedTime, ClientError> {
    let time: AttestedTime = canonical::from_bytes(body, SMALL).map_err(|e| malformed(TIME, &e))?;
    if time.nonce != *nonce {
        return Err(ClientError::Time("it answers another nonce"));
    }
    if ed25519_spki_sha256(&time.service_key) != *pin {
        return Err(ClientError::Time("it is signed by another key than the pinned one"));
    }
    let signed = VerifyingKey::from_bytes(time.service_key.as_bytes()).is_ok_and(|key| {
        Signature::from_slice(time.signature.as_slice())
            .is_ok_and(|s| key.verify_strict(&AttestedTime::signed_bytes(nonce, time.unix), &s).is_ok())
    });
    if !signed {
        return Err(ClientError::Time("its signature does not verify"));
    }
    if time.unix < floor {
        return Err(ClientError::Time("it is before the image was built"));
    }
    Ok(time)
}

/// A challenge. Only the service can tell whether it made the token.
///
/// # Errors
/// [`ClientError::Answer`].
pub fn challenge(body: &[u8]) -> Result<ChallengeAnswer, ClientError> {
    canonical::from_bytes(body, SMALL).map_err(|e| malformed(CHALLENGE, &e))
}

/// The key of `model` that was sealed to `key` for this challenge and the evidence with this digest, and the document of
/// its tenants.
///
/// # Errors
/// [`ClientError::Answer`], [`ClientError::Audit`] or [`ClientError::Seal`].
pub fn released(
    body: &[u8],
    challenge: &[u8; 32],
    model: &ModelId,
    evidence: &Sha256Digest,
    key: ReleaseKeyPair,
) -> Result<Released, ClientError> {
    let answer = KeyReleaseAnswer::from_canonical(body).map_err(|e| malformed(RELEASE, &e))?;
    if answer.model != *model {
        return Err(ClientError::Answer { step: RELEASE, rule: "the key is of another model".to_owned() });
    }
    answer.audit.verify_path_only().map_err(|e| ClientError::Audit(e.to_string()))?;
    let (key_version, audit_leaf) = (answer.key_version, &answer.audit.leaf);
    let context = SealContext { challenge, model, key_version, evidence, audit_leaf };
    let Opened { key, tenants } = key.open(&answer.enc, &answer.ciphertext, &context)?;
    // Judged here, so that nobody serves by a document of another model.
    let tenants = tenants.map(|bytes| Tenants::read(&bytes, model).map(|_| bytes)).transpose();
    let tenants = tenants.map_err(|e| ClientError::Answer { step: RELEASE, rule: format!("tenants: {e}") })?;
    Ok(Released { key, tenants, key_version, audit: answer.audit })
}

/// A command that was carried out.
///
/// # Errors
/// [`ClientError::Answer`].
pub fn command(body: &[u8]) -> Result<OwnerAnswer, ClientError> {
    canonical::from_bytes(body, SMALL).map_err(|e| malformed(COMMAND, &e))
}

/// What an answer with another status than 200 says.
#[must_use]
pub fn refusal(step: &'static str, status: u16, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<Refusals>(body) {
        Ok(refusals) if !refusals.reasons.is_empty() => ClientError::Refused(refusals.reasons),
        _ => ClientError::Answer { step, rule: format!("status {status} without reasons") },
    }
}

fn malformed(step: &'static str, error: &types::CanonicalError) -> ClientError {
    ClientError::Answer { step, rule: error.to_string() }
}

pub(crate) const TIME: &str = "GET /v1/time";
pub(crate) const CHALLENGE: &str = "POST /v1/challenges";
pub(crate) const RELEASE: &str = "POST /v1/key-release";
pub(crate) const COMMAND: &str = "POST /v1/owner-commands";
/// Most bytes of an answer that is no key.
pub(crate) const SMALL: usize = 4096;
