// SPDX-License-Identifier: Apache-2.0
//! Which refusals get an entry of their own on the audit log, and the sum of the others: a flood of refusals must not
//! make the log grow, and must not vanish from it.

use std::collections::BTreeMap;

use store::{RefusalEntry, RefusalsEntry};
use types::Document as _;

/// Refusals on their way to the log.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// How many entries may be written now, and at which second of the stopwatch that was so.
    places: Option<(u64, u64)>,
    sum: Option<RefusalsEntry>,
}

impl Tally {
    /// Whether a refusal gets an entry of its own: one a second, and [`BURST`] at once. `second` is a stopwatch's: a
    /// clock that was ahead for a moment would leave none for as long.
    pub(crate) fn has_place(&mut self, second: u64) -> bool {
        let (places, at) = self.places.unwrap_or((BURST, second));
        let places = places.saturating_add(second.saturating_sub(at)).min(BURST);
        self.places = Some((places.saturating_sub(1), second.max(at)));
        places > 0
    }

    /// Counts a refusal that gets none.
    pub(crate) fn add(&mut self, refusal: &RefusalEntry) {
        let sum = self.sum.get_or_insert_with(|| RefusalsEntry {
            schema: RefusalsEntry::SCHEMA.to_owned(),
            from: refusal.unix,
            until: refusal.unix,
            refusals: 0,
            codes: BTreeMap::new(),
        });
        sum.from = sum.from.min(refusal.unix);
        sum.until = sum.until.max(refusal.unix);
        sum.refusals = sum.refusals.saturating_add(1).min(MAX_NUMBER);
        for code in &refusal.codes {
            count(&mut sum.codes, code, 1);
        }
    }

    /// The sum, which is zero from then on.
    pub(crate) fn take(&mut self) -> Option<RefusalsEntry> {
        self.sum.take()
    }

    /// Takes a sum back that could not be written.
    pub(crate) fn put_back(&mut self, entry: RefusalsEntry) {
        let Some(sum) = &mut self.sum else {
            self.sum = Some(entry);
            return;
        };
        sum.from = sum.from.min(entry.from);
        sum.until = sum.until.max(entry.until);
        sum.refusals = sum.refusals.saturating_add(entry.refusals).min(MAX_NUMBER);
        for (code, number) in &entry.codes {
            count(&mut sum.codes, code, *number);
        }
    }
}

fn count(codes: &mut BTreeMap<String, u64>, code: &str, number: u64) {
    let code = if codes.contains_key(code) || codes.len() < MAX_CODES { code } else { OTHER };
    let sum = codes.entry(code.to_owned()).or_default();
    *sum = sum.saturating_add(number).min(MAX_NUMBER);
}

const BURST: u64 = 60;
/// One less than an entry takes: `other` needs a place.
const MAX_CODES: usize = 63;
const OTHER: &str = "other";
/// Largest integer that canonical JSON writes exactly.
const MAX_NUMBER: u64 = (1 << 53) - 1;

#[cfg(test)]
mod tests {
    use store::AuditEntry;

    use super::*;

    fn refusal(unix: u64, code: &str) -> RefusalEntry {
        let schema = RefusalEntry::SCHEMA.to_owned();
        RefusalEntry { schema, unix, model: None, evidence: None, challenge: None, codes: vec![code.to_owned()] }
    }

    #[test]
    fn a_minute_of_entries_then_one_a_second() {
        let mut tally = Tally::default();
        assert_eq!((0..1000).filter(|_| tally.has_place(100)).count(), 60);
        assert!(!tally.has_place(100));
        assert!(tally.has_place(101) && !tally.has_place(101));
        assert!(!tally.has_place(50), "a stopwatch never steps back; one that did would give none");
        assert_eq!((0..1000).filter(|_| tally.has_place(10_000)).count(), 60);
    }

    #[test]
    fn sums_are_entries_whatever_the_codes() {
        let mut tally = Tally::default();
        assert!(tally.take().is_none());
        for number in 0..100 {
            tally.add(&refusal(200 - number, &format!("code_{number}")));
            tally.add(&refusal(100, "code_0"));
        }
        let entry = tally.take().unwrap();
        assert_eq!((entry.refusals, entry.from, entry.until), (200, 100, 200));
        assert_eq!((entry.codes.len(), entry.codes["code_0"], entry.codes[OTHER]), (64, 101, 37));
        AuditEntry::Refusals(entry.clone()).to_bytes().unwrap();
        // Not written: it is there again, with what came meanwhile.
        tally.add(&refusal(300, "code_0"));
        tally.put_back(entry);
        let entry = tally.take().unwrap();
        assert_eq!((entry.refusals, entry.until, entry.codes["code_0"]), (201, 300, 102));
        AuditEntry::Refusals(entry).to_bytes().unwrap();
        assert!(tally.take().is_none());
    }
}
