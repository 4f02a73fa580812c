// SPDX-License-Identifier: Apache-2.0
//! What a run took.

use std::time::Duration;

/// Some answers.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// All of it.
    pub(crate) took: Duration,
    /// Times to the first token of each answer, as far as they were seen.
    pub(crate) first: Vec<Duration>,
    /// Tokens generated.
    pub(crate) tokens: u32,
}

impl Run {
    /// Tokens generated for each second of the whole run.
    pub(crate) fn rate(&self) -> f64 {
        f64::from(self.tokens) / self.took.as_secs_f64()
    }

    /// Tokens a second after the first one, of a run with one answer.
    pub(crate) fn decode_rate(&self) -> f64 {
        let first = self.first.first().copied().unwrap_or_default();
        f64::from(self.tokens.saturating_sub(1)) / self.took.saturating_sub(first).as_secs_f64()
    }
}

/// The middle value; NaN of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
