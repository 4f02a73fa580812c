// SPDX-License-Identifier: Apache-2.0
//! A refusal that a person or a script can act upon.

use serde::{Deserialize, Serialize};

/// One reason why something was refused. `code` is stable and machine-readable; no text here ever carries
/// a part of a user's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// Stable code, `snake_case`.
    pub code: String,
    /// The field or register that broke the rule.
    pub field: String,
    /// The rule, and what was expected and found.
    pub detail: String,
    /// What would make it pass.
    pub fix: String,
}

impl Refusal {
    /// Makes a refusal.
    #[must_use]
    pub fn new(code: &str, field: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { code: code.to_owned(), field: field.to_owned(), detail: detail.into(), fix: fix.into() }
    }
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} ({}): {}; {}", self.code, self.field, self.detail, self.fix)
    }
}

/// All independent reasons of one refusal, in the documented order of the checks. Never empty when sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusals {
    /// The reasons.
    pub reasons: Vec<Refusal>,
}
