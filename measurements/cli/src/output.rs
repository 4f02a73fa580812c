// SPDX-License-Identifier: Apache-2.0
//! Results, refusals and exit status, the same for every subcommand.

use std::process::ExitCode;

use serde_json::{Value, json};
use types::Refusal;

/// A subcommand's result: a document and its form for people.
pub(crate) struct Report {
    /// The document that `--json` prints.
    pub(crate) json: Value,
    /// Lines for a terminal.
    pub(crate) text: String,
    /// Why the input is refused; empty when it is accepted.
    pub(crate) reasons: Vec<Refusal>,
}

/// An accepted result.
pub(crate) fn accepted(json: Value, text: String) -> Report {
    Report { json, text, reasons: Vec::new() }
}

/// A refusal that has nothing to report but its reasons.
pub(crate) fn refused(reasons: Vec<Refusal>) -> Report {
    Report { json: json!({}), text: String::new(), reasons }
}

/// Why a subcommand has no result.
pub(crate) enum Failure {
    /// The input breaks a rule.
    Refused(Refusal),
    /// Something else went wrong.
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Prints the result and gives the exit status.
pub(crate) fn finish(as_json: bool, result: Result<Report, Failure>) -> ExitCode {
    let report = match result {
        Ok(report) => report,
        Err(Failure::Refused(refusal)) => Report { json: json!({}), text: String::new(), reasons: vec![refusal] },
        Err(Failure::Other(error)) => {
            eprintln!("measure: {error:#}");
            return ExitCode::from(EXIT_OTHER);
        }
    };
    let Report { mut json, text, reasons } = report;
    if as_json {
        if let (false, Some(fields)) = (reasons.is_empty(), json.as_object_mut()) {
            fields.insert("reasons".to_owned(), json!(reasons));
        }
        println!("{json}");
    } else if !text.is_empty() {
        println!("{}", text.trim_end());
    }
    for reason in &reasons {
        eprintln!("refused: {reason}");
    }
    if reasons.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_REFUSED) }
}

/// Prints help, or what is wrong with the arguments.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // If even this cannot be printed there is nobody to tell.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
}

const EXIT_OTHER: u8 = 1;
const EXIT_REFUSED: u8 = 2;
const EXIT_USAGE: u8 = 64;
