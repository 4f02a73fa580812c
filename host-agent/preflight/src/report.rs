// SPDX-License-Identifier: Apache-2.0
//! The report.

use serde::Serialize;
use types::Refusal;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Good.
    Pass,
    /// Could not be found out, with the reason in the evidence.
    Unknown,
    /// Works, but not well, or not for all.
    Warn,
    /// Guests cannot start, or cannot use their GPUs.
    Fail,
}

/// What was found, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// File, program or socket.
    pub source: String,
    /// What was found there.
    pub found: String,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable name.
    pub id: &'static str,
    /// What is required, for people.
    pub title: &'static str,
    /// How it ended.
    pub status: Status,
    /// What was found. Never empty.
    pub evidence: Vec<Evidence>,
    /// What mends it; empty when nothing is to be done.
    pub fix: String,
}

/// All checks that apply, in their documented order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether the tree is a recording, not the machine at hand.
    pub recorded: bool,
    /// The checks.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether no check failed.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.checks.iter().all(|check| check.status != Status::Fail)
    }

    /// A refusal for each check that failed; the code is the check's name.
    #[must_use]
    pub fn reasons(&self) -> Vec<Refusal> {
        let failed = self.checks.iter().filter(|check| check.status == Status::Fail);
        failed
            .map(|check| {
                let field = check.evidence.first().map_or("", |evidence| evidence.source.as_str());
                let found: Vec<String> = check.evidence.iter().map(|e| format!("{}: {}", e.source, e.found)).collect();
                Refusal::new(check.id, field, format!("{} ({})", check.title, found.join("; ")), check.fix.clone())
            })
            .collect()
    }
}

/// How a check ended, before it has a name.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    pub(crate) status: Status,
    pub(crate) evidence: Vec<Evidence>,
    pub(crate) fix: String,
}

impl Finding {
    pub(crate) fn pass(source: &str, found: impl Into<String>) -> Self {
        Self::new(Status::Pass, source, found, "")
    }

    pub(crate) fn unknown(source: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Status::Unknown, source, found, fix)
    }

    pub(crate) fn warn(source: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Status::Warn, source, found, fix)
    }

    pub(crate) fn fail(source: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Status::Fail, source, found, fix)
    }

    fn new(status: Status, source: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status, evidence: vec![Evidence { source: source.to_owned(), found: found.into() }], fix: fix.into() }
    }

    /// The worst of several, with the evidence of all and the fixes of those that need one, each once.
    pub(crate) fn all(findings: Vec<Self>) -> Option<Self> {
        let status = findings.iter().map(|finding| finding.status).max()?;
        let mut fixes: Vec<String> = Vec::new();
        let mut evidence = Vec::new();
        for finding in findings {
            if !finding.fix.is_empty() && !fixes.contains(&finding.fix) {
                fixes.push(finding.fix);
            }
            evidence.extend(finding.evidence);
        }
        Some(Self { status, evidence, fix: fixes.join("; ") })
    }
}
