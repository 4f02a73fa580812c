// SPDX-License-Identifier: Apache-2.0
//! The result of an appraisal.

use attested_channel::Moment;
use gpu_verify::GpuSummary;
use serde::Serialize;
use tdx_verify::{Hardware, Tcb};
use types::{Hex32, ModelId, Refusal, RegisterName, Sha256Digest, Sha384Digest};

use crate::Claims;

/// Every check of an appraisal and what it established. Read [`Verdict::is_accepted`] or take [`Verdict::accept`].
#[derive(Debug, Clone, Serialize)]
#[must_use = "a verdict that nobody reads accepts everything"]
pub struct Verdict {
    pub(crate) accepted: bool,
    pub(crate) hardware: Hardware,
    pub(crate) moment: &'static str,
    /// Whether the evidence was bound to a connection of the verifier; a document alone may be a copy.
    pub(crate) bound: bool,
    pub(crate) instance: &'static str,
    /// Which rule gave the ACPI digests in RTMR0: `published`, or the weaker `from-event-log`.
    pub(crate) acpi: Option<&'static str>,
    pub(crate) checks: Vec<Check>,
    pub(crate) registers: Vec<RegisterCheck>,
    pub(crate) evidence: Option<Sha256Digest>,
    pub(crate) release: Option<Sha256Digest>,
    pub(crate) model: Option<ModelId>,
    pub(crate) instance_key: Hex32,
    pub(crate) platform: Sha256Digest,
    pub(crate) tcb: Tcb,
    /// The guest's GPUs, where it has some that could be judged.
    pub(crate) gpu: Option<GpuSummary>,
    #[serde(skip)]
    pub(crate) claims: Box<Claims>,
    pub(crate) expires: u64,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Code of the refusal, had it failed.
    pub code: &'static str,
    /// What was looked at.
    pub field: String,
    /// Whether it holds.
    pub passed: bool,
    /// What it must be.
    pub expected: String,
    /// What it is.
    pub found: String,
    /// What would make it pass.
    pub fix: &'static str,
}

/// A register as expected and as quoted, for display.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegisterCheck {
    /// Which register.
    pub name: RegisterName,
    /// Allowed values; empty where no release says.
    pub expected: Vec<Sha384Digest>,
    /// The quote's value.
    pub quoted: Sha384Digest,
    /// Whether it is one of them.
    pub matches: bool,
}

/// Evidence that passed every check and was bound to the verifier's own connection. Only [`Verdict::accept`] makes one.
#[derive(Debug, Clone)]
pub struct Accepted {
    pub(crate) moment: Moment,
    pub(crate) evidence: Sha256Digest,
    pub(crate) release: Sha256Digest,
    pub(crate) model: ModelId,
    pub(crate) instance_key: Hex32,
    pub(crate) hpke_key: Hex32,
    pub(crate) platform: Sha256Digest,
    pub(crate) challenge: [u8; 32],
    pub(crate) expires: u64,
}

impl Verdict {
    /// True when every check passed.
    #[must_use]
    pub const fn is_accepted(&self) -> bool {
        self.accepted
    }

    /// All reasons for a refusal, in the order of the checks.
    #[must_use]
    pub fn reasons(&self) -> Vec<Refusal> {
        self.checks.iter().filter(|check| !check.passed).map(Check::refusal).collect()
    }

    /// Every check, in order.
    #[must_use]
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// Every register, as expected and as quoted.
    #[must_use]
    pub fn registers(&self) -> &[RegisterCheck] {
        &self.registers
    }

    /// `any`, or `pinned` where the policy names platforms or instances.
    #[must_use]
    pub const fn instance(&self) -> &'static str {
        self.instance
    }

    /// Which rule gave the ACPI digests in RTMR0: `published`, or `from-event-log`, with which the host may have given
    /// any ACPI tables. `None` where no release was compared.
    #[must_use]
    pub const fn acpi(&self) -> Option<&'static str> {
        self.acpi
    }

    /// The receipt key of the guest.
    #[must_use]
    pub const fn instance_key(&self) -> &Hex32 {
        &self.instance_key
    }

    /// The release that the registers fit best.
    #[must_use]
    pub const fn release(&self) -> Option<&Sha256Digest> {
        self.release.as_ref()
    }

    /// The model of the guest's configuration.
    #[must_use]
    pub const fn model(&self) -> Option<&ModelId> {
        self.model.as_ref()
    }

    /// The guest's GPUs, where it has some that could be judged.
    #[must_use]
    pub const fn gpu(&self) -> Option<&GpuSummary> {
        self.gpu.as_ref()
    }

    /// What was established, as one document. It was accepted only where the verdict is.
    #[must_use]
    pub const fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Whether the evidence was bound to a connection of the verifier; a document alone may be a copy.
    #[must_use]
    pub const fn is_bound(&self) -> bool {
        self.bound
    }

    /// What signed the quote.
    #[must_use]
    pub const fn hardware(&self) -> Hardware {
        self.hardware
    }

    /// Seconds since 1970 at which the verdict ends.
    #[must_use]
    pub const fn expires(&self) -> u64 {
        self.expires
    }
}

impl Accepted {
    /// The moment of the boot.
    #[must_use]
    pub const fn moment(&self) -> Moment {
        self.moment
    }

    /// Digest of the evidence document.
    #[must_use]
    pub const fn evidence(&self) -> &Sha256Digest {
        &self.evidence
    }

    /// Digest of the release.
    #[must_use]
    pub const fn release(&self) -> &Sha256Digest {
        &self.release
    }

    /// The model of the guest's configuration.
    #[must_use]
    pub const fn model(&self) -> &ModelId {
        &self.model
    }

    /// The receipt key of the guest.
    #[must_use]
    pub const fn instance_key(&self) -> &Hex32 {
        &self.instance_key
    }

    /// The key that a model key may be sealed to.
    #[must_use]
    pub const fn hpke_key(&self) -> &Hex32 {
        &self.hpke_key
    }

    /// Name of the platform.
    #[must_use]
    pub const fn platform(&self) -> &Sha256Digest {
        &self.platform
    }

    /// The challenge that the evidence answered.
    #[must_use]
    pub const fn challenge(&self) -> &[u8; 32] {
        &self.challenge
    }

    /// Seconds since 1970 at which the verdict ends.
    #[must_use]
    pub const fn expires(&self) -> u64 {
        self.expires
    }
}

impl Check {
    fn refusal(&self) -> Refusal {
        let detail = format!("expected {}; found {}", self.expected, self.found);
        Refusal::new(self.code, &self.field, detail, self.fix)
    }
}

/// Collects checks and registers in order.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) list: Vec<Check>,
    pub(crate) registers: Vec<RegisterCheck>,
}

impl Checks {
    /// True where there are checks and none failed.
    pub(crate) fn all_passed(&self) -> bool {
        !self.list.is_empty() && self.list.iter().all(|check| check.passed)
    }

    /// Notes a register for display, and whether it fits.
    pub(crate) fn register(&mut self, name: RegisterName, expected: Vec<Sha384Digest>, quoted: Sha384Digest) -> bool {
        let matches = expected.contains(&quoted);
        self.registers.push(RegisterCheck { name, expected, quoted, matches });
        matches
    }

    pub(crate) fn add(
        &mut self,
        passed: bool,
        (code, field, fix): (&'static str, &str, &'static str),
        expected: impl core::fmt::Display,
        found: impl core::fmt::Display,
    ) -> bool {
        let (expected, found) = (expected.to_string(), found.to_string());
        self.list.push(Check { code, field: field.to_owned(), passed, expected, found, fix });
        passed
    }

    /// Two values that must be equal.
    pub(crate) fn equal<T: PartialEq + core::fmt::Display>(
        &mut self,
        facts: (&'static str, &str, &'static str),
        expected: &T,
        found: &T,
    ) -> bool {
        self.add(expected == found, facts, expected, found)
    }
}
