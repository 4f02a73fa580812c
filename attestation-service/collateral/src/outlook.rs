// SPDX-License-Identifier: Apache-2.0
//! What becomes of one platform: whether it is good enough today, and from when on it will not be.

use std::{collections::BTreeSet, time::Duration};

use der::DateTime;
use serde::Serialize;
use tdx_verify::{Collateral, PlatformPolicy, QuoteRefused, VerifiedQuote};
use types::Refusal;

use crate::{Early, Fmspc, Keeper, PckCa, Wanted};

/// How one platform stands under kept collateral.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outlook {
    /// Kind of the platform, where the quote names one.
    pub fmspc: Option<Fmspc>,
    /// How it stands.
    pub standing: Standing,
    /// Why, and what to update; nothing where it stands.
    pub reasons: Vec<Refusal>,
}

/// In a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "standing")]
pub enum Standing {
    /// Good enough, also by the next TCB evaluation as far as one is known.
    Good,
    /// Good enough until then.
    FallsOut {
        /// Seconds since 1970. When it comes from an early evaluation, Intel's custom and no promise; it may be past.
        at: u64,
    },
    /// Not good enough.
    Out,
    /// It can't be told.
    Unknown,
}

impl Wanted {
    /// What collateral the platform of `quote` needs. **Not verified.**
    #[must_use]
    pub fn of_quote(quote: &[u8]) -> Option<Self> {
        let (fmspc, processor) = tdx_verify::claimed_platform(quote)?;
        let ca = if processor { PckCa::Processor } else { PckCa::Platform };
        Some(Self { fmspc: Fmspc::from_bytes(fmspc), ca })
    }
}

impl Keeper {
    /// How the platform that made `quote` stands at `now` under what is kept here, for those who accept what `policy` does.
    ///
    /// Says nothing about the guest that the quote is of, nor when the quote was made: a platform that was updated
    /// since stands better than its old quote.
    #[must_use]
    pub fn outlook(&self, quote: &[u8], policy: &PlatformPolicy, now: u64) -> Outlook {
        let Some(Wanted { fmspc, .. }) = Wanted::of_quote(quote) else {
            let reasons = tdx_verify::unreadable(quote).map(|refused| refused.refusals()).unwrap_or_default();
            return Outlook { fmspc: None, standing: Standing::Unknown, reasons };
        };
        let (standing, reasons) = self.stands(fmspc, quote, policy, now);
        Outlook { fmspc: Some(fmspc), standing, reasons }
    }

    fn stands(&self, fmspc: Fmspc, quote: &[u8], policy: &PlatformPolicy, now: u64) -> (Standing, Vec<Refusal>) {
        let in_force = match self.usable(fmspc, now) {
            Ok(Some(loaded)) => loaded.collateral,
            Ok(None) => return (Standing::Unknown, vec![missing(fmspc)]),
            Err(error) => return (Standing::Unknown, vec![error.refusal()]),
        };
        let today = match tdx_verify::verify(quote, &in_force, self.anchors(), now, policy) {
            Ok(verified) => verified,
            Err(refused) if of_platform(&refused) => {
                let reason = explain("tcb_out", "this host is out", &refused, &in_force, quote);
                return (Standing::Out, vec![reason]);
            }
            Err(refused) => return (Standing::Unknown, refused.refusals()),
        };
        if let Some(falls) = self.falls_with_next(fmspc, quote, policy, now) {
            return falls;
        }
        match grace_ends(&today, policy) {
            Some(at) => {
                let detail = format!(
                    "this host falls out on {}: its TCB status is {}, accepted until then",
                    date(at),
                    today.tcb().status
                );
                (Standing::FallsOut { at }, vec![Refusal::new("tcb_falls_out", "tcb", detail, fix(&in_force, quote))])
            }
            None => (Standing::Good, Vec::new()),
        }
    }

    /// Whether the platform falls out with the evaluation that is published and not yet in force.
    fn falls_with_next(
        &self,
        fmspc: Fmspc,
        quote: &[u8],
        policy: &PlatformPolicy,
        now: u64,
    ) -> Option<(Standing, Vec<Refusal>)> {
        let loaded = self.early(fmspc, now).ok().flatten()?;
        let Early { expected: at, tcb_evaluation_data_number: number, .. } = self.early_of(fmspc, now)?;
        let refused = match tdx_verify::verify(quote, &loaded.collateral, self.anchors(), now, policy) {
            Err(refused) if of_platform(&refused) => refused,
            // Collateral that lies idle is no reason for an alarm; it is renewed with the other.
            Err(_) => return None,
            Ok(then) => {
                let faults = policy.judge(then.version(), then.tcb(), then.platform(), at.max(now));
                QuoteRefused { faults: (!faults.is_empty()).then_some(faults)? }
            }
        };
        let what = format!("this host falls out on {}, when TCB evaluation {number} is commonly in force", date(at));
        let reason = explain("tcb_falls_out", &what, &refused, &loaded.collateral, quote);
        Some((Standing::FallsOut { at }, vec![reason]))
    }
}

/// Nothing but the platform itself is wrong.
fn of_platform(refused: &QuoteRefused) -> bool {
    !refused.faults.is_empty() && refused.faults.iter().all(tdx_verify::QuoteFault::is_of_platform)
}

/// When the policy's patience with today's status ends, if it does.
fn grace_ends(today: &VerifiedQuote, policy: &PlatformPolicy) -> Option<u64> {
    let fits = policy.tcb.iter().filter(|accepted| accepted.status == today.tcb().status);
    fits.map(|accepted| accepted.until).try_fold(None, |latest, until| until.map(|until| latest.max(Some(until))))?
}

fn explain(code: &str, what: &str, refused: &QuoteRefused, collateral: &Collateral, quote: &[u8]) -> Refusal {
    let mut because: Vec<String> = refused.faults.iter().map(ToString::to_string).collect();
    because.extend(collateral.behind(quote).iter().map(ToString::to_string));
    Refusal::new(code, "tcb", format!("{what}: {}", because.join("; ")), fix(collateral, quote))
}

fn fix(collateral: &Collateral, quote: &[u8]) -> String {
    let updates: BTreeSet<&str> = collateral.behind(quote).iter().map(tdx_verify::Behind::update).collect();
    if updates.is_empty() {
        return "follow Intel's advisories for this machine, then restart a guest".to_owned();
    }
    let updates: Vec<&str> = updates.into_iter().collect();
    format!("update {}; reboot, then the guests' next quotes tell", updates.join(" and "))
}

fn missing(fmspc: Fmspc) -> Refusal {
    let detail = format!("there is no collateral for platforms {fmspc}");
    let fix = "name a PCCS, or put the file into the directory (`attestation-service collateral fetch`)";
    Refusal::new("collateral_missing", "collateral", detail, fix)
}

/// A day for people.
fn date(seconds: u64) -> String {
    DateTime::from_unix_duration(Duration::from_secs(seconds))
        .map_or_else(|_| seconds.to_string(), |at| format!("{}-{:02}-{:02}", at.year(), at.month(), at.day()))
}
