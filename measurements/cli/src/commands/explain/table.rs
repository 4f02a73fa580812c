// SPDX-License-Identifier: Apache-2.0
//! An explanation for a terminal.

use calculator::Dependency;
use explain::{
    EventExplanation, EventVerdict, Explanation, Finding, LogStanding, RegisterExplanation, RegisterLog, ShapeSource,
    Standing, Verdict,
};
use release::Hardware;
use types::{MachineShape, RegisterName, Sha384Digest};

use super::inputs::LoadedRelease;

/// Lines for people: what was compared, one line for each register, causes and fixes under those that differ.
pub(crate) fn render(explanation: &Explanation, release: &LoadedRelease, all_events: bool) -> String {
    let mut out = Lines(String::new());
    head(&mut out, explanation, release);
    for register in &explanation.registers {
        one(&mut out, explanation, register, all_events);
    }
    let general: Vec<&Finding> = explanation.findings.iter().filter(|f| f.register.is_none()).collect();
    general.into_iter().for_each(|finding| cause(&mut out, finding));
    out.line("");
    if explanation.matches {
        out.line("Every register that was compared matches, those of the image among them.");
    } else {
        let count = explanation.findings.len();
        out.line(&format!("Does not match: {count} cause{}.", if count == 1 { "" } else { "s" }));
    }
    nearest(&mut out, explanation);
    for limit in &explanation.limits {
        out.line(&format!("Note: {limit}."));
    }
    out.0
}

struct Lines(String);

impl Lines {
    fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }
}

fn head(out: &mut Lines, explanation: &Explanation, release: &LoadedRelease) {
    let standing = |standing| if standing == Standing::Verified { "verified" } else { "NOT verified" };
    out.line(&format!("quote    {}", standing(explanation.quote)));
    let simulated = if release.values.hardware == Hardware::Simulated { ", hardware simulated" } else { "" };
    let short = release.name.get(..16).unwrap_or(&release.name);
    let profile = &release.values.profile;
    out.line(&format!("release  {} ({profile} {short}...{simulated})", standing(explanation.reference)));
    let machine = explanation.shape.as_ref().map_or_else(|| "unknown".to_owned(), describe);
    let from = match explanation.shape_from {
        ShapeSource::Claimed => "as named by the configuration or --shape",
        ShapeSource::Nearest => "not named; the release's machine that fits best",
        ShapeSource::Unknown => "not named",
    };
    out.line(&format!("machine  {machine} ({from})"));
    let log = match explanation.log {
        LogStanding::None => "none given",
        LogStanding::Agrees => "leads to the quoted registers",
        LogStanding::Partly => "leads to some of the quoted registers only",
        LogStanding::Differs => "does NOT lead to the quoted registers",
    };
    out.line(&format!("log      {log}\n"));
}

fn one(out: &mut Lines, explanation: &Explanation, register: &RegisterExplanation, all_events: bool) {
    let RegisterExplanation { name, expected, found, verdict, log, events, events_left_out } = register;
    let (mark, text) = match verdict {
        Verdict::Match => ('✓', expected.first().map_or_else(String::new, |value| value.reason.clone())),
        Verdict::Mismatch => ('✗', "differs".to_owned()),
        Verdict::NotInLog => ('·', "not compared, not in the log".to_owned()),
        Verdict::NotCompared => ('·', "not compared".to_owned()),
    };
    out.line(&format!("{mark} {:<15} {}  {text}", name.as_str(), short(found)));
    let differs = *verdict == Verdict::Mismatch;
    if differs {
        for value in expected {
            out.line(&format!("      expected      {}  {}", short(&value.value), value.reason));
        }
    }
    // Events of a log that is not the quote's say nothing about the quote.
    let comparable = !matches!(log, RegisterLog::Differs | RegisterLog::NotInLog | RegisterLog::None);
    if all_events {
        events.iter().for_each(|entry| event(out, entry));
        if *events_left_out > 0 {
            out.line(&format!("      ... and {events_left_out} more events"));
        }
    } else if differs && (comparable || *name == RegisterName::Rtmr3) {
        let mut differing = events.iter().filter(|event| is_difference(event));
        if let Some(first) = differing.next() {
            event(out, first);
        }
        let more = differing.count();
        if more > 0 {
            out.line(&format!("      ... and {more} more events that differ (--events shows all)"));
        }
    }
    let causes: Vec<&Finding> = explanation.findings.iter().filter(|f| f.register == Some(*name)).collect();
    causes.into_iter().for_each(|finding| cause(out, finding));
}

const fn is_difference(event: &EventExplanation) -> bool {
    !matches!(event.verdict, EventVerdict::Match | EventVerdict::NotInLog | EventVerdict::Unknown)
}

fn event(out: &mut Lines, event: &EventExplanation) {
    let (mark, verdict) = match event.verdict {
        EventVerdict::Match => ('✓', ""),
        EventVerdict::Mismatch => ('✗', "differs"),
        EventVerdict::Missing => ('✗', "missing"),
        EventVerdict::Added => ('✗', "not expected"),
        EventVerdict::Moved => ('✗', "at another place"),
        EventVerdict::Unknown => ('·', "not compared"),
        EventVerdict::NotInLog => ('·', "expected"),
    };
    let depends = event.depends_on.map_or_else(String::new, |on| format!(", depends on {}", depends_on(on)));
    let separator = if verdict.is_empty() { "" } else { ": " };
    out.line(&format!("    {mark} event {:>2} {}{separator}{verdict}{depends}", event.position, event.name));
    if let (Some(expected), false) = (&event.expected, event.verdict == EventVerdict::Match) {
        out.line(&format!("      expected      {}", short(expected)));
    }
    if let Some(found) = &event.found
        && event.verdict != EventVerdict::Match
    {
        let label = event.label.as_ref().map_or_else(String::new, |label| {
            let covered =
                if event.data_matches_digest == Some(true) { "" } else { " [label, not covered by the digest]" };
            format!("  {label}{covered}")
        });
        out.line(&format!("      found         {}{label}", short(found)));
    }
}

fn cause(out: &mut Lines, finding: &Finding) {
    out.line(&format!("    cause  {} ({})", finding.detail, finding.code));
    out.line(&format!("    fix    {}", finding.fix));
}

fn nearest(out: &mut Lines, explanation: &Explanation) {
    let Some(nearest) = &explanation.nearest else { return };
    let names = |list: &[RegisterName]| list.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    out.line(&format!("Nearest known machine: {}.", describe(&nearest.shape)));
    let rest = if nearest.differs.is_empty() {
        "all registers of the image match".to_owned()
    } else {
        format!("{} match, {} still differ", names(&nearest.matches), names(&nearest.differs))
    };
    let changes: Vec<String> = nearest.changes.iter().map(|c| format!("{} {} -> {}", c.field, c.from, c.to)).collect();
    let with = if changes.is_empty() { String::new() } else { format!(" with {}", changes.join(", ")) };
    out.line(&format!("  There {rest}{with}."));
}

fn describe(shape: &MachineShape) -> String {
    let facts = shape.facts();
    format!(
        "{} vCPUs, {} MiB, QEMU {}, {} address bits, {} devices",
        facts.vcpus,
        facts.memory_mib,
        facts.qemu,
        facts.physical_bits,
        facts.devices.len()
    )
}

const fn depends_on(dependency: Dependency) -> &'static str {
    match dependency {
        Dependency::Memory => "memory size and firmware",
        Dependency::Firmware => "the firmware file",
        Dependency::FirmwareSource => "the firmware's source",
        Dependency::QemuAndShape => "QEMU's version and the machine's shape",
        Dependency::Kernel => "the kernel",
        Dependency::CommandLine => "the command line",
        Dependency::Initrd => "the initrd",
    }
}

/// Enough of a digest to tell it apart; JSON has all of it.
fn short(digest: &Sha384Digest) -> String {
    let text = digest.to_string();
    format!("{}...", text.get(..16).unwrap_or(&text))
}
