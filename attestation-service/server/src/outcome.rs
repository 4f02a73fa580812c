// SPDX-License-Identifier: Apache-2.0
//! What a command came to, on the terminal and as JSON.

use std::process::ExitCode;

use serde_json::{Value, json};
use tdx_verify::TrustAnchors;
use types::Refusal;

/// The result of a command that ran.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// For people.
    lines: Vec<String>,
    /// For programs.
    document: Value,
    /// Why it was refused; empty when it was not.
    reasons: Vec<Refusal>,
    /// The document says everything.
    bare: bool,
}

impl Outcome {
    /// Accepted: `document` is an object.
    pub(crate) fn accepted(lines: Vec<String>, document: Value) -> Self {
        Self { lines, document, reasons: Vec::new(), bare: false }
    }

    /// Refused for `reasons`; accepted when there are none.
    pub(crate) fn judged(lines: Vec<String>, document: Value, reasons: Vec<Refusal>) -> Self {
        Self { lines, document, reasons, bare: false }
    }

    /// A document that is the whole result: `--json` adds nothing to it.
    pub(crate) fn document(text: String, document: Value) -> Self {
        Self { lines: vec![text], document, reasons: Vec::new(), bare: true }
    }

    /// Refused, and nothing more to say.
    pub(crate) fn refused(reasons: Vec<Refusal>) -> Self {
        Self { lines: Vec::new(), document: json!({}), reasons, bare: false }
    }

    /// The same, with one more field.
    pub(crate) fn with(mut self, field: &str, value: Value) -> Self {
        if let Some(fields) = self.document.as_object_mut() {
            fields.insert(field.to_owned(), value);
        }
        self
    }

    /// Says under which anchors it was judged, whatever came of it.
    pub(crate) fn under(mut self, anchors: &TrustAnchors) -> Self {
        let hardware = anchors.hardware();
        self.lines.insert(0, format!("hardware: {hardware}"));
        if let Some(fields) = self.document.as_object_mut() {
            fields.insert("hardware".to_owned(), json!(hardware));
        }
        self
    }

    /// Prints, and gives the exit code: 0 accepted, 2 refused.
    pub(crate) fn report(mut self, json: bool) -> ExitCode {
        if json {
            if let Some(fields) = self.document.as_object_mut().filter(|_| !self.bare) {
                fields.insert("accepted".to_owned(), self.reasons.is_empty().into());
                fields.insert("reasons".to_owned(), json!(self.reasons));
            }
            println!("{}", self.document);
        } else {
            self.lines.iter().for_each(|line| println!("{line}"));
            self.reasons.iter().for_each(|reason| println!("refused: {reason}"));
        }
        if self.reasons.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) }
    }
}

/// Prints why a command could not run, and gives exit code 1.
pub(crate) fn failed(error: &anyhow::Error, json: bool) -> ExitCode {
    if json {
        println!("{}", json!({ "accepted": false, "error": format!("{error:#}") }));
    }
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

const REFUSED: u8 = 2;
