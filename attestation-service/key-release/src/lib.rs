// SPDX-License-Identifier: Apache-2.0
//! The key release protocol as states without IO.
//!
//! `challenge → evidence → appraisal → audit entry on disk → release`: [`Checked`] → [`Challenged`] → [`Appraised`] →
//! [`Entered`] → [`Authorised`] → [`KeyReleaseAnswer`]. The guest's half is [`ReleaseKeyPair`].

mod audit;
mod message;
mod seal;
mod state;
mod token;

pub use hpke::rand_core::{CryptoRng, UnwrapErr};
pub use message::{ChallengeAnswer, KeyReleaseAnswer, KeyReleaseRequest, MAX_EVIDENCE};
pub use release::log::EntryProof;
pub use seal::{ModelKey, ReleaseKeyPair, SealContext, SealError};
pub use state::{Appraised, AuthoriseError, Authorised, Challenged, Checked, Entered, Grounds};
pub use token::{Token, TokenError, TokenKey};
