// SPDX-License-Identifier: Apache-2.0
//! One line of the result.

use serde_json::{Value, json};

/// A value, and how it stands against what it is compared with.
pub(crate) struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    against: String,
    /// A goal is an upper bound of it.
    ratio: Option<f64>,
    goal: Option<f64>,
}

impl Figure {
    /// A value that is only shown.
    pub(crate) fn plain(name: &'static str, value: f64, unit: &'static str) -> Self {
        Self { name, value, unit, against: String::new(), ratio: None, goal: None }
    }

    /// A value beside a peer's of the same run, without a goal.
    pub(crate) fn compared(name: &'static str, value: f64, unit: &'static str, against: &str, peer: f64) -> Self {
        Self { against: against.to_owned(), ratio: Some(value / peer), ..Self::plain(name, value, unit) }
    }

    /// A value that may be `goal` times a peer's of the same run.
    pub(crate) fn peer(
        name: &'static str,
        value: f64,
        unit: &'static str,
        against: &str,
        peer: f64,
        goal: f64,
    ) -> Self {
        Self {
            against: against.to_owned(),
            ratio: Some(value / peer),
            goal: Some(goal),
            ..Self::plain(name, value, unit)
        }
    }

    /// A value that must not exceed `most`.
    pub(crate) fn at_most(name: &'static str, value: f64, unit: &'static str, most: f64) -> Self {
        let against = format!("goal of {most} {unit}");
        Self { against, ratio: Some(value / most), goal: Some(1.0), ..Self::plain(name, value, unit) }
    }

    /// A value that must reach `least`; the ratio is `least` over it.
    pub(crate) fn at_least(name: &'static str, value: f64, unit: &'static str, least: f64) -> Self {
        let against = format!("goal of {least} {unit}");
        Self { against, ratio: Some(least / value), goal: Some(1.0), ..Self::plain(name, value, unit) }
    }

    pub(crate) fn document(&self) -> Value {
        let holds = self.ratio.zip(self.goal).map(|(ratio, goal)| ratio <= goal);
        json!({
            "name": self.name, "value": self.value, "unit": self.unit, "against": self.against,
            "ratio": self.ratio, "goal": self.goal, "holds": holds,
        })
    }
}

/// The value below which `share` of the values are.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a length is an index"
    )]
    let place = (values.len() as f64 * share) as usize;
    values.get(place.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_upper_bounds_of_ratios() {
        let holds = |figure: Figure| figure.document()["holds"].clone();
        assert_eq!(holds(Figure::at_most("x", 50.0, "ms", 50.0)), true);
        assert_eq!(holds(Figure::at_most("x", 51.0, "ms", 50.0)), false);
        assert_eq!(holds(Figure::at_least("x", 1000.0, "/s", 1000.0)), true);
        assert_eq!(holds(Figure::at_least("x", 999.0, "/s", 1000.0)), false);
        assert_eq!(holds(Figure::peer("x", 2.0, "ms", "y", 1.0, 1.9)), false);
        assert_eq!(holds(Figure::plain("x", 2.0, "ms")), Value::Null);
    }

    #[test]
    fn quantiles_are_values_of_the_list() {
        let mut values: Vec<f64> = (0..100).rev().map(f64::from).collect();
        assert_eq!(quantile(&mut values, 0.5), 50.0);
        assert_eq!(quantile(&mut values, 0.99), 99.0);
        assert_eq!(quantile(&mut values, 1.0), 99.0);
    }
}
