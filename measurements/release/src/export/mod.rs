// SPDX-License-Identifier: Apache-2.0
//! A release's registers in the formats of other verifiers: trustee's reference value provider ([`rvps`]) and CoRIM
//! ([`corim`]).
//!
//! Both say less than the release: only its listed shapes, and nothing of validity in time (RVPS), the components, the
//! TCB statuses, RTMR3 or MRCONFIGID. A verifier that uses them alone does not know what our own verifier checks.

mod cbor;
pub mod corim;
pub mod rvps;

use types::{CanonicalError, Sha384Digest};

use crate::statement::ShapeRegisters;

/// Why a release could not be exported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Each combination of allowed values is one state in a CoRIM.
    #[error("the release allows more than {max} combinations of register values")]
    TooManyStates {
        /// The limit.
        max: usize,
    },
    /// A part could not be serialised.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
    /// The key could not be encoded.
    #[error(transparent)]
    Key(#[from] crate::key::KeyError),
}

/// The registers that a release fixes, by trustee's claim names, in the order of the quote's fields.
const fn named(registers: &ShapeRegisters) -> [(&'static str, &Vec<Sha384Digest>); 4] {
    let ShapeRegisters { shape: _, mr_td, rtmr_0, rtmr_1, rtmr_2 } = registers;
    [("mr_td", mr_td), ("rtmr_0", rtmr_0), ("rtmr_1", rtmr_1), ("rtmr_2", rtmr_2)]
}
