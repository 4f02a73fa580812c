// SPDX-License-Identifier: Apache-2.0
//! Passes over a whole vocabulary: they are done for each token of each answer, one after the other, while nothing else
//! is computed. So they are written in lanes, which the compiler turns into the processor's vector instructions, without
//! branches within them. The order of all sums is fixed: the same numbers give the same results on every processor,
//! the library's logarithm excepted.

use zeroize::Zeroize;

/// The greatest, where all are numbers or minus infinity and one is finite; `None` otherwise.
pub(crate) fn greatest(logits: &[f32]) -> Option<f32> {
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let (mut most, mut is_bad) = ([f32::NEG_INFINITY; LANES], [false; LANES]);
    for chunk in chunks {
        for ((most, is_bad), logit) in most.iter_mut().zip(&mut is_bad).zip(chunk) {
            *is_bad |= logit.is_nan() | (*logit == f32::INFINITY);
            *most = if *logit > *most { *logit } else { *most };
        }
    }
    let is_bad = is_bad.contains(&true) || rest.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY);
    let most = most.iter().chain(rest).fold(f32::NEG_INFINITY, |most, logit| if *logit > most { *logit } else { most });
    (!is_bad && most.is_finite()).then_some(most)
}

/// The first that has a value.
pub(crate) fn first_with(values: &[f32], value: f32) -> Option<usize> {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let within = |some: &[f32]| some.iter().position(|one| *one == value);
    let found = chunks.iter().position(|chunk| chunk.iter().fold(false, |found, one| found | (*one == value)));
    match found {
        Some(chunk) => within(chunks.get(chunk)?)?.checked_add(chunk.checked_mul(LANES)?),
        None => within(rest)?.checked_add(chunks.len().checked_mul(LANES)?),
    }
}

/// What is drawn from: a weight for each token, 0 for what cannot come, and their sums.
#[derive(Debug, Clone, Default, Zeroize)]
pub(crate) struct Weights {
    of: Vec<f32>,
    /// Of each [`BLOCK`] of them.
    sums: Vec<f64>,
}

impl Weights {
    /// e to the power of (value - `most`) / `temperature`. No value is greater than `most`.
    pub(crate) fn set(&mut self, values: &[f32], most: f32, temperature: f32) {
        self.of.clear();
        self.of.resize(values.len(), 0.0);
        let (into, into_rest) = self.of.as_chunks_mut::<LANES>();
        let (from, from_rest) = values.as_chunks::<LANES>();
        for (into, from) in into.iter_mut().zip(from) {
            for (weight, value) in into.iter_mut().zip(from) {
                *weight = exp((value - most) / temperature);
            }
        }
        for (weight, value) in into_rest.iter_mut().zip(from_rest) {
            *weight = exp((value - most) / temperature);
        }
        self.sum();
    }

    /// These and no others, in this order.
    pub(crate) fn set_to(&mut self, weights: impl Iterator<Item = f32>) {
        self.of.clear();
        self.of.extend(weights);
        self.sum();
    }

    /// Leaves those that are allowed.
    pub(crate) fn retain(&mut self, is_allowed: impl Fn(usize) -> bool) {
        for (index, weight) in self.of.iter_mut().enumerate() {
            if !is_allowed(index) {
                *weight = 0.0;
            }
        }
        self.sum();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.of.is_empty() && self.sums.is_empty()
    }

    pub(crate) fn total(&self) -> f64 {
        self.sums.iter().sum()
    }

    /// Each place that has a weight, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (usize, f32)> {
        self.of.iter().copied().enumerate().filter(|(_, weight)| *weight > 0.0)
    }

    /// Takes one out, each with the probability of its weight; `random` is from 0 to 1, without 1. `None` where nothing is
    /// left.
    pub(crate) fn draw(&mut self, random: f64) -> Option<usize> {
        let total = self.total();
        let mut left = random * total;
        // What rounding leaves over at the end belongs to the last block that has something.
        let last = self.sums.iter().rposition(|sum| *sum > 0.0)?;
        let at = self.sums.iter().take(last).position(|sum| {
            let is_here = left < *sum;
            if !is_here {
                left -= sum;
            }
            is_here
        });
        let at = at.unwrap_or(last);
        let (block, sum) = (self.of.chunks_mut(BLOCK).nth(at)?, self.sums.get_mut(at)?);
        let found = block.iter().position(|weight| {
            left -= f64::from(*weight);
            left < 0.0 && *weight > 0.0
        });
        let place = found.or_else(|| block.iter().rposition(|weight| *weight > 0.0))?;
        *block.get_mut(place)? = 0.0;
        *sum = block_sum(block);
        at.checked_mul(BLOCK)?.checked_add(place)
    }

    fn sum(&mut self) {
        self.sums.clear();
        self.sums.extend(self.of.chunks(BLOCK).map(block_sum));
    }
}

/// The logarithm of the sum of e to the power of each value. `most` is the greatest of them.
pub(crate) fn log_sum_exp(values: &[f32], most: f32) -> f32 {
    let sum: f64 = values
        .chunks(BLOCK)
        .map(|block| {
            let (chunks, rest) = block.as_chunks::<LANES>();
            let mut sums = [0.0_f32; LANES];
            for chunk in chunks {
                for (sum, value) in sums.iter_mut().zip(chunk) {
                    *sum += exp(value - most);
                }
            }
            f64::from(sums.iter().sum::<f32>() + rest.iter().map(|value| exp(value - most)).sum::<f32>())
        })
        .sum();
    #[expect(clippy::cast_possible_truncation, reason = "the values are no more precise")]
    let log = sum.ln() as f32;
    log + most
}

fn block_sum(block: &[f32]) -> f64 {
    let (chunks, rest) = block.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for chunk in chunks {
        for (sum, weight) in sums.iter_mut().zip(chunk) {
            *sum += weight;
        }
    }
    f64::from(sums.iter().sum::<f32>() + rest.iter().sum::<f32>())
}

/// e to the power of `x`, which is at most 0, to three units in the last place; 0 from [`LEAST`] down. The library's own
/// has branches, which keep a loop over it from being turned into vector instructions. Range reduction and polynomial are
/// those of Cephes (Moshier), `expf`.
fn exp(x: f32) -> f32 {
    let inside = if x > LEAST { x } else { LEAST };
    // Adding rounds to a whole number, which stands in the lowest bits.
    let shifted = inside * std::f32::consts::LOG2_E + WHOLE;
    let whole = shifted - WHOLE;
    let r = inside - whole * LN_2_HIGH - whole * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.0e-1] {
        p = p * r + coefficient;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    let value = (p * r * r + r + 1.0) * power;
    if x > LEAST { value } else { 0.0 }
}

/// Values that are worked on at once.
const LANES: usize = 16;
/// Weights with a sum of their own.
const BLOCK: usize = 512;
/// 1.5 · 2²³: the distance of its neighbours is 1.
const WHOLE: f32 = 12_582_912.0;
/// A weight of less than 1.7e-38 is none.
const LEAST: f32 = -87.0;
/// The natural logarithm of 2 in two parts: a whole number times the first one is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_right_to_the_last_places() {
        let mut worst = 0.0_f64;
        for step in 0..870_000_u32 {
            #[expect(clippy::cast_possible_truncation, reason = "any number will do")]
            let x = (-f64::from(step) / 10_000.0) as f32;
            let right = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - right) / right).abs());
        }
        assert!(worst < 3.0 * f64::from(f32::EPSILON), "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        for none in [-87.1, -1e30, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp(none), 0.0);
        }
    }

    #[test]
    fn the_greatest_is_found_in_lanes_and_behind_them() {
        for length in [1, 2, 15, 16, 17, 33, 700] {
            for place in [0, length / 2, length - 1] {
                let mut logits = vec![-3.0; length];
                logits[place] = -2.0;
                assert_eq!(greatest(&logits), Some(-2.0));
                assert_eq!(first_with(&logits, -2.0), Some(place));
                assert_eq!(first_with(&logits, 0.0), None);
                for bad in [f32::NAN, f32::INFINITY] {
                    logits[place] = bad;
                    assert_eq!(greatest(&logits), None, "{length} {place} {bad}");
                }
            }
            assert_eq!(greatest(&vec![f32::NEG_INFINITY; length]), None);
        }
        assert_eq!(greatest(&[]), None);
        assert_eq!(first_with(&[1.0, 2.0, 2.0], 2.0), Some(1));
    }

    fn weights(of: &[f32]) -> Weights {
        let mut weights = Weights::default();
        weights.set_to(of.iter().copied());
        weights
    }

    #[test]
    fn each_is_drawn_where_its_weight_lies() {
        // In several blocks, some of them empty.
        let mut of = vec![0.0; 3 * BLOCK + 5];
        for (place, weight) in [(3, 1.0), (BLOCK, 2.0), (3 * BLOCK + 4, 1.0)] {
            of[place] = weight;
        }
        for (random, place) in [(0.0, 3), (0.24, 3), (0.25, BLOCK), (0.74, BLOCK), (0.75, 3 * BLOCK + 4)] {
            assert_eq!(weights(&of).draw(random), Some(place), "{random}");
        }
        let mut all = weights(&of);
        assert_eq!(all.total(), 4.0);
        assert_eq!(
            [0.3, 0.0, 0.0, 0.5].map(|random| all.draw(random)),
            [Some(BLOCK), Some(3), Some(3 * BLOCK + 4), None]
        );
        assert_eq!(weights(&[]).draw(0.5), None);
        assert_eq!(weights(&[0.0]).draw(0.5), None);
    }

    #[test]
    fn rounding_draws_nothing_that_has_no_weight() {
        let mut of = vec![1.0e-7; BLOCK];
        of[0] = 1.0;
        of.extend([0.0; 2 * BLOCK]);
        let place = weights(&of).draw(1.0 - f64::EPSILON / 2.0).unwrap();
        assert!(place < BLOCK);
    }

    #[test]
    fn what_is_not_allowed_has_no_weight() {
        let mut some = Weights::default();
        some.set(&[1.0, 2.0, 3.0, f32::NEG_INFINITY], 3.0, 0.5);
        assert_eq!(some.all().map(|(place, _)| place).collect::<Vec<_>>(), [0, 1, 2]);
        some.retain(|place| place != 2);
        assert_eq!((some.draw(0.999), some.draw(0.999), some.draw(0.0)), (Some(1), Some(0), None));
    }

    #[test]
    fn sums_of_powers_are_those_of_the_library() {
        let values: Vec<f32> = (0..1300_u16).map(|number| f32::from(number % 97) / 9.0 - 20.0).collect();
        let most = greatest(&values).unwrap();
        let right = values.iter().map(|value| f64::from(*value).exp()).sum::<f64>().ln();
        assert!((f64::from(log_sum_exp(&values, most)) - right).abs() < 1e-5);
    }
}
