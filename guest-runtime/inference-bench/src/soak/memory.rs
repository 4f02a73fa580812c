// SPDX-License-Identifier: Apache-2.0
//! Memory over time: flat, or not.

use serde_json::{Value, json};

use super::Check;
use crate::programs::Attested;

/// What the guest's processes had at one time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    /// Seconds since the load began.
    pub(crate) second: f64,
    /// Resident bytes of serve, engine and attester.
    pub(crate) resident: [u64; 3],
    /// Receipts that serve keeps on purpose.
    pub(crate) kept: u64,
}

impl Sample {
    pub(crate) fn take(guest: &Attested, second: f64, receipts: usize) -> anyhow::Result<Self> {
        let resident = [guest.serve.memory()?.0, guest.engine.memory()?.0, guest.attester.memory()?.0];
        let kept = u64::try_from(receipts).unwrap_or(u64::MAX).min(RECEIPTS_KEPT);
        Ok(Self { second, resident, kept })
    }
}

/// One check for each process: the median of the last quarter against that of the second. The first is for what is made
/// once: caches, threads, pages that are read for the first time.
pub(crate) fn checks(samples: &[Sample]) -> Vec<Check> {
    let quarter = samples.len() / 4;
    let second = samples.get(quarter..quarter.saturating_mul(2)).unwrap_or_default();
    let last = samples.get(samples.len().saturating_sub(quarter)..).unwrap_or_default();
    NAMES
        .into_iter()
        .enumerate()
        .map(|(at, name)| {
            if quarter < FEWEST {
                let detail = format!("{} samples are too few to say anything", samples.len());
                return Check { name, passed: false, detail };
            }
            let of = |sample: &Sample| sample.resident.get(at).copied().unwrap_or_default();
            let (before, after) = (median(second, of), median(last, of));
            let receipts = median(last, |s| s.kept).saturating_sub(median(second, |s| s.kept));
            let most = before + before / 100 * GROWTH_PERCENT + GROWTH_BYTES;
            let most = if name == NAMES[0] { most + receipts * RECEIPT_BYTES } else { most };
            let detail = format!(
                "{} KiB in the second quarter, {} KiB in the last, at most {}",
                before >> 10,
                after >> 10,
                most >> 10
            );
            Check { name, passed: after <= most, detail }
        })
        .collect()
}

/// Medians of each quarter, for people.
pub(crate) fn quarters(samples: &[Sample]) -> Value {
    let size = samples.len() / 4;
    let medians = |at: usize| -> Value {
        let of = |sample: &Sample| sample.resident.get(at).copied().unwrap_or_default();
        (0..4)
            .map(|quarter| median(samples.get(quarter * size..(quarter + 1) * size).unwrap_or_default(), of))
            .collect()
    };
    json!({ "serve": medians(0), "engine": medians(1), "attester": medians(2), "samples": samples.len() })
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<u64> = samples.iter().map(of).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

const NAMES: [&str; 3] = ["memory_serve", "memory_engine", "memory_attester"];
/// Fewest samples of a quarter.
const FEWEST: usize = 8;
/// What counts as flat: so much more, and so many bytes, for the allocator's pieces.
const GROWTH_PERCENT: u64 = 5;
const GROWTH_BYTES: u64 = 2 << 20;
/// As `serve` has it: the newest that can be asked for.
const RECEIPTS_KEPT: u64 = 4096;
/// What one of them takes with its id, twice, and its places in a table and a queue.
const RECEIPT_BYTES: u64 = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(serve: impl Fn(u64) -> (u64, u64)) -> Vec<bool> {
        let sample = |at| Sample { second: 0.0, resident: [serve(at).0, 300 << 20, 9 << 20], kept: serve(at).1 };
        checks(&(0..80).map(sample).collect::<Vec<_>>()).iter().map(|check| check.passed).collect()
    }

    #[test]
    fn growth_is_seen_and_one_peak_or_the_beginning_are_not_growth() {
        assert_eq!(verdicts(|_| (20 << 20, 0)), [true; 3]);
        assert_eq!(verdicts(|at| (at.min(15) << 20, 0)), [true; 3]);
        assert_eq!(verdicts(|at| ((if at == 75 { 90 } else { 20 }) << 20, 0)), [true; 3]);
        // 100 KiB from one sample to the next.
        assert_eq!(verdicts(|at| ((20 << 20) + at * (100 << 10), 0)), [false, true, true]);
        // Receipts that it keeps are no leak, but no more than these.
        assert_eq!(verdicts(|at| ((20 << 20) + at * (100 << 10), at * 50)), [true; 3]);
        assert_eq!(verdicts(|at| ((20 << 20) + at * (250 << 10), at * 50)), [false, true, true]);
        assert_eq!(checks(&[Sample::default(); 31]).iter().filter(|check| check.passed).count(), 0);
    }

    #[test]
    fn quarters_are_in_order() {
        let samples: Vec<_> = (0..8).map(|at| Sample { resident: [at, 0, 0], ..Sample::default() }).collect();
        assert_eq!(quarters(&samples)["serve"], json!([1, 3, 5, 7]));
    }
}
