// SPDX-License-Identifier: Apache-2.0
//! Messages of key release, and the sealing of model keys: what guest and service share.
//!
//! Small on purpose: it goes into the guest's PID 1. What the service does with the messages is in `key-release`.

mod message;
mod seal;
mod token;
mod work;

pub use hpke::rand_core::{CryptoRng, UnwrapErr};
pub use message::{ChallengeAnswer, KeyReleaseAnswer, KeyReleaseRequest, MAX_EVIDENCE, Sealed};
pub use release::log::EntryProof;
pub use seal::{Kem, ModelKey, Opened, ReleaseKeyPair, SealContext, SealError, open_key, seal, seal_key};
pub use token::Token;
pub use work::{MAX_WORK_BITS, Search, Work, is_solution};
