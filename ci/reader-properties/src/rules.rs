// SPDX-License-Identifier: Apache-2.0
//! Owners' rules in Cedar, compiled and run on the example of claims.

use std::sync::OnceLock;

use appraise::{Claims, MAX_RULES, RuleEngine, RuleOutcome, RuleSource, Rules as _};
use owner_rules::{CedarRules, Remark};

/// Rules that compile are bounded, judge the same way twice, and can be narrowed by one more statement.
pub fn rules(bytes: &[u8]) -> bool {
    let Ok(text) = core::str::from_utf8(bytes) else { return false };
    let Ok(rules) = compile(text) else { return false };
    assert!(text.chars().count() <= MAX_RULES, "a text that is too long was compiled");
    let outcome = rules.judge(claims());
    assert_eq!(rules.judge(claims()), outcome, "another outcome for the same claims");
    let remarks = rules.remarks();
    if remarks.contains(&Remark::NeverAllow) {
        assert_ne!(outcome, RuleOutcome::Allowed, "nothing permits");
    }
    if remarks.contains(&Remark::NeverDeny) {
        assert_eq!(narrowed(&outcome), None, "nothing forbids: {outcome:?}");
    }
    // A line's end, since a comment may be open. Where the text reaches a cap, one more statement does not fit.
    if let Ok(more) = compile(&format!("{text}\nforbid(principal, action, resource);")) {
        assert_ne!(more.judge(claims()), RuleOutcome::Allowed, "a statement that forbids everything was overruled");
    }
    true
}

/// Why it was refused by what statements say.
fn narrowed(outcome: &RuleOutcome) -> Option<usize> {
    match outcome {
        RuleOutcome::Denied(reasons) => Some(reasons.len()),
        _ => None,
    }
}

fn compile(text: &str) -> Result<CedarRules, owner_rules::RuleError> {
    let source = text.to_owned();
    CedarRules::compile(&RuleSource { engine: RuleEngine::Cedar4, claims: Claims::SCHEMA.to_owned(), source })
}

fn claims() -> &'static Claims {
    static CLAIMS: OnceLock<Claims> = OnceLock::new();
    let example = include_str!("../../../docs/schemas/claims-v1.example.json");
    CLAIMS.get_or_init(|| serde_json::from_str(example).expect("the example of claims"))
}
