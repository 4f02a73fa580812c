// SPDX-License-Identifier: Apache-2.0
//! One line of a bench.

use serde::Deserialize;
use serde_json::{Value, json};

/// A value, and how it stands against what it is compared with.
#[derive(Debug, Deserialize)]
pub(super) struct Figure {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) unit: String,
    /// What it is compared with, in words; empty for nothing.
    pub(super) against: String,
    /// Value over what it is compared with, or the reverse where more is better.
    pub(super) ratio: Option<f64>,
    /// The ratio's upper bound.
    pub(super) goal: Option<f64>,
}

impl Figure {
    /// A value that is only shown.
    pub(super) fn plain(name: &str, value: f64, unit: &str) -> Self {
        let (name, unit) = (name.to_owned(), unit.to_owned());
        Self { name, value, unit, against: String::new(), ratio: None, goal: None }
    }

    /// A value that must not exceed `max`.
    pub(super) fn limit(name: &str, value: f64, unit: &str, max: f64) -> Self {
        let against = format!("{max} {unit}");
        Self { against, ratio: Some(value / max), goal: Some(1.0), ..Self::plain(name, value, unit) }
    }

    /// A value that must reach `min`; the ratio is `min` over it.
    pub(super) fn least(name: &str, value: f64, unit: &str, min: f64) -> Self {
        let against = format!("{min} {unit}");
        Self { against, ratio: Some(min / value), goal: Some(1.0), ..Self::plain(name, value, unit) }
    }

    /// A value beside a peer's of the same run.
    pub(super) fn compared(name: &str, value: f64, unit: &str, against: &str, ratio: f64) -> Self {
        Self { against: against.to_owned(), ratio: Some(ratio), ..Self::plain(name, value, unit) }
    }

    /// The same, where the ratio must not exceed `goal`.
    pub(super) fn peer(name: &str, value: f64, unit: &str, against: &str, ratio: f64, goal: f64) -> Self {
        Self { goal: Some(goal), ..Self::compared(name, value, unit, against, ratio) }
    }

    pub(super) fn holds(&self) -> Option<bool> {
        self.ratio.zip(self.goal).map(|(ratio, goal)| ratio <= goal)
    }

    pub(super) fn line(&self) -> String {
        let verdict = match self.holds() {
            Some(true) => "holds",
            Some(false) => "MISSED",
            None => "",
        };
        let ratio = self.ratio.map(|r| format!("{r:.2} × {}", self.against)).unwrap_or_default();
        format!("{:<42} {:>10.1} {:<4} {ratio} {verdict}", self.name, self.value, self.unit)
    }

    pub(super) fn document(&self) -> Value {
        json!({
            "name": self.name, "value": self.value, "unit": self.unit, "against": self.against,
            "ratio": self.ratio, "goal": self.goal, "holds": self.holds(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_goal_is_shown_as_missed() {
        assert_eq!(Figure::limit("a", 2.0, "s", 1.9).holds(), Some(false));
        assert!(Figure::limit("a", 2.0, "s", 1.9).line().ends_with("MISSED"));
        assert_eq!(Figure::limit("a", 2.0, "s", 2.0).holds(), Some(true));
        assert_eq!(Figure::plain("a", 2.0, "s").document()["holds"], Value::Null);
        assert_eq!(Figure::least("a", 1.9, "GB/s", 2.0).holds(), Some(false));
        assert_eq!(Figure::peer("a", 1.0, "ms", "b", 0.31, 0.3).holds(), Some(false));
        assert_eq!(Figure::compared("a", 1.0, "ms", "b", 0.31).holds(), None);
    }
}
