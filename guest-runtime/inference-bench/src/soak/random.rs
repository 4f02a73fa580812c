// SPDX-License-Identifier: Apache-2.0
//! What clients do is drawn from a seed, so that a run's requests can be made again. When they come is not: they run beside
//! each other.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014). Not for secrets.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `least..=most`, which must not be empty.
    pub(crate) fn within(&mut self, least: u64, most: u64) -> u64 {
        let span = most.saturating_sub(least).saturating_add(1);
        least.saturating_add(self.next().checked_rem(span).unwrap_or(0))
    }

    /// One of them; the first where there is nothing to choose from is a default.
    pub(crate) fn one_of<T: Copy + Default>(&mut self, things: &[T]) -> T {
        let most = u64::try_from(things.len()).unwrap_or(0).saturating_sub(1);
        let place = usize::try_from(self.within(0, most)).unwrap_or(0);
        things.get(place).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_publication_and_within_bounds() {
        let mut random = Random::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        let drawn: Vec<u64> = (0..1000).map(|_| random.within(3, 5)).collect();
        assert!((3..=5).all(|number| drawn.contains(&number)) && drawn.iter().all(|n| (3..=5).contains(n)));
        assert_eq!(random.within(4, 4), 4);
        assert_eq!(random.one_of::<u8>(&[]), 0);
    }
}
