// SPDX-License-Identifier: Apache-2.0
//! The explanation as a document, schema `chrysalis/explanation/v1`.
//!
//! Fields are only ever added, codes never change their meaning. All text is printable ASCII; text that comes
//! from a log or a guest is escaped and capped.

use calculator::Dependency;
use serde::Serialize;
use types::{MachineShape, Refusal, RegisterName, Sha384Digest};

/// Value of [`Explanation::schema`].
pub const SCHEMA: &str = "chrysalis/explanation/v1";

/// Why registers are what they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// True when every register that can be compared has an expected value and nothing contradicts it.
    pub matches: bool,
    /// Whether somebody verified the quote before it was explained.
    pub quote: Standing,
    /// Whether the reference values come from a verified release.
    pub reference: Standing,
    /// How the firmware's log fits the quote.
    pub log: LogStanding,
    /// The machine that was expected.
    pub shape: Option<MachineShape>,
    /// Where `shape` comes from.
    pub shape_from: ShapeSource,
    /// Every register, in the order of [`RegisterName::ALL`].
    pub registers: Vec<RegisterExplanation>,
    /// Causes, the most basic first. Empty when everything matches.
    pub findings: Vec<Finding>,
    /// The known machine that fits better than the expected one.
    pub nearest: Option<Nearest>,
    /// What cannot be said from what was given.
    pub limits: Vec<String>,
    /// How much was tried.
    pub searched: Searched,
}

/// Whether an input was verified before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Its signatures were verified by the caller.
    Verified,
    /// Nobody verified it: all that follows is true of these bytes, whoever made them.
    Unverified,
}

/// How a log fits a quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStanding {
    /// No log was given.
    None,
    /// Every register that the log has events for replays to the quoted value.
    Agrees,
    /// Some do.
    Partly,
    /// None does, or the log cannot be replayed.
    Differs,
}

/// Where the expected machine comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ShapeSource {
    /// Named by the caller or by the guest's configuration.
    Claimed,
    /// None was named: the known machine that fits best.
    Nearest,
    /// None was named and none is known.
    Unknown,
}

/// One register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegisterExplanation {
    /// Its name.
    pub name: RegisterName,
    /// The values that it may have, and when. Empty when the reference does not say.
    pub expected: Vec<ExpectedValue>,
    /// The value in the quote.
    pub found: Sha384Digest,
    /// How they compare.
    pub verdict: Verdict,
    /// How the log fits this register.
    pub log: RegisterLog,
    /// Its events: expected and logged ones, side by side. Without a log only expected ones.
    pub events: Vec<EventExplanation>,
    /// Logged events that were left out of `events`.
    pub events_left_out: usize,
}

/// A value that a register may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExpectedValue {
    /// The value.
    pub value: Sha384Digest,
    /// Which circumstances lead to it.
    pub reason: String,
}

/// How a register compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The quoted value is an expected one.
    Match,
    /// It is not.
    Mismatch,
    /// Nothing is expected, and a given log has no events for the register.
    NotInLog,
    /// Nothing is expected: the reference cannot say, or what would say was not given.
    NotCompared,
}

/// How a log fits one register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RegisterLog {
    /// There is no log, or none can be for this register.
    None,
    /// The log's events lead to the quoted value.
    Agrees,
    /// The first of the log's events do; the quote has none of the rest.
    Beyond,
    /// They do not: the events say nothing about this quote.
    Differs,
    /// The log has no event for the register.
    NotInLog,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventExplanation {
    /// Position among the logged events of this register, from 0; for an event that is missing, and without a
    /// log, its position among the expected ones.
    pub position: usize,
    /// What is measured; for an event that was not expected, its type.
    pub name: String,
    /// The expected digest; absent for an unexpected event, and where the reference cannot say.
    pub expected: Option<Sha384Digest>,
    /// The logged digest; absent for a missing event, and without a log.
    pub found: Option<Sha384Digest>,
    /// How they compare.
    pub verdict: EventVerdict,
    /// What the expected digest depends on.
    pub depends_on: Option<Dependency>,
    /// The event's data in words: an untrusted label.
    pub label: Option<String>,
    /// True when the logged digest is a hash of the data that the label shows, so that the label can be relied
    /// upon as far as the log can.
    pub data_matches_digest: Option<bool>,
}

/// How an event compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventVerdict {
    /// The logged digest is the expected one.
    Match,
    /// It is another.
    Mismatch,
    /// Expected, not logged.
    Missing,
    /// Logged, not expected.
    Added,
    /// Expected and logged, but at another place or in another register.
    Moved,
    /// The reference cannot say which digest it must be.
    Unknown,
    /// There is no log to compare with.
    NotInLog,
}

/// A cause of a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable code, `snake_case`; `docs/measurements.md` lists them.
    pub code: &'static str,
    /// The register that differs.
    pub register: Option<RegisterName>,
    /// The event that differs.
    pub event: Option<String>,
    /// What to change, as a path: `shape.memory_mib`, `command_line`, `initrd`.
    pub field: &'static str,
    /// What the finding rests on.
    pub basis: Basis,
    /// What was expected and what was found.
    pub detail: String,
    /// What would make it match.
    pub fix: String,
}

/// What a finding rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// A digest or register equals the one of a named alternative.
    Digest,
    /// A digest differs from the expected one, and no known alternative has it.
    Difference,
    /// The log's labels or structure, which the log's author chose.
    Label,
}

/// A known machine that fits better.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nearest {
    /// The machine.
    pub shape: MachineShape,
    /// Registers that match on it.
    pub matches: Vec<RegisterName>,
    /// Registers that differ on it, too.
    pub differs: Vec<RegisterName>,
    /// What to change in the expected machine.
    pub changes: Vec<Change>,
}

/// One fact of a shape to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Path of the fact.
    pub field: &'static str,
    /// As it was expected.
    pub from: String,
    /// As it is on the other machine.
    pub to: String,
}

/// How many alternatives were compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Searched {
    /// Sizes of memory.
    pub memory_sizes: usize,
    /// Combinations of memory size and ACPI files.
    pub machines: usize,
    /// Command lines.
    pub command_lines: usize,
}

impl Explanation {
    /// The findings as refusals, in their order.
    #[must_use]
    pub fn reasons(&self) -> Vec<Refusal> {
        let field = |finding: &Finding| match finding.register {
            Some(register) if finding.field.is_empty() => register.as_str(),
            _ => finding.field,
        };
        self.findings
            .iter()
            .map(|finding| Refusal::new(finding.code, field(finding), finding.detail.clone(), finding.fix.clone()))
            .collect()
    }

    /// The register with this name.
    #[must_use]
    pub fn register(&self, name: RegisterName) -> Option<&RegisterExplanation> {
        self.registers.iter().find(|register| register.name == name)
    }
}
