// SPDX-License-Identifier: Apache-2.0
//! The answer.

use serde::Serialize;
use serde_json::Value;
use types::Refusal;

/// What was decided, or why there was nothing to decide.
pub(crate) type Answer = Result<Decided, Vec<Refusal>>;

/// A decision with what is to be shown of it.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) accepted: bool,
    pub(crate) reasons: Vec<Refusal>,
    pub(crate) result: Value,
}

impl Decided {
    pub(crate) fn accepted(result: Value) -> Self {
        Self { accepted: true, reasons: Vec::new(), result }
    }
}

/// Fields in the order of their names.
#[derive(Debug, Serialize)]
struct Document {
    accepted: bool,
    reasons: Vec<Refusal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    schema: &'static str,
}

pub(crate) fn write(answer: Answer) -> Vec<u8> {
    let document = match answer {
        Ok(Decided { accepted, reasons, result }) => {
            // A verdict and its reasons cannot contradict each other; if they did, nothing may pass.
            let accepted = accepted && reasons.is_empty();
            Document { accepted, reasons, result: Some(result), schema: SCHEMA }
        }
        Err(reasons) => Document { accepted: false, reasons, result: None, schema: SCHEMA },
    };
    serde_json::to_vec(&document).unwrap_or_else(|_| UNWRITABLE.to_vec())
}

/// A verdict as a value. It cannot fail for documents with text as keys; if it did, the answer would show nothing.
pub(crate) fn shown(verdict: &impl Serialize) -> Value {
    serde_json::to_value(verdict).unwrap_or(Value::Null)
}

pub(crate) fn refuse(code: &str, field: &str, rule: impl core::fmt::Display, fix: &str) -> Vec<Refusal> {
    vec![Refusal::new(code, field, rule.to_string(), fix)]
}

const SCHEMA: &str = "chrysalis/verify-answer/v1";
const UNWRITABLE: &[u8] = br#"{"accepted":false,"reasons":[],"schema":"chrysalis/verify-answer/v1"}"#;
