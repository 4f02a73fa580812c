// SPDX-License-Identifier: Apache-2.0
//! What the linter says of policies.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use gpu_verify::GpuPolicy;
use policy_lint::{Severity, lint};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;

/// A policy about which there is nothing to say.
fn good() -> Value {
    let mut gpu = serde_json::to_value(GpuPolicy::strict()).unwrap();
    gpu["drivers"] = json!(["550.163.01"]);
    gpu["vbioses"] = json!(["96.00.88.00.11"]);
    json!({
        "schema": "chrysalis/appraisal-policy/v1",
        "platform": {
            "tcb": [{"status": "UpToDate"}, {"status": "OutOfDate", "until": NOW + DAY}],
            "refused_advisories": ["INTEL-SA-00837"],
            "min_tcb_evaluation_data_number": 17,
            "platforms": ["11".repeat(32)],
        },
        "releases": ["22".repeat(32)],
        "revoked_releases": ["33".repeat(32)],
        "models": [{"name": "m", "revision": "1", "identity": "44".repeat(32)}],
        "gpu": gpu,
    })
}

/// Code and pointer of each finding.
fn found(policy: &Value) -> Vec<(&'static str, String)> {
    let report = lint(policy.to_string().as_bytes(), &[], NOW);
    report.findings().iter().map(|finding| (finding.code, finding.pointer.clone())).collect()
}

fn changed(pointer: &str, value: Value) -> Vec<(&'static str, String)> {
    let mut policy = good();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    policy.pointer_mut(parent).unwrap()[name] = value;
    found(&policy)
}

fn without(pointer: &str) -> Vec<(&'static str, String)> {
    let mut policy = good();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    policy.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name).unwrap();
    found(&policy)
}

fn one(code: &'static str, pointer: &str) -> Vec<(&'static str, String)> {
    vec![(code, pointer.to_owned())]
}

#[test]
fn nothing_is_said_of_a_good_policy_and_each_weakness_is_said_by_name() {
    assert_eq!(found(&good()), []);
    assert_eq!(without("/releases"), one("releases_any", "/releases"));
    assert_eq!(without("/models"), one("models_any", "/models"));
    assert_eq!(without("/platform/platforms"), one("instance_any", "/instances"));
    assert_eq!(without("/gpu"), one("gpu_absent", "/gpu"));
    let number = "/platform/min_tcb_evaluation_data_number";
    assert_eq!(without(number), one("tcb_evaluation_unbounded", number));
    assert_eq!(changed(number, json!(0)), one("tcb_evaluation_unbounded", number));
    assert_eq!(changed("/acpi", json!("from-event-log")), one("acpi_from_event_log", "/acpi"));
    assert_eq!(changed("/releases", json!(["33".repeat(32)])), one("release_revoked", "/releases/0"));
}

#[test]
fn platforms() {
    let tcb = |list: Value| changed("/platform/tcb", list);
    let up = json!({"status": "UpToDate"});
    let until = |at: u64| json!([up, {"status": "OutOfDate", "until": at}]);
    let second = "/platform/tcb/1";
    assert_eq!(tcb(until(NOW)), one("tcb_grace_ended", second));
    assert_eq!(tcb(until(NOW + 1)), []);
    assert_eq!(tcb(until(NOW + 90 * DAY)), []);
    assert_eq!(tcb(until(NOW + 90 * DAY + 1)), one("tcb_grace_long", second));
    assert_eq!(tcb(until(u64::MAX)), one("tcb_grace_long", second));
    assert_eq!(tcb(json!([up, {"status": "OutOfDateConfigurationNeeded"}])), one("tcb_without_end", second));
    assert_eq!(tcb(json!([up, {"status": "SWHardeningNeeded"}])), []);
    assert_eq!(tcb(json!([up, up])), one("duplicate_entry", second));
    assert_eq!(tcb(json!([{"status": "SWHardeningNeeded"}])), one("tcb_up_to_date_refused", "/platform/tcb"));
    let advisories = |list: Value| changed("/platform/refused_advisories", list);
    let first = "/platform/refused_advisories/0";
    for bad in ["SA-00837", "INTEL-SA-837", "INTEL-SA-0083x", "CVE-2024-1", "", "INTEL-SA-é0837"] {
        assert_eq!(advisories(json!([bad])), one("advisory_format", first), "{bad:?}");
    }
    assert_eq!(
        advisories(json!(["intel-sa-00837", "INTEL-SA-00837"])),
        one("duplicate_entry", "/platform/refused_advisories/1")
    );
}

#[test]
fn lists_and_gpus() {
    let id = "55".repeat(32);
    for list in ["releases", "revoked_releases", "instances", "service_pins"] {
        let pointer = format!("/{list}");
        assert_eq!(changed(&pointer, json!([id, id])), one("duplicate_entry", &format!("/{list}/1")));
    }
    assert_eq!(changed("/gpu/revocation", json!("optional")), one("gpu_optional", "/gpu/revocation"));
    assert_eq!(changed("/gpu/drivers", json!([])), one("gpu_any_version", "/gpu/drivers"));
    assert_eq!(changed("/gpu/gpus", json!(null)), one("gpu_any_count", "/gpu/gpus"));
    assert_eq!(changed("/gpu/modes", json!(["ppcie"])), one("gpu_contradiction", "/gpu/topology"));
    assert_eq!(changed("/gpu/modes", json!(["spt", "spt"])), one("duplicate_entry", "/gpu/modes/1"));
}

#[test]
fn rules() {
    let rules = |source: &str| {
        changed("/rules", json!({"engine": "cedar-4", "claims": "chrysalis/claims/v1", "source": source}))
    };
    let pointer = "/rules/source";
    assert_eq!(rules("permit(principal, action, resource) when { context.config.gpus == 8 };"), []);
    assert_eq!(rules("permit(principal, action, resource);"), one("rules_never_deny", pointer));
    assert_eq!(rules("@reason(\"x\") forbid(principal, action, resource);"), one("rules_never_allow", pointer));
    assert_eq!(rules("permit(principal, action == Action::\"serving\", resource);"), one("rules_moment", pointer));
    for bad in ["permit", "permit(principal, action, resource) when { context.gpus == 8 };", &"(".repeat(99)] {
        assert_eq!(rules(bad), one("rules_malformed", pointer), "{bad}");
    }
}

#[test]
fn errors_say_where() {
    let errors = |bytes: &[u8]| {
        let report = lint(bytes, &[], NOW);
        assert!(report.findings().iter().all(|finding| finding.severity == Severity::Error));
        assert_eq!(report.errors().len(), report.findings().len());
        report.findings().iter().map(|finding| finding.pointer.clone()).collect::<Vec<_>>()
    };
    let error = |pointer: &str, value: Value| {
        let mut policy = good();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        match policy.pointer_mut(parent).unwrap() {
            Value::Array(list) => list[name.parse::<usize>().unwrap()] = value,
            other => other[name] = value,
        }
        errors(policy.to_string().as_bytes())
    };
    let bad = json!("x");
    for pointer in [
        "/schema",
        "/acpi",
        "/releases/0",
        "/models/0/identity",
        "/platform/tcb/1/until",
        "/platform/tcb/0/status",
        "/gpu/fwid",
        "/platform/min_tcb_evaluation_data_number",
    ] {
        // A model is read whole, so that its error stands there.
        let expected = pointer.strip_suffix("/identity").unwrap_or(pointer);
        let found = error(pointer, bad.clone());
        assert!(found.len() == 1 && found[0].starts_with(expected), "{pointer}: {found:?}");
    }
    assert_eq!(error("/platform/allow_debug", json!(true)), ["/platform/allow_debug"]);
    assert_eq!(error("/releases", json!([])), ["/releases"]);
    assert_eq!(error("/platform/platforms", json!([])), ["/platform/platforms"]);
    assert_eq!(error("/gpu/gpus", json!(0)), ["/gpu"]);
    assert_eq!(error("/rules", json!({"engine": "cedar-4", "claims": "x", "source": "y"})), ["/rules/claims"]);
    assert_eq!(errors(b"{"), [""]);
    assert_eq!(errors(&vec![b' '; appraise::MAX_POLICY_LEN + 1]), [""]);
}
