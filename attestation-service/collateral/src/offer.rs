// SPDX-License-Identifier: Apache-2.0
//! Why collateral that somebody offers is not kept.

use tdx_verify::{CollateralError, CollateralFacts, CollateralFault};
use types::Refusal;

use crate::{Fmspc, KeepError, PckCa};

/// Why collateral was not kept, or is not used.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// Its form.
    #[error(transparent)]
    Form(#[from] CollateralError),
    /// Its issuer, or its time.
    #[error(transparent)]
    Fault(#[from] CollateralFault),
    /// It is for other platforms.
    #[error("the collateral is for {found}, asked was {expected}")]
    OtherFmspc {
        /// Asked for.
        expected: Fmspc,
        /// Found.
        found: Fmspc,
    },
    /// Its revocation list for PCK certificates is of another authority.
    #[error("the list of revoked PCK certificates is of {}, asked was the {expected} CA", named(*.found))]
    OtherCa {
        /// Asked for.
        expected: PckCa,
        /// Found; `None` where the issuer has no name of Intel's authorities.
        found: Option<PckCa>,
    },
    /// A part is older than what was kept before.
    #[error("{field} was {known} and is {found}: an older issue")]
    RolledBack {
        /// Which part.
        field: &'static str,
        /// Kept before.
        known: u64,
        /// Found.
        found: u64,
    },
    /// The directory.
    #[error(transparent)]
    Keep(#[from] KeepError),
}

impl OfferError {
    /// The reason in the form that users see.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let again = "fetch the collateral again from its source";
        match self {
            Self::Form(error) => Refusal::new("collateral_malformed", "collateral", error.to_string(), again),
            Self::Fault(fault) => fault.refusal(),
            Self::OtherFmspc { .. } => {
                Refusal::new("fmspc_mismatch", "collateral.tcb_info.fmspc", self.to_string(), again)
            }
            Self::OtherCa { .. } => {
                let fix = "name the kind of platform with its authority (FMSPC:processor), or ask another source";
                Refusal::new("pck_ca_mismatch", "collateral.pck_crl", self.to_string(), fix)
            }
            Self::RolledBack { field, .. } => {
                let fix = if field.ends_with("tcb_evaluation_data_number") {
                    "ask another source: this one serves what is out of date; if all others do, too, the one that was kept gave a TCB evaluation before it was in force (look at `collateral status`)"
                } else {
                    "ask another source: this one serves what is out of date"
                };
                Refusal::new("collateral_rollback", &format!("collateral.{field}"), self.to_string(), fix)
            }
            Self::Keep(error) => {
                Refusal::new("collateral_store", "collateral_dir", error.to_string(), "look after the directory")
            }
        }
    }
}

/// No part may be older than it was: a list that forgets a revocation would still be in its time.
pub(crate) fn not_older(known: &CollateralFacts, found: &CollateralFacts) -> Result<(), OfferError> {
    let parts = |facts: &CollateralFacts| {
        [
            ("tcb_evaluation_data_number", facts.tcb_evaluation_data_number.into()),
            ("qe_identity.tcb_evaluation_data_number", facts.qe_evaluation_data_number.into()),
            ("tcb_info.issue_date", facts.tcb_info.issued),
            ("qe_identity.issue_date", facts.qe_identity.issued),
            ("pck_crl.this_update", facts.pck_crl.issued),
            ("root_ca_crl.this_update", facts.root_ca_crl.issued),
        ]
    };
    for ((field, known), (_, found)) in parts(known).into_iter().zip(parts(found)) {
        if found < known {
            return Err(OfferError::RolledBack { field, known, found });
        }
    }
    Ok(())
}

fn named(ca: Option<PckCa>) -> String {
    ca.map_or_else(|| "an unknown CA".to_owned(), |ca| format!("the {ca} CA"))
}
