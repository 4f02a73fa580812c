// SPDX-License-Identifier: Apache-2.0
//! The owner's own rules.

use appraise::RuleSource;
use owner_rules::{CedarRules, Remark, RuleError};

use crate::finding::Findings;

pub(crate) fn lint(rules: Option<&RuleSource>, findings: &mut Findings) {
    let Some(rules) = rules else { return };
    let compiled = match CedarRules::compile(rules) {
        Ok(compiled) => compiled,
        Err(error) => {
            let fix = match error {
                RuleError::Limit { .. } => "make the rules smaller",
                RuleError::Schema(_) => {
                    "use the claims of docs/schemas/claims-v1.cedarschema, with `has` where one may be absent"
                }
                _ => "correct the rules",
            };
            findings.error("rules_malformed", SOURCE, error.to_string(), fix);
            return;
        }
    };
    for remark in compiled.remarks() {
        let (code, detail, fix) = match remark {
            Remark::NeverAllow => {
                ("rules_never_allow", "no statement permits anything: every guest is refused", "add a permit")
            }
            Remark::NeverDeny => {
                ("rules_never_deny", "no guest is ever refused by them", "add a condition, or leave them out")
            }
            Remark::WithoutReason => (
                "rules_without_reason",
                "a refusal by such a statement says nothing of why",
                "add @reason(\"...\") to each forbid",
            ),
        };
        findings.warn(code, SOURCE, detail, fix);
    }
    if rules.source.contains("Action::\"serving\"") {
        let detail = "a service asks at the moment key-release alone, and clients run no rules";
        findings.warn("rules_moment", SOURCE, detail, "write rules for Action::\"key-release\", or for any action");
    }
}

const SOURCE: &str = "/rules/source";
