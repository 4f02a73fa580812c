// SPDX-License-Identifier: Apache-2.0
//! Owners' own rules: they run last, on an accepted appraisal alone, and can only refuse.

use serde::{Deserialize, Serialize};

use crate::{Claims, verdict::Checks};

/// Rules as they stand in a policy. This crate reads none: whoever appraises brings a [`Rules`] made from them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSource {
    /// Which language.
    pub engine: RuleEngine,
    /// Which form of claims they were written for: [`Claims::SCHEMA`].
    pub claims: String,
    /// The text, 1 to [`MAX_RULES`] characters.
    pub source: String,
}

/// Languages of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleEngine {
    /// Cedar, version 4 of the language.
    #[serde(rename = "cedar-4")]
    Cedar4,
}

/// Rules that can be run.
pub trait Rules: core::fmt::Debug + Send + Sync {
    /// Judges the claims of an appraisal that everything else accepted. Bounded in time and memory, the same for the same
    /// claims.
    fn judge(&self, claims: &Claims) -> RuleOutcome;
}

/// What rules came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum RuleOutcome {
    /// They allow it.
    Allowed,
    /// They don't; with the reasons that their author named.
    Denied(Vec<RuleReason>),
    /// They could not be run to an answer.
    Failed(&'static str),
    /// A limit of time or memory was reached.
    Limit(&'static str),
}

/// A reason named by the author of rules: 1 to 64 characters of a-z, 0-9 and `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleReason(String);

impl RuleReason {
    /// Takes a text of that form, and nothing for any other.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let form = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        ((1..=64).contains(&text.len()) && text.bytes().all(form)).then(|| Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Runs the rules of a policy, and notes what they came to. A verifier that brings none refuses a policy that has some.
pub(crate) fn check(source: Option<&RuleSource>, rules: Option<&dyn Rules>, claims: &Claims, checks: &mut Checks) {
    let outcome = match (source, rules) {
        (None, None) => return,
        (Some(_), None) => {
            checks.add(false, NOT_RUN, "a verifier that runs the policy's rules", "one that runs none");
            return;
        }
        (_, Some(rules)) => rules.judge(claims),
    };
    match outcome {
        RuleOutcome::Allowed => {
            checks.add(true, DENIED, ALLOW, "allow");
        }
        RuleOutcome::Denied(reasons) if reasons.is_empty() => {
            checks.add(false, DENIED, ALLOW, "deny");
        }
        RuleOutcome::Denied(reasons) => {
            for reason in reasons {
                let (code, field, fix) = DENIED;
                let field = format!("{field}.{}", reason.as_str());
                checks.add(false, (code, &field, fix), ALLOW, "deny");
            }
        }
        RuleOutcome::Failed(why) => {
            checks.add(false, FAILED, ALLOW, why);
        }
        RuleOutcome::Limit(why) => {
            checks.add(false, LIMIT, ALLOW, why);
        }
    }
}

/// Most characters of rules.
pub const MAX_RULES: usize = 16 * 1024;

type Facts = (&'static str, &'static str, &'static str);
const ALLOW: &str = "allow, by the policy's rules";
const DENIED: Facts = ("rule_denied", "rules", "meet the rule of the policy that names this reason");
const FAILED: Facts = ("rule_failed", "rules", "correct the policy's rules: try them with `appraise --policy`");
const LIMIT: Facts = ("rule_limit", "rules", "make the policy's rules smaller: `policy lint` says where");
const NOT_RUN: Facts =
    ("rules_not_run", "rules", "leave the rules to the attestation service, and give this verifier a policy without");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_carry_no_free_text() {
        assert_eq!(RuleReason::new("gpu_driver_550").map(|reason| reason.0).as_deref(), Some("gpu_driver_550"));
        for bad in ["", "A", "a b", "a-b", "é", "a\n", &"a".repeat(65)] {
            assert_eq!(RuleReason::new(bad), None, "{bad:?}");
        }
    }
}
