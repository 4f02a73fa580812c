// SPDX-License-Identifier: Apache-2.0
//! Verdicts as EAT attestation results (EAR, draft-ietf-rats-ear-04): JSON claims signed as a JWT with Ed25519.
//!
//! A token says what a verifier found, for those who believe that verifier. It gives no key and opens no connection: whoever
//! needs freshness or a binding of its own appraises evidence instead. Pure: keys and the time are arguments.

mod claims;
mod key;
mod key_set;
mod token;
mod trust;

pub use claims::{AttestationResult, Issue, Submodule, VerifierClaims, VerifierId};
pub use key::ResultKey;
pub use key_set::{Jwk, KeyBinding, KeySet, KeySetError, MAX_KEY_SET, MAX_KEYS};
pub use token::{MAX_SECONDS, MAX_TOKEN, TokenError, verify};
pub use trust::{Tier, TrustVector};
