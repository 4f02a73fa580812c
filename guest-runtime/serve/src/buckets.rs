// SPDX-License-Identifier: Apache-2.0
//! Rates: a bucket that a minute fills. Pure; times are milliseconds of a clock that never steps back.

/// As much as a minute brings, at most; less than nothing where more was used than was taken.
#[derive(Debug)]
pub(crate) struct Bucket {
    per_minute: u32,
    /// In units of which a minute's milliseconds are one: so each millisecond brings a whole number.
    level: i64,
    /// Of the last look.
    at: u64,
}

impl Bucket {
    /// A full one.
    pub(crate) fn full(per_minute: u32) -> Self {
        let mut bucket = Self { per_minute, level: 0, at: 0 };
        bucket.level = bucket.most();
        bucket
    }

    pub(crate) fn per_minute(&self) -> u32 {
        self.per_minute
    }

    /// Takes so much, or nothing.
    ///
    /// # Errors
    /// The milliseconds until so much is there; what is more than a minute's is never.
    pub(crate) fn take(&mut self, amount: u64, now: u64) -> Result<(), u64> {
        self.refill(now);
        let wanted = units(amount);
        if wanted > self.level {
            return Err(self.until(wanted));
        }
        self.level = self.level.saturating_sub(wanted);
        Ok(())
    }

    /// What was taken becomes what was used.
    pub(crate) fn settle(&mut self, taken: u64, used: u64, now: u64) {
        self.refill(now);
        self.level = self.level.saturating_add(units(taken)).saturating_sub(units(used)).min(self.most());
    }

    /// What is there.
    pub(crate) fn remaining(&mut self, now: u64) -> u64 {
        self.refill(now);
        u64::try_from(self.level / MINUTE).unwrap_or(0)
    }

    /// The milliseconds until it is full.
    pub(crate) fn until_full(&mut self, now: u64) -> u64 {
        self.refill(now);
        self.until(self.most())
    }

    fn refill(&mut self, now: u64) {
        let passed = i64::try_from(now.saturating_sub(self.at)).unwrap_or(i64::MAX);
        self.at = self.at.max(now);
        self.level = self.level.saturating_add(passed.saturating_mul(self.per_minute.into())).min(self.most());
    }

    fn until(&self, level: i64) -> u64 {
        let missing = u64::try_from(level.saturating_sub(self.level)).unwrap_or(0);
        missing.div_ceil(u64::from(self.per_minute).max(1))
    }

    fn most(&self) -> i64 {
        i64::from(self.per_minute).saturating_mul(MINUTE)
    }
}

/// A time as OpenAI writes it: `250ms`, `1s`, `6m0s`.
pub(crate) fn in_words(milliseconds: u64) -> String {
    let seconds = milliseconds.div_ceil(1000);
    match seconds / 60 {
        0 if milliseconds < 1000 => format!("{milliseconds}ms"),
        0 => format!("{seconds}s"),
        minutes => format!("{minutes}m{}s", seconds % 60),
    }
}

fn units(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX).saturating_mul(MINUTE)
}

/// Milliseconds.
const MINUTE: i64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back_with_time() {
        let mut bucket = Bucket::full(60);
        for _ in 0..60 {
            assert_eq!(bucket.take(1, 5), Ok(()));
        }
        assert_eq!(bucket.take(1, 5), Err(1000), "one a second");
        assert_eq!(bucket.take(1, 904), Err(101));
        assert_eq!(bucket.take(1, 1005), Ok(()));
        assert_eq!(bucket.take(1, 1005), Err(1000));
        assert_eq!(bucket.until_full(1005), 60_000);
        assert_eq!(bucket.remaining(31_005), 30);
        assert_eq!(bucket.remaining(10_000_000), 60, "a minute's is all that is kept");
        assert_eq!(bucket.take(61, 10_000_000), Err(1000), "which says nothing of it: it is never there");
        assert_eq!(bucket.remaining(10_000_000), 60, "what is refused takes nothing");
    }

    #[test]
    fn a_clock_that_stands_brings_nothing() {
        let mut bucket = Bucket::full(10);
        bucket.take(10, 1000).unwrap();
        for earlier in [1000, 500, 0] {
            assert_eq!(bucket.remaining(earlier), 0);
        }
        assert_eq!(bucket.remaining(7000), 1);
    }

    #[test]
    fn use_is_settled_and_debts_are_paid_off() {
        let mut bucket = Bucket::full(100);
        bucket.take(80, 0).unwrap();
        bucket.settle(80, 30, 0);
        assert_eq!(bucket.remaining(0), 70);
        bucket.settle(0, 270, 0);
        assert_eq!((bucket.remaining(0), bucket.until_full(0)), (0, 180_000));
        assert_eq!(bucket.take(1, 0), Err(120_600));
        assert_eq!(bucket.remaining(120_600), 1);
        bucket.settle(1000, 0, 120_600);
        assert_eq!(bucket.remaining(120_600), 100, "never more than a minute's");
    }

    #[test]
    fn no_number_overflows() {
        let mut bucket = Bucket::full(u32::MAX);
        bucket.settle(0, u64::MAX, u64::MAX);
        assert_eq!(bucket.remaining(u64::MAX), 0);
        assert!(bucket.take(u64::MAX, u64::MAX).is_err());
        bucket.settle(u64::MAX, 0, u64::MAX);
        assert!(bucket.until_full(u64::MAX) < u64::MAX);
    }

    #[test]
    fn times_are_written_as_openai_does() {
        for (milliseconds, text) in [
            (0, "0ms"),
            (250, "250ms"),
            (1000, "1s"),
            (1001, "2s"),
            (59_999, "1m0s"),
            (360_000, "6m0s"),
            (61_000, "1m1s"),
        ] {
            assert_eq!(in_words(milliseconds), text);
        }
    }
}
