// SPDX-License-Identifier: Apache-2.0
//! Release statements, DSSE bundles and the append-only tile log.
//!
//! A release is one in-toto statement with the reference values of an image ([`statement`]), signed as a DSSE
//! envelope by a release key, entered in an append-only log and carried with its proof in one sigstore bundle
//! ([`bundle`]). [`verify::VerifiedRelease`] is what a verifier works with; only verification makes one.
//! `docs/releases.md` describes the formats.
//!
//! Nothing here reads files, clocks or randomness.

pub mod bundle;
pub mod dsse;
pub mod export;
pub mod key;
pub mod log;
pub mod reference;
pub mod statement;
pub mod trust;
pub mod verify;

pub use bundle::{Bundle, BundleError};
pub use key::{KeyError, ReleaseKey, ReleasePublicKey};
pub use reference::NoReference;
pub use statement::{
    Component, Components, Hardware, ReferenceValues, ShapeRegisters, Statement, StatementError, Subject, TcbStatus,
    Validity,
};
pub use trust::{TrustPolicy, TrustPolicyError};
pub use verify::{ReleaseError, VerifiedRelease};
