// SPDX-License-Identifier: Apache-2.0
//! How long to wait before the next attempt.

use crate::advice::Pace;

/// Delays between attempts, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub first_ms: u64,
    /// Never more than this.
    pub cap_ms: u64,
    /// First delay for ends that trying again does not mend.
    pub slow_first_ms: u64,
    /// Most for those.
    pub slow_cap_ms: u64,
    /// A guest that served this long has failed for the last time: counting starts anew.
    pub stable_ms: u64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first_ms: 1_000, cap_ms: 300_000, slow_first_ms: 60_000, slow_cap_ms: 3_600_000, stable_ms: 600_000 }
    }
}

impl Backoff {
    /// The delay after `failures` failures in a row (1 or more): doubled each time, capped, then up to a quarter more
    /// by `jitter`, so that guests that fell together do not rise together.
    #[must_use]
    pub fn delay(&self, failures: u32, pace: Pace, jitter: u64) -> u64 {
        let (first, cap) = match pace {
            Pace::Quick => (self.first_ms, self.cap_ms),
            Pace::Slow => (self.slow_first_ms, self.slow_cap_ms),
        };
        let doublings = failures.saturating_sub(1).min(32);
        let delay = first.saturating_mul(1_u64 << doublings).min(cap);
        delay.saturating_add(jitter.checked_rem(delay / 4 + 1).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_and_are_capped() {
        let backoff = Backoff::default();
        let delays: Vec<u64> = (1..=10).map(|failures| backoff.delay(failures, Pace::Quick, 0)).collect();
        assert_eq!(&delays[..4], [1_000, 2_000, 4_000, 8_000]);
        assert_eq!(delays[9], 300_000);
        assert_eq!(backoff.delay(u32::MAX, Pace::Slow, 0), 3_600_000);
        assert_eq!(backoff.delay(1, Pace::Slow, 0), 60_000);
    }

    #[test]
    fn jitter_adds_a_quarter_at_most() {
        let backoff = Backoff::default();
        for jitter in [0, 1, 77, 12_345, u64::MAX] {
            let delay = backoff.delay(3, Pace::Quick, jitter);
            assert!((4_000..=5_000).contains(&delay), "{delay}");
        }
        assert_ne!(backoff.delay(3, Pace::Quick, 1), backoff.delay(3, Pace::Quick, 2));
    }
}
