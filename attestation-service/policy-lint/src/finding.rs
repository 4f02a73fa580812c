// SPDX-License-Identifier: Apache-2.0
//! What a lint found.

use serde::Serialize;
use types::Refusal;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Every verifier refuses the policy.
    Error,
    /// The policy works, perhaps not as its author thinks.
    Warning,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Stable code.
    pub code: &'static str,
    /// Where: a JSON pointer (RFC 6901), empty for the whole document.
    pub pointer: String,
    /// What was found.
    pub detail: String,
    /// What would mend it.
    pub fix: &'static str,
}

/// Everything that was found, errors first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[must_use = "a report that nobody reads finds nothing"]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// Everything, errors first, then in the order of the policy's parts.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The errors as reasons of a refusal; empty where the policy can be used.
    #[must_use]
    pub fn errors(&self) -> Vec<Refusal> {
        let errors = self.findings.iter().filter(|finding| finding.severity == Severity::Error);
        errors.map(|finding| Refusal::new(finding.code, &finding.field(), &finding.detail, finding.fix)).collect()
    }

    /// The warnings.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Warning)
    }

    /// The same with more findings.
    pub fn with(mut self, more: impl IntoIterator<Item = Finding>) -> Self {
        self.findings.extend(more);
        self.findings.sort_by_key(|finding| finding.severity);
        self
    }
}

impl Finding {
    /// The pointer, or `policy` for the whole document.
    fn field(&self) -> String {
        if self.pointer.is_empty() { "policy".to_owned() } else { self.pointer.clone() }
    }
}

impl core::fmt::Display for Finding {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: {} ({}): {}; {}", self.code, self.field(), self.detail, self.fix)
    }
}

/// Collects findings.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    pub(crate) fn error(&mut self, code: &'static str, pointer: &str, detail: impl Into<String>, fix: &'static str) {
        self.add(Severity::Error, code, pointer, detail, fix);
    }

    pub(crate) fn warn(&mut self, code: &'static str, pointer: &str, detail: impl Into<String>, fix: &'static str) {
        self.add(Severity::Warning, code, pointer, detail, fix);
    }

    fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        pointer: &str,
        detail: impl Into<String>,
        fix: &'static str,
    ) {
        self.0.push(Finding { severity, code, pointer: pointer.to_owned(), detail: detail.into(), fix });
    }

    pub(crate) fn report(self) -> Report {
        Report::default().with(self.0)
    }
}
