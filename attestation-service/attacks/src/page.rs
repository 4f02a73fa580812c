// SPDX-License-Identifier: Apache-2.0
//! The page that lists every case.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::case::{Case, Reason, Run, directories, name};

/// The page's text, from the cases under `root`.
///
/// # Errors
/// A case can't be read.
pub fn render(root: &Path) -> Result<String> {
    let mut cases = Vec::new();
    for dir in directories(root)? {
        cases.push((Case::read(&dir)?, name(&dir)?.to_owned()));
    }
    cases.sort_by(|a, b| (a.0.attack, &a.1).cmp(&(b.0.attack, &b.1)));
    let mut page = HEAD.to_owned();
    let mut line = |text: String| writeln!(page, "{text}").context("the page");
    line(format!("{} cases.\n", cases.len()))?;
    line("| # | directory | what | expected | run | origin |".to_owned())?;
    line("|---|---|---|---|---|---|".to_owned())?;
    for (case, name) in &cases {
        let Case { attack, title, origin, run, expected, wire, .. } = case;
        let elsewhere = if *run == Run::Released { "by `policy set`" } else { "over the wire" };
        let wire = wire.as_ref().map_or_else(String::new, |wire| format!("; {elsewhere}: {}", reasons(wire)));
        line(format!(
            "| {attack} | `{name}` | {title} | {}{wire} | {} | {origin} |",
            reasons(expected),
            run.describe()
        ))?;
    }
    Ok(page)
}

fn reasons(reasons: &[Reason]) -> String {
    if reasons.is_empty() {
        return "accepted".to_owned();
    }
    let all: Vec<_> = reasons.iter().map(|Reason { code, field }| format!("`{code}` ({field})")).collect();
    all.join(", ")
}

const HEAD: &str = "<!-- SPDX-License-Identifier: Apache-2.0 -->
# Attacks as directories

Each directory below `attestation-service/attacks/vectors` is one attack, or something good beside it (number 0) that shows that the refusal is due to the change alone: `case.toml`
(what is tried, where it comes from, every reason of the refusal in order) and its bytes or steps. The tests of the crate `attacks` run each against the programs as processes and over TLS; another code or field
than the case names is a failed test. The numbers are those of [the threat model](threat-model.md). More cases about measurements, releases and logs (21 to 28, 62 to 64) are in
`measurements/vectors`; those about whole evidence are judged by the program here, too.

How a case is run: *files*: the program judges files at the case's time. *Wire*: a running service is asked for a key over TLS, with its machine's clock; recorded bytes are bound to no connection, so what is accepted from files
is refused there for its binding, and for nothing about its quote. *Steps*: a service, a simulated guest and the operator's and owners' commands, in the order of the case. What was recorded on hardware is not committed: cases name the file and its SHA-256, and tests
say `SKIPPED` where it is absent. The programs with simulated roots differ from the released ones in their anchors alone ([ADR 1](adr/)).

This page is made by `cargo run -p attacks -- page`; a test compares it.

";
