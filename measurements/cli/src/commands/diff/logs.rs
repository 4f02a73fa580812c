// SPDX-License-Identifier: Apache-2.0
//! Differences between two event logs.

use event_log::{Event, EventLog, Indexing, RUN_TIME, event_type_name, register_of};
use serde::Serialize;
use types::{RegisterName, Sha384Digest};

/// An event that differs, by its position among the register's events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct LogDifference {
    pub(super) register: RegisterName,
    pub(super) position: usize,
    pub(super) a: Option<Entry>,
    pub(super) b: Option<Entry>,
}

/// One side of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Entry {
    #[serde(rename = "type")]
    pub(super) event_type: &'static str,
    pub(super) digest: Option<Sha384Digest>,
    /// An untrusted label.
    pub(super) label: String,
}

/// Compares the digests of two logs, register by register.
pub(super) fn compare(a: &EventLog<'_>, b: &EventLog<'_>) -> Vec<LogDifference> {
    let mut found = Vec::new();
    for register in RUN_TIME {
        let (a, b) = (of(a, register), of(b, register));
        for position in 0..a.len().max(b.len()) {
            let (a, b) = (a.get(position), b.get(position));
            if a.map(|event| event.sha384()) != b.map(|event| event.sha384()) {
                let entry = |event: &&Event<'_>| Entry {
                    event_type: event_type_name(event.event_type),
                    digest: event.sha384(),
                    label: event.label().text,
                };
                found.push(LogDifference { register, position, a: a.map(entry), b: b.map(entry) });
            }
        }
    }
    found
}

fn of<'a, 'b>(log: &'b EventLog<'a>, register: RegisterName) -> Vec<&'b Event<'a>> {
    let own =
        |event: &&Event<'_>| event.is_extended() && register_of(event, Indexing::MeasurementRegister) == Some(register);
    log.events.iter().filter(own).collect()
}
