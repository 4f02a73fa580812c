// SPDX-License-Identifier: Apache-2.0
//! `measure diff`: where two documents differ, and what the difference decides.

mod computed;
mod fields;
mod logs;

use std::path::{Path, PathBuf};

use clap::Args;
use event_log::EventLog;
use release::Bundle;
use serde_json::{Value, json};
use types::Refusal;

use crate::{
    input,
    output::{Failure, Report},
};

/// Compares two documents of one kind: results of `compute --json` (best with --events), releases (bundles or
/// statements), shapes, configurations, explanations or other JSON or TOML, or event logs.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  measure compute … --events --json > a.json\n  measure diff a.json b.json\n  measure diff release-1.sigstore.json release-2.sigstore.json\n  measure diff CCEL.a CCEL.b\n\nExit status 0: identical. 2: different, each difference is a reason."
)]
pub(crate) struct Arguments {
    /// The first document.
    a: PathBuf,
    /// The second document.
    b: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A document that can be compared.
enum Document {
    /// What `compute --json` prints.
    Computed(Box<computed::Computed>),
    /// Any fields.
    Fields(Value),
    /// The bytes of an event log.
    Log(Vec<u8>),
}

pub(crate) fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let (a, b) = (read(&arguments.a)?, read(&arguments.b)?);
    match (&a, &b) {
        (Document::Computed(a), Document::Computed(b)) => Ok(computed::report(a, b)),
        (Document::Fields(a), Document::Fields(b)) => Ok(field_report(a, b)),
        (Document::Log(a), Document::Log(b)) => match (EventLog::parse(a), EventLog::parse(b)) {
            (Ok(a), Ok(b)) => Ok(log_report(&a, &b)),
            _ => Err(malformed(&arguments.a, "is no event log").into()),
        },
        _ => Err(Refusal::new(
            "result_malformed",
            "a, b",
            "the documents are of different kinds",
            "give two results of compute, two releases, two shapes or two event logs",
        )
        .into()),
    }
}

fn field_report(a: &Value, b: &Value) -> Report {
    let differences = fields::compare(a, b);
    let mut text = String::new();
    let mut reasons = Vec::new();
    for difference in &differences {
        let (a, b) = (fields::shown(difference.a.as_ref()), fields::shown(difference.b.as_ref()));
        let affects = difference.affects.map_or_else(String::new, |affects| format!("  (decides {affects})"));
        text.push_str(&format!("{}{affects}\n  a {a}\n  b {b}\n", difference.field));
        let fix = match difference.affects {
            Some(affects) => format!("compare what was built: the field decides {affects}"),
            None => "compare what the documents were made from".to_owned(),
        };
        reasons.push(Refusal::new("field_differs", &difference.field, format!("a has {a}, b has {b}"), fix));
    }
    if differences.is_empty() {
        text.push_str("identical\n");
    }
    let json = json!({ "identical": differences.is_empty(), "kind": "fields", "differences": differences });
    Report { json, text, reasons }
}

fn log_report(a: &EventLog<'_>, b: &EventLog<'_>) -> Report {
    let differences = logs::compare(a, b);
    let mut text = String::new();
    let mut reasons = Vec::new();
    for logs::LogDifference { register, position, a, b } in &differences {
        let side = |entry: &Option<logs::Entry>| match entry {
            Some(logs::Entry { event_type, digest, label }) => {
                let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
                format!("{} {event_type} {label}", digest.get(..16).unwrap_or(""))
            }
            None => "(no event)".to_owned(),
        };
        text.push_str(&format!("{register} event {position}\n  a {}\n  b {}\n", side(a), side(b)));
        if reasons.len() < MAX_REASONS {
            reasons.push(Refusal::new(
                "event_differs",
                register.as_str(),
                format!("event {position}: a has {}, b has {}", side(a), side(b)),
                "measure explain names the cause, given a quote and a release",
            ));
        }
    }
    if differences.is_empty() {
        text.push_str("identical\n");
    }
    let json = json!({ "identical": differences.is_empty(), "kind": "event_log", "differences": differences });
    Report { json, text, reasons }
}

fn read(path: &Path) -> Result<Document, Failure> {
    let bytes = input::file(path, MAX_DOCUMENT)?;
    if let Ok(bundle) = Bundle::from_json(&bytes)
        && let Ok(statement) = serde_json::from_slice(bundle.payload())
    {
        return Ok(Document::Fields(statement));
    }
    if let Ok(value) = serde_json::from_slice::<Value>(&bytes) {
        if value.get("mr_td").is_some_and(Value::is_string) && value.get("schema").is_none() {
            return match serde_json::from_value(value) {
                Ok(computed) => Ok(Document::Computed(Box::new(computed))),
                Err(error) => Err(malformed(path, &format!("is not a result of compute: {error}")).into()),
            };
        }
        if value.is_object() || value.is_array() {
            return Ok(Document::Fields(value));
        }
    }
    if let Some(table) = core::str::from_utf8(&bytes).ok().and_then(|text| toml::from_str::<Value>(text).ok()) {
        return Ok(Document::Fields(table));
    }
    let bytes = input::binary(path, MAX_DOCUMENT)?;
    match EventLog::parse(&bytes) {
        Ok(_) => Ok(Document::Log(bytes)),
        Err(_) => Err(malformed(path, "is neither a document in JSON or TOML nor an event log").into()),
    }
}

fn malformed(path: &Path, what: &str) -> Refusal {
    Refusal::new(
        "result_malformed",
        "a, b",
        format!("{} {what}", path.display()),
        "give results of measure compute --events --json, releases, shapes or event logs",
    )
}

const MAX_DOCUMENT: u64 = 16 << 20;
const MAX_REASONS: usize = 64;
