// SPDX-License-Identifier: Apache-2.0
//! What is kept, until when, and what comes next.

use serde::Serialize;
use tdx_verify::CollateralFacts;
use types::Refusal;

use crate::{Fmspc, KeepError, Keeper};

/// The state of the collateral for one kind of platform. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// For which platforms.
    pub fmspc: Fmspc,
    /// Whether it can be used.
    pub state: State,
    /// Why it can't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Refusal>,
    /// The last second of its validity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// The part that ends first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_first: Option<&'static str>,
    /// When it was fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetched: Option<u64>,
    /// What it says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub facts: Option<CollateralFacts>,
    /// The next TCB evaluation, where one is published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early: Option<Early>,
}

/// Whether collateral can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// For more than a week.
    Current,
    /// For a week at most: its renewal failed for long.
    Expiring,
    /// Not at all.
    Refused,
}

/// A TCB evaluation that is published and not yet in force: platforms that don't reach its newest level are out of
/// date from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Early {
    /// Its `tcbEvaluationDataNumber`.
    pub tcb_evaluation_data_number: u32,
    /// Date of its newest level that is `UpToDate`.
    pub newest_level: u64,
    /// When this directory first had it.
    pub first_seen: u64,
    /// When it may be in force: six weeks after `first_seen`. Intel's custom, not a date that Intel promises.
    pub expected: u64,
}

impl Keeper {
    /// The state of everything that is kept.
    ///
    /// # Errors
    /// [`KeepError`].
    pub fn status(&self, now: u64) -> Result<Vec<Status>, KeepError> {
        self.kinds()?.into_iter().map(|fmspc| self.status_of(fmspc, now)).collect()
    }

    fn status_of(&self, fmspc: Fmspc, now: u64) -> Result<Status, KeepError> {
        let record = self.record(fmspc)?;
        let (state, reason, facts) = match self.usable(fmspc, now) {
            Ok(Some(held)) if held.facts.expires().saturating_sub(now) > WEEK => {
                (State::Current, None, Some(held.facts))
            }
            Ok(Some(held)) => (State::Expiring, None, Some(held.facts)),
            Ok(None) => (State::Refused, Some(missing()), None),
            Err(error) => (State::Refused, Some(error.refusal()), None),
        };
        let early = self.early_of(fmspc, now);
        Ok(Status {
            fmspc,
            state,
            reason,
            expires: facts.map(|facts| facts.expires()),
            ends_first: facts.map(|facts| ends_first(&facts)),
            fetched: record.map(|record| record.fetched),
            facts,
            early,
        })
    }
}

impl Keeper {
    /// The next TCB evaluation for one kind of platform, where one is kept that may be used at `now`.
    pub(crate) fn early_of(&self, fmspc: Fmspc, now: u64) -> Option<Early> {
        let early = self.early(fmspc, now).ok().flatten()?;
        let (number, first_seen) = self.record(fmspc).ok().flatten()?.early?;
        Some(Early {
            tcb_evaluation_data_number: number,
            newest_level: early.facts.newest_level,
            first_seen,
            expected: first_seen.saturating_add(6 * WEEK),
        })
    }
}

fn ends_first(facts: &CollateralFacts) -> &'static str {
    let parts = [
        ("tcb_info", facts.tcb_info.next_update),
        ("qe_identity", facts.qe_identity.next_update),
        ("pck_crl", facts.pck_crl.next_update),
        ("root_ca_crl", facts.root_ca_crl.next_update),
        ("certificates", facts.certificates_end),
    ];
    parts.into_iter().min_by_key(|(_, end)| *end).map_or("certificates", |(name, _)| name)
}

fn missing() -> Refusal {
    Refusal::new("collateral_missing", "collateral", "the file is gone", "fetch the collateral again from its source")
}

const WEEK: u64 = 7 * 86_400;
