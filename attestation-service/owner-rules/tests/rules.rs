// SPDX-License-Identifier: Apache-2.0
//! Rules on claims: what they decide, and what is never run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use appraise::{Claims, RuleEngine, RuleOutcome, RuleReason, RuleSource, Rules as _};
use cedar_policy::{Context, EntityUid, Request, Schema};
use owner_rules::{CedarRules, MAX_DEPTH, MAX_STATEMENTS, MAX_TOKENS, Remark, RuleError};
use proptest::prelude::*;

const PERMIT: &str = "permit(principal, action, resource);";

fn claims() -> Claims {
    serde_json::from_str(include_str!("../../../docs/schemas/claims-v1.example.json")).unwrap()
}

fn compile(source: &str) -> Result<CedarRules, RuleError> {
    CedarRules::compile(&RuleSource {
        engine: RuleEngine::Cedar4,
        claims: Claims::SCHEMA.to_owned(),
        source: source.to_owned(),
    })
}

fn judge(source: &str, claims: &Claims) -> RuleOutcome {
    compile(source).unwrap().judge(claims)
}

fn denied(reasons: &[&str]) -> RuleOutcome {
    RuleOutcome::Denied(reasons.iter().map(|reason| RuleReason::new(reason).unwrap()).collect())
}

#[test]
fn rules_narrow() {
    let claims = claims();
    assert_eq!(judge(PERMIT, &claims), RuleOutcome::Allowed);
    assert_eq!(judge("permit(principal, action == Action::\"serving\", resource);", &claims), denied(&[]));
    let model = claims.model.clone().unwrap();
    assert_eq!(
        judge(&format!("permit(principal, action, resource == Model::\"{model}\");"), &claims),
        RuleOutcome::Allowed
    );
    for (condition, allowed) in [
        ("context.platform.tcb_evaluation_data_number >= 19", true),
        ("context.platform.tcb_evaluation_data_number >= 20", false),
        ("context has gpu && context.gpu.count == 8 && [\"570.158.01\"].containsAll(context.gpu.drivers)", true),
        ("context has gpu && [\"550.163.01\"].containsAll(context.gpu.drivers)", false),
        ("context.platform.advisories.isEmpty()", true),
        (
            "context.machine.qemu_major > 10 || context.machine.qemu_major == 10 && context.machine.qemu_minor >= 1",
            true,
        ),
        ("context.now - context.time.attested <= 60", true),
        ("context.release.source_commit like \"0c0c*\"", true),
        ("context.hardware == \"tdx\" && context.bound", true),
    ] {
        let expected = if allowed { RuleOutcome::Allowed } else { denied(&[]) };
        assert_eq!(
            judge(&format!("permit(principal, action, resource) when {{ {condition} }};"), &claims),
            expected,
            "{condition}"
        );
    }
}

/// Forbidding wins, and names why; a reason that nobody named stays away.
#[test]
fn refusals_carry_the_reasons_of_their_author() {
    let claims = claims();
    let source = format!(
        "{PERMIT}
         @reason(\"too_many_gpus\") forbid(principal, action, resource) when {{ context has gpu && context.gpu.count > 4 }};
         @reason(\"site\") @id(\"b\") forbid(principal, action, resource) unless {{ context.config.role == \"inference\" }};
         @reason(\"old_qemu\") forbid(principal, action, resource) unless {{ context.machine.qemu_major >= 11 }};
         @reason(\"old_qemu\") forbid(principal, action, resource) when {{ context.machine.qemu_major == 10 }};"
    );
    assert_eq!(judge(&source, &claims), denied(&["old_qemu", "too_many_gpus"]));
    assert_eq!(judge("forbid(principal, action, resource);", &claims), denied(&[]));
    let without = Claims { gpu: None, ..claims };
    assert_eq!(judge(&source, &without), denied(&["old_qemu"]));
}

/// Cedar leaves out a statement that has no value. A forbidding one would then forbid nothing: so it refuses here.
#[test]
fn a_statement_without_a_value_refuses() {
    let source =
        format!("{PERMIT} forbid(principal, action, resource) when {{ context.now + 9223372036854775807 > 0 }};");
    assert!(matches!(judge(&source, &claims()), RuleOutcome::Failed(_)));
    // What an accepted appraisal always has is missing.
    let claims = Claims { model: None, ..claims() };
    assert!(matches!(judge(PERMIT, &claims), RuleOutcome::Failed(_)));
}

#[test]
fn what_does_not_fit_the_claims_is_refused_before_it_runs() {
    let when = |condition: &str| compile(&format!("permit(principal, action, resource) when {{ {condition} }};"));
    for bad in [
        "context.platfrom.id == \"x\"",
        "context.gpu.count == 8",
        "context.platform.tcb_evaluation_data_number == \"19\"",
        "context.now",
        "context.platform.advisories == 1",
        "principal.name == \"x\"",
        "resource in Site::\"x\"",
        "ip(context.hardware).isLoopback()",
        "ip(\"localhost\").isLoopback()",
        "now() > 1",
    ] {
        assert!(matches!(when(bad), Err(RuleError::Schema(_) | RuleError::Parse(_))), "{bad}: {:?}", when(bad).err());
    }
    assert_eq!(compile("").unwrap_err(), RuleError::None);
    assert_eq!(compile("// nothing").unwrap_err(), RuleError::None);
    assert_eq!(compile("permit(principal == ?principal, action, resource);").unwrap_err(), RuleError::Template);
    assert!(matches!(compile("allow := true"), Err(RuleError::Parse(_))));
    assert!(matches!(compile(&format!("@advice(\"x\") {PERMIT}")), Err(RuleError::Annotation(_))));
    for bad in ["", "A", "free text", "\\n", &"a".repeat(65)] {
        assert_eq!(compile(&format!("@reason(\"{bad}\") {PERMIT}")).unwrap_err(), RuleError::Reason, "{bad:?}");
    }
}

/// Texts that would exhaust the stack of a parser are refused by a count; those at the limit are run on a test's small stack.
#[test]
fn nesting_and_chains_are_capped_before_they_cost_anything() {
    let when = |condition: String| format!("permit(principal, action, resource) when {{ {condition} }};");
    let limit = |source: &str| matches!(compile(source), Err(RuleError::Limit { .. }));
    for (open, close) in [("(", ")"), ("[", "]"), ("{a:", "}"), ("!(", ")"), ("if (", ") then true else true")] {
        for depth in [MAX_DEPTH, 100, 4000] {
            let deep = when(format!("{}true{}", open.repeat(depth), close.repeat(depth)));
            assert!(limit(&deep), "{depth} of {open}");
            for hidden in ["//\r", "//\n", "// a comment\r\n", "\"//\";"] {
                assert!(limit(&format!("{hidden}{deep}")), "{depth} of {open} after {hidden:?}");
            }
        }
    }
    let inside = MAX_DEPTH - 1;
    assert!(compile(&when(format!("{}true{}", "(".repeat(inside), ")".repeat(inside)))).is_ok());
    for link in ["true && ", "1 + ", "if true then true else ", "context.", "!"] {
        assert!(limit(&when(format!("{}true", link.repeat(MAX_TOKENS)))), "{link}");
    }
    let conditions = |most: usize| vec!["context.bound"; most].join(" && ");
    // Three tokens and the sign between; the rest of the statement has twelve.
    assert!(compile(&when(conditions((MAX_TOKENS - 14) / 5))).is_ok());
    assert!(compile(&when(format!("1 {} == 1", "+ 1 ".repeat((MAX_TOKENS - 20) / 2)))).is_ok());
    assert!(compile(&PERMIT.repeat(MAX_STATEMENTS)).is_ok());
    assert!(limit(&PERMIT.repeat(MAX_STATEMENTS + 1)));
    assert!(limit(&format!("{PERMIT}//{}", "x".repeat(appraise::MAX_RULES))));
    // What is inside of strings and comments is no nesting.
    let text = format!(
        "// {}\n{PERMIT} forbid(principal, action, resource) when {{ context.moment == \"{}\\\"(\" }};",
        "(".repeat(99),
        "[".repeat(99)
    );
    assert!(compile(&text).is_ok());
}

/// The document that rules see is the one that the schema tells of.
#[test]
fn the_schema_fits_the_claims() {
    let (schema, _) =
        Schema::from_cedarschema_str(include_str!("../../../docs/schemas/claims-v1.cedarschema")).unwrap();
    let uid = |text: &str| -> EntityUid { text.parse().unwrap() };
    let (guest, action, model) = (uid("Guest::\"g\""), uid("Action::\"key-release\""), uid("Model::\"m\""));
    let conforms = |json: serde_json::Value| {
        let Ok(context) = Context::from_json_value(json, None) else { return false };
        Request::new(guest.clone(), action.clone(), model.clone(), context, Some(&schema)).is_ok()
    };
    for claims in [claims(), Claims { gpu: None, evidence: None, ..claims() }] {
        let json = serde_json::to_value(&claims).unwrap();
        assert!(conforms(json.clone()));
        let mut other = json.clone();
        other["hardware"] = 1.into();
        assert!(!conforms(other));
        // No field is unknown to the schema, and none that it demands is missing.
        for field in json.as_object().unwrap().keys() {
            let mut fewer = json.clone();
            fewer.as_object_mut().unwrap().remove(field);
            let optional = matches!(field.as_str(), "gpu" | "evidence");
            assert_eq!(conforms(fewer), optional, "{field}");
        }
    }
}

#[test]
fn remarks() {
    let remarks = |source: &str| compile(source).unwrap().remarks();
    assert_eq!(remarks(PERMIT), [Remark::NeverDeny]);
    assert_eq!(remarks("permit(principal, action, resource) when { context.bound };"), []);
    assert_eq!(remarks("@reason(\"a\") forbid(principal, action, resource);"), [Remark::NeverAllow]);
    assert_eq!(remarks(&format!("{PERMIT} forbid(principal, action, resource);")), [Remark::WithoutReason]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the text: an answer, and no end of the program.
    #[test]
    fn any_text_has_an_answer(parts in proptest::collection::vec(proptest::sample::select(vec![
        "permit", "forbid", "(", ")", "[", "]", "{", "}", "principal", "action", "resource", ",", ";", " when ", " unless ", "context",
        ".", "gpu", "count", " has ", " like ", "\"*a*\"", "==", "&&", "||", "!", "-", "1", "9223372036854775807", "true", " if ", " then ",
        " else ", "@reason", "(\"x\")", "\"", "\\", "//", "\n", "\r", "é", "?principal", " in ", "::", "Model",
    ]), 0..60)) {
        let source = parts.concat();
        if let Ok(rules) = compile(&source) {
            let _ = rules.judge(&claims());
        }
    }
}
