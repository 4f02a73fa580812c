// SPDX-License-Identifier: Apache-2.0
//! What operators see of a service: counts, readiness, platforms that will fall out, refusals on the audit log.

use std::{
    collections::BTreeMap,
    sync::{MutexGuard, PoisonError, atomic::Ordering},
};

use key_release::KeyReleaseRequest;
use release::VerifiedRelease;
use store::{AuditEntry, StoredKey};
use tdx_verify::Collateral;
use types::{Document as _, Evidence};

use super::{RefusalNote, Service, policy};
use crate::{
    grounds::{self, Standing},
    metrics::Gauges,
    tally::Tally,
};

impl Service {
    /// How often each code was refused, and `released` for each release, since the start.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<String, u64> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which hardware this service believes.
    #[must_use]
    pub fn hardware(&self) -> String {
        self.anchors.hardware().to_string()
    }

    pub(crate) const fn gauges(&self) -> &Gauges {
        &self.gauges
    }

    /// Challenges that are neither redeemed nor expired.
    #[must_use]
    pub fn open_challenges(&self) -> u64 {
        self.admission.open_challenges((self.clock)()).into()
    }

    /// Entries of the audit log; `None` where it can't be read.
    #[must_use]
    pub fn audit_entries(&self) -> Option<u64> {
        self.store.checkpoint().ok().map(|checkpoint| checkpoint.head().size())
    }

    /// FMSPC and end of each collateral in force; 0 where it is not valid now.
    #[must_use]
    pub fn collateral_expires(&self) -> Vec<(String, u64)> {
        let now = (self.clock)();
        let collateral = self.collateral();
        let ends = collateral.in_force.iter().map(|collateral| {
            let expires = collateral.check(&self.anchors, now).map_or(0, |facts| facts.expires());
            (hex::encode(collateral.fmspc()), expires)
        });
        // Where a kind of platform has two, the first is used.
        let mut ends: Vec<_> = ends.collect();
        ends.sort_by(|(one, _), (other, _)| one.cmp(other));
        ends.dedup_by(|(later, _), (first, _)| later == first);
        ends
    }

    /// Why no guest can get a key now; empty where one can.
    #[must_use]
    pub fn unready(&self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        if self.gauges.stopping.load(Ordering::Relaxed) {
            reasons.push("the service is ending");
        }
        if self.audit_entries().is_none() {
            reasons.push("the audit log can't be read");
        }
        let now = (self.clock)();
        match grounds::now(&self.store, &self.identity.spki_sha256(), now) {
            Err(_) => reasons.push("the policy or the releases can't be read"),
            Ok(Standing { demand, releases, .. }) => {
                let accepted = |release: &VerifiedRelease| {
                    let (policy, digest) = (&demand.policy, release.digest());
                    !policy.revoked_releases.contains(digest)
                        && policy.releases.as_ref().is_none_or(|listed| listed.contains(digest))
                };
                if !releases.iter().any(|release| accepted(release) && release.is_valid_at(now)) {
                    reasons.push("no release is imported that is valid, accepted and not revoked");
                }
            }
        }
        let serves = |key: &StoredKey| matches!(self.store.is_model_revoked(&key.model), Ok(false));
        if !matches!(self.store.keys(), Ok(keys) if keys.iter().any(serves)) {
            reasons.push("no key is imported of a model that is not revoked");
        }
        if self.collateral_expires().iter().all(|(_, expires)| *expires == 0) {
            reasons.push("no collateral is valid");
        }
        reasons
    }

    /// Whether the next TCB evaluation is known, for [`Service::watch`].
    #[must_use]
    pub fn watches(&self) -> bool {
        !self.collateral().early.is_empty()
    }

    /// Says of a platform whose guest got a key that it will fall out with the next TCB evaluation, if it will. For
    /// operators alone: nothing depends on it.
    pub fn watch(&self, body: &[u8]) {
        let collateral = self.collateral();
        if collateral.early.is_empty() {
            return;
        }
        let Ok(request) = KeyReleaseRequest::from_canonical(body) else { return };
        let Ok(evidence) = Evidence::from_canonical(request.evidence.as_slice()) else { return };
        let quote = evidence.quote.as_slice();
        let Some(early) = Collateral::select(&collateral.early, quote) else { return };
        let Ok(Ok(policy)) = policy(&self.store) else { return };
        if let Err(refused) = tdx_verify::verify(quote, early, &self.anchors, (self.clock)(), &policy.platform) {
            let codes: Vec<_> = refused.faults.iter().map(tdx_verify::QuoteFault::code).collect();
            let fmspc = hex::encode(early.fmspc());
            tracing::warn!(
                code = "tcb_early",
                fmspc,
                codes = codes.join(","),
                "a platform falls out with the next TCB evaluation"
            );
            self.count(["tcb_early"]);
        }
    }

    /// Writes a refusal to the audit log, or counts it where there were many. Failure is logged: a refusal never waits
    /// for it.
    pub fn note_refusal(&self, note: RefusalNote) {
        if !self.tally().has_place(self.milliseconds() / 1000) {
            self.count_refusal(&note);
            return;
        }
        if let Err(error) = self.store.append_audit(&AuditEntry::Refusal(*note.0.clone())) {
            tracing::error!(code = "audit_unavailable", %error, "a refusal was not entered in the audit log");
            self.count_refusal(&note);
        }
    }

    /// Counts a refusal for the next entry that sums them up.
    pub fn count_refusal(&self, note: &RefusalNote) {
        self.tally().add(&note.0);
        self.count(["refusal_summed"]);
    }

    /// Writes the sum of the refusals that got no entry of their own, if there are any.
    pub fn sum_up_refusals(&self) {
        let Some(entry) = self.tally().take() else { return };
        if let Err(error) = self.store.append_audit(&AuditEntry::Refusals(entry.clone())) {
            tracing::error!(code = "audit_unavailable", %error, "refusals were not entered in the audit log");
            self.tally().put_back(entry);
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an outcome.
    pub fn count<'a>(&self, codes: impl IntoIterator<Item = &'a str>) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        for code in codes {
            let counter = counters.entry(code.to_owned()).or_default();
            *counter = counter.saturating_add(1);
        }
    }
}
