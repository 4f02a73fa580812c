// SPDX-License-Identifier: Apache-2.0
//! When to ask a busy service again.

use core::time::Duration;

/// The pauses between tries: each is at least what the service said, and longer than the one before. Pure.
#[derive(Debug, Clone)]
pub struct Retries {
    left: u32,
    pause: Duration,
}

impl Retries {
    /// At most `tries` further tries.
    #[must_use]
    pub const fn new(tries: u32) -> Self {
        Self { left: tries, pause: FIRST }
    }

    /// The pause before another try; `None` where it should be given up. `said` is what the service said; up to half of
    /// the pause is added by chance (`random`), so that guests that were refused together do not come again together.
    pub fn next_pause(&mut self, said: Option<Duration>, random: u16) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let pause = said.unwrap_or_default().clamp(self.pause, LONGEST);
        self.pause = self.pause.saturating_mul(2).min(LONGEST);
        let chance = pause.saturating_mul(u32::from(random)) / (2 * u32::from(u16::MAX));
        Some(pause.saturating_add(chance))
    }
}

const FIRST: Duration = Duration::from_secs(1);
/// However long the service says.
const LONGEST: Duration = Duration::from_secs(16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let mut retries = Retries::new(6);
        let pauses: Vec<_> = std::iter::from_fn(|| retries.next_pause(None, 0)).map(|pause| pause.as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 16]);
    }

    #[test]
    fn the_service_is_heard_within_bounds() {
        let seconds = Duration::from_secs;
        let mut retries = Retries::new(9);
        assert_eq!(retries.next_pause(Some(seconds(5)), 0), Some(seconds(5)));
        assert_eq!(retries.next_pause(Some(seconds(0)), 0), Some(seconds(2)));
        assert_eq!(retries.next_pause(Some(seconds(1 << 40)), 0), Some(seconds(16)));
        assert_eq!(retries.next_pause(Some(Duration::MAX), u16::MAX), Some(seconds(24)));
    }
}
