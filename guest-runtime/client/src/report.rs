// SPDX-License-Identifier: Apache-2.0
//! Tells a person or a script what was found.

use std::process::ExitCode;

use appraise::Verdict;
use serde_json::{Value, json};
use tdx_verify::Hardware;
use types::Refusal;

use crate::{
    cli::{FAILED, REFUSED},
    error::ClientError,
};

/// Lines about an accepted guest.
pub(crate) fn verdict(verdict: &Verdict, explain: bool) -> Vec<String> {
    let none = || "none".to_owned();
    let mut lines = vec![
        format!("accepted: {}", hardware(verdict.hardware())),
        format!("  release   {}", verdict.release().map_or_else(none, ToString::to_string)),
        format!("  model     {}", verdict.model().map_or_else(none, ToString::to_string)),
        format!("  instance  {} (receipt key {})", instance(verdict), verdict.instance_key()),
    ];
    if explain {
        for register in verdict.registers() {
            let mark = if register.matches { "ok" } else { "DIFFERS" };
            let expected: Vec<String> = register.expected.iter().map(ToString::to_string).collect();
            lines.push(format!("  {} {mark}", register.name));
            lines.push(format!("    expected {}", expected.join(" or ")));
            lines.push(format!("    quoted   {}", register.quoted));
        }
        let mark = |passed: bool| if passed { "ok" } else { "FAILED" };
        let checks = verdict.checks().iter();
        lines.extend(checks.map(|check| format!("  {} {} ({})", mark(check.passed), check.field, check.code)));
    }
    lines
}

fn instance(verdict: &Verdict) -> &'static str {
    match verdict.instance() {
        "pinned" => "pinned by policy",
        _ => "any: the policy pins neither platforms nor instances",
    }
}

fn hardware(hardware: Hardware) -> &'static str {
    match hardware {
        Hardware::Tdx => "a guest on Intel TDX proved itself on this connection",
        Hardware::Simulated => "hardware simulated: this guest is protected by nothing",
    }
}

/// Prints one document on standard output.
pub(crate) fn print(document: &Value) {
    println!("{document}");
}

/// Prints reasons, and gives the exit code.
pub(crate) fn failure(error: &ClientError, json: bool) -> ExitCode {
    let code = if error.is_refusal() { REFUSED } else { FAILED };
    reasons(&error.reasons(), json);
    ExitCode::from(code)
}

/// Prints reasons: lines on standard error, the document on standard output.
pub(crate) fn reasons(reasons: &[Refusal], json: bool) {
    for reason in reasons {
        eprintln!("attested-proxy: {reason}");
    }
    if json {
        print(&json!({"accepted": false, "reasons": reasons}));
    }
}

/// Prints a failure that is no refusal.
pub(crate) fn error(error: &dyn std::error::Error, json: bool) -> ExitCode {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    eprintln!("attested-proxy: {text}");
    if json {
        print(&json!({"accepted": false, "error": text}));
    }
    ExitCode::from(FAILED)
}
