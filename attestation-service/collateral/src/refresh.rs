// SPDX-License-Identifier: Apache-2.0
//! Renewal: what is due, and what became of it.

use std::collections::BTreeMap;

use tdx_verify::CollateralFacts;
use types::Refusal;

use crate::{EvaluationSet, FetchError, Fmspc, KeepError, Keeper, OfferError, Source, Wanted};

/// Renews kept collateral from a source.
#[derive(Debug)]
pub struct Refresher {
    source: Source,
    keeper: Keeper,
    wanted: Vec<Wanted>,
    failures: BTreeMap<Fmspc, Failures>,
}

/// Why collateral was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The source.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// What it gave.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// The program is ending, or panicked.
    #[error("keeping it was interrupted: {0}")]
    Interrupted(#[source] tokio::task::JoinError),
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    /// One after the other.
    count: u32,
    /// When it is tried again, seconds since 1970.
    next: u64,
}

impl Refresher {
    /// Renews what is `wanted`, and whatever is kept already, from the authority that it was kept from.
    ///
    /// # Errors
    /// [`KeepError`].
    pub fn new(source: Source, keeper: Keeper, mut wanted: Vec<Wanted>) -> Result<Self, KeepError> {
        for fmspc in keeper.kinds()? {
            if wanted.iter().all(|wanted| wanted.fmspc != fmspc) {
                // A record that can't be read shows when something is to be kept.
                let ca = keeper.record(fmspc).ok().flatten().map(|record| record.ca).unwrap_or_default();
                wanted.push(Wanted { fmspc, ca });
            }
        }
        Ok(Self { source, keeper, wanted, failures: BTreeMap::new() })
    }

    /// What this renews.
    #[must_use]
    pub fn wanted(&self) -> &[Wanted] {
        &self.wanted
    }

    /// What should be fetched at `now`: what is missing or can't be used, and what was fetched [`REFRESH_EVERY`]
    /// seconds ago; every hour in its last two days. After a failure a minute is waited, then two, up to an hour.
    #[must_use]
    pub fn due(&self, now: u64) -> Vec<Wanted> {
        self.wanted.iter().filter(|wanted| self.is_due(wanted.fmspc, now)).copied().collect()
    }

    /// Fetches and keeps what is due. Whatever fails leaves what is kept as it is.
    pub async fn refresh(&mut self, now: u64) -> Vec<(Fmspc, Result<CollateralFacts, RefreshError>)> {
        let mut results = Vec::new();
        for wanted in self.due(now) {
            let result = self.fetch(&wanted, now).await;
            match &result {
                Ok(_) => {
                    self.failures.remove(&wanted.fmspc);
                }
                Err(_) => {
                    let count = self.failures.get(&wanted.fmspc).map_or(0, |failures| failures.count);
                    let wait = RETRY_FIRST.checked_shl(count).unwrap_or(RETRY_MOST).min(RETRY_MOST);
                    let failures = Failures { count: count.saturating_add(1).min(30), next: now.saturating_add(wait) };
                    self.failures.insert(wanted.fmspc, failures);
                }
            }
            results.push((wanted.fmspc, result));
        }
        results
    }

    /// Fetches and keeps one, due or not.
    ///
    /// # Errors
    /// [`RefreshError`].
    pub async fn fetch(&self, wanted: &Wanted, now: u64) -> Result<CollateralFacts, RefreshError> {
        let collateral = self.source.fetch(wanted, EvaluationSet::Standard).await?;
        // Not every source has it; it gates nothing, so its absence is no failure.
        let early = self.source.fetch(wanted, EvaluationSet::Early).await.ok();
        let (keeper, wanted) = (self.keeper.clone(), *wanted);
        let kept = tokio::task::spawn_blocking(move || keeper.keep(&wanted, &collateral, early.as_deref(), now)).await;
        match kept {
            Ok(kept) => Ok(kept?),
            Err(error) => Err(RefreshError::Interrupted(error)),
        }
    }

    fn is_due(&self, fmspc: Fmspc, now: u64) -> bool {
        let waiting = self.failures.get(&fmspc).map_or(0, |failures| failures.next.saturating_sub(now));
        // More than the longest wait is left only where the clock stepped back.
        if (1..=RETRY_MOST).contains(&waiting) {
            return false;
        }
        let (Ok(Some(held)), Ok(Some(record))) = (self.keeper.usable(fmspc, now), self.keeper.record(fmspc)) else {
            return true;
        };
        let every = if held.facts.expires().saturating_sub(now) < LAST_DAYS { LAST_EVERY } else { REFRESH_EVERY };
        // A clock that was ahead when it was fetched does not put it off.
        record.fetched > now || now.saturating_sub(record.fetched) >= every
    }
}

impl RefreshError {
    /// The reason in the form that users see.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Fetch(error) => error.refusal(),
            Self::Offer(error) => error.refusal(),
            Self::Interrupted(_) => Refusal::new("collateral_store", "collateral_dir", self.to_string(), "try again"),
        }
    }
}

/// How often collateral is fetched, in seconds. Intel issues it for 30 days.
pub const REFRESH_EVERY: u64 = 12 * 3600;
const LAST_DAYS: u64 = 2 * 86_400;
const LAST_EVERY: u64 = 3600;
const RETRY_FIRST: u64 = 60;
const RETRY_MOST: u64 = 3600;
