// SPDX-License-Identifier: Apache-2.0
//! Differences between two computations of registers.

use serde::{Deserialize, Serialize};
use serde_json::json;
use types::{Refusal, RegisterName, Sha384Digest};

use crate::output::Report;

/// What `compute --json` prints.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Computed {
    mr_td: Sha384Digest,
    rtmr_0: Sha384Digest,
    rtmr_1: Sha384Digest,
    rtmr_2: Sha384Digest,
    #[serde(default)]
    events: Vec<Event>,
    /// Other values are not compared: the first one stands for the computation.
    #[serde(default, rename = "allowed")]
    _allowed: serde_json::Value,
}

#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Event {
    register: RegisterName,
    name: String,
    digest: Sha384Digest,
    depends_on: String,
}

#[derive(Serialize)]
struct Difference {
    register: RegisterName,
    a: Sha384Digest,
    b: Sha384Digest,
    events: Vec<EventDifference>,
}

#[derive(Serialize)]
struct EventDifference {
    name: String,
    depends_on: String,
    a: Option<Sha384Digest>,
    b: Option<Sha384Digest>,
}

/// The comparison as a report.
pub(super) fn report(a: &Computed, b: &Computed) -> Report {
    let differences = differences(a, b);
    let mut text = String::new();
    for Difference { register, a, b, events } in &differences {
        text.push_str(&format!("{register}\n  a {a}\n  b {b}\n"));
        for event in events {
            text.push_str(&format!("  differs: {} (depends on: {})\n", event.name, event.depends_on));
        }
    }
    if differences.is_empty() {
        text.push_str("identical\n");
    }
    let reasons = differences.iter().map(reason).collect();
    let json = json!({ "identical": differences.is_empty(), "kind": "registers", "differences": differences });
    Report { json, text, reasons }
}

fn differences(a: &Computed, b: &Computed) -> Vec<Difference> {
    let values = [
        (RegisterName::MrTd, a.mr_td, b.mr_td),
        (RegisterName::Rtmr0, a.rtmr_0, b.rtmr_0),
        (RegisterName::Rtmr1, a.rtmr_1, b.rtmr_1),
        (RegisterName::Rtmr2, a.rtmr_2, b.rtmr_2),
    ];
    let differing = values.into_iter().filter(|(_, a, b)| a != b);
    differing
        .map(|(register, of_a, of_b)| Difference { register, a: of_a, b: of_b, events: events(a, b, register) })
        .collect()
}

/// Events of one register that differ, position by position.
fn events(a: &Computed, b: &Computed, register: RegisterName) -> Vec<EventDifference> {
    let of = |computed: &Computed| computed.events.iter().filter(|event| event.register == register).cloned().collect();
    let (a, b): (Vec<Event>, Vec<Event>) = (of(a), of(b));
    if a.is_empty() || b.is_empty() {
        return vec![];
    }
    (0..a.len().max(b.len()))
        .filter(|position| a.get(*position) != b.get(*position))
        .filter_map(|position| {
            let (a, b) = (a.get(position), b.get(position));
            let named = a.or(b)?;
            Some(EventDifference {
                name: named.name.clone(),
                depends_on: named.depends_on.clone(),
                a: a.map(|event| event.digest),
                b: b.map(|event| event.digest),
            })
        })
        .collect()
}

fn reason(difference: &Difference) -> Refusal {
    let named: Vec<&str> = difference.events.iter().map(|event| event.name.as_str()).collect();
    let causes: Vec<&str> = difference.events.iter().map(|event| event.depends_on.as_str()).collect();
    let (detail, fix) = if named.is_empty() && difference.register == RegisterName::MrTd {
        ("the firmware differs".to_owned(), "compare the firmware files".to_owned())
    } else if named.is_empty() {
        ("the registers differ".to_owned(), "compute both with --events to see which event differs".to_owned())
    } else {
        (format!("differing events: {}", named.join(", ")), format!("compare: {}", causes.join(", ")))
    };
    Refusal::new("register_mismatch", difference.register.as_str(), detail, fix)
}
