// SPDX-License-Identifier: Apache-2.0
//! The attestation result that goes with a key.

use appraise::Verdict;
use attestation_result::{AttestationResult, Issue, ResultKey};
use key_release::KeyReleaseAnswer;
use types::Sha256Digest;

/// A released key, and what was found of the guest that got it.
#[derive(Debug)]
pub struct Granted {
    /// The sealed key.
    pub answer: KeyReleaseAnswer,
    /// A signed attestation result (EAR); absent where it would be too large for a header.
    pub result: Option<String>,
}

/// What an accepted verdict comes to.
pub(super) fn of(verdict: &Verdict, policies: &[Sha256Digest], challenge: Sha256Digest, now: u64) -> AttestationResult {
    let issue =
        Issue { policies, build: BUILD, challenge: Some(challenge), audience: None, now, until: verdict.expires() };
    AttestationResult::of(verdict, &issue)
}

/// Signs a result for a header.
pub(super) fn sign(key: &ResultKey, result: &AttestationResult) -> Option<String> {
    match key.sign(result) {
        Ok(token) if token.len() <= MAX_HEADER => Some(token),
        Ok(token) => {
            tracing::warn!(bytes = token.len(), "an attestation result is too large for its header, and left out");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "an attestation result was not signed");
            None
        }
    }
}

/// Name and version of this program.
pub(crate) const BUILD: &str = concat!("attestation-service ", env!("CARGO_PKG_VERSION"));
/// Most bytes of the header: proxies and libraries cap them at 8 KiB and more.
const MAX_HEADER: usize = 4096;
