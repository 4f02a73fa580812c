// SPDX-License-Identifier: Apache-2.0
//! The key release protocol as states without IO.
//!
//! `challenge → evidence → appraisal → audit entry on disk → release`: [`Checked`] → [`Challenged`] → [`Appraised`] →
//! [`Entered`] → [`Authorised`] → [`KeyReleaseAnswer`]. The guest's half is [`ReleaseKeyPair`].

mod import;
mod owner;
mod state;
mod token;

pub use import::{ImportContext, ImportKeyPair, ServiceKeys};
pub use key_release_protocol::{
    ChallengeAnswer, CryptoRng, EntryProof, KeyReleaseAnswer, KeyReleaseRequest, MAX_EVIDENCE, MAX_WORK_BITS, ModelKey,
    Opened, ReleaseKeyPair, SealContext, SealError, Sealed, Search, Token, UnwrapErr, Work,
};
pub use owner::{
    AdmitSuccessor, ImportKey, MAX_COSIGNATURES, OwnerAction, OwnerCommand, OwnerSignature, Revoke, SetTenants,
    SignedOwnerCommand, owner_public_key,
};
pub use state::{Appraised, AuthoriseError, Authorised, Challenged, Checked, Entered, Grounds};
pub use token::{TokenError, TokenKey};
