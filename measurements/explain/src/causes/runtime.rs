// SPDX-License-Identifier: Apache-2.0
//! RTMR3: the named events of the boot.

use event_log::{Agreement, EventOrderError, check_order, pair_runtime};
use types::{EventName, RegisterName, RuntimeEvent, Sha384Digest, event::replay};

use crate::{
    document::{Basis, EventExplanation, EventVerdict, Finding},
    input::{Input, Runtime},
    limits::MAX_RUNTIME_EVENTS,
    session::Session,
};

/// The events that the boot must have left, as far as it has come: up to `gpu`, where keys are released, or
/// complete. `None` without the facts.
pub(crate) fn expected_boot<'a>(input: &Input<'a>) -> Option<&'a [RuntimeEvent]> {
    let runtime = input.runtime?;
    if runtime.expected.is_empty() {
        return None;
    }
    let at_release = runtime.expected.iter().position(|event| event.name == EventName::Gpu)?.saturating_add(1);
    let early = runtime.expected.get(..at_release)?;
    // The quote decides; where it fits neither, the guest's own list.
    let complete = if replay(early) == input.registers.rtmr_3 {
        false
    } else {
        replay(runtime.expected) == input.registers.rtmr_3 || runtime.claimed.len() > at_release
    };
    Some(if complete { runtime.expected } else { early })
}

/// The events, claimed and expected side by side by position.
pub(crate) fn events(runtime: &Runtime<'_>, input: &Input<'_>) -> Vec<EventExplanation> {
    let expected = expected_boot(input).unwrap_or_default();
    let claimed = runtime.claimed.get(..MAX_RUNTIME_EVENTS).unwrap_or(runtime.claimed);
    (0..expected.len().max(claimed.len()))
        .filter_map(|position| {
            let (expected, claimed) = (expected.get(position), claimed.get(position));
            let name = claimed.or(expected)?.name.as_str().to_owned();
            let verdict = match (expected, claimed) {
                (None, Some(_)) if runtime.expected.is_empty() => EventVerdict::Unknown,
                (None, _) => EventVerdict::Added,
                (Some(_), None) => EventVerdict::Missing,
                (Some(e), Some(c)) if e == c => EventVerdict::Match,
                (Some(_), Some(_)) => EventVerdict::Mismatch,
            };
            Some(EventExplanation {
                position,
                name,
                expected: expected.map(RuntimeEvent::digest),
                found: claimed.map(RuntimeEvent::digest),
                verdict,
                depends_on: None,
                label: None,
                data_matches_digest: None,
            })
        })
        .collect()
}

pub(crate) fn find(session: &mut Session<'_>) {
    let Some(runtime) = session.input.runtime else { return };
    if runtime.claimed.len() > MAX_RUNTIME_EVENTS {
        note(
            session,
            "runtime_events_too_many",
            None,
            Basis::Difference,
            format!("{} events are claimed, a boot has {}", runtime.claimed.len(), EventName::ALL.len()),
        );
        return;
    }
    order(session, runtime.claimed);
    payloads(session, &runtime);
    let pairing = pair_runtime(runtime.claimed, session.input.registers);
    match pairing.agreement {
        Agreement::Match => {}
        Agreement::NotInLog if pairing.quoted == Sha384Digest::ZERO => {}
        Agreement::Prefix { events } => {
            let after = runtime.claimed.get(events).map(|event| event.name.as_str()).unwrap_or_default();
            note(
                session,
                "runtime_events_beyond_quote",
                None,
                Basis::Digest,
                format!("the quote holds the first {events} of the claimed events: it was made before {after}"),
            );
        }
        Agreement::Mismatch | Agreement::NotInLog => really_extended(session, &runtime),
    }
}

/// The list's own form.
fn order(session: &mut Session<'_>, claimed: &[RuntimeEvent]) {
    let expected = expected_boot(session.input).and_then(<[RuntimeEvent]>::last).map(|event| event.name);
    let beyond_gpu = claimed.len() > EventName::Gpu.number().into();
    let last = expected.unwrap_or(if beyond_gpu { EventName::Serve } else { EventName::Gpu });
    let Err(error) = check_order(claimed, last) else { return };
    let (code, event) = match error {
        EventOrderError::Missing { expected } => ("runtime_event_missing", expected),
        EventOrderError::Beyond { found, .. } => ("runtime_event_added", found),
        EventOrderError::Unexpected { expected, found, .. } => {
            let count = |name| claimed.iter().filter(|event| event.name == name).count();
            if count(found) > 1 {
                ("runtime_event_repeated", found)
            } else if count(expected) == 0 {
                ("runtime_event_missing", expected)
            } else {
                ("runtime_event_order", found)
            }
        }
    };
    note(session, code, Some(event), Basis::Difference, error.to_string());
}

/// Payloads are functions of the evidence.
fn payloads(session: &mut Session<'_>, runtime: &Runtime<'_>) {
    for claimed in runtime.claimed {
        let expected = runtime.expected.iter().find(|event| event.name == claimed.name);
        if expected.is_some_and(|expected| expected != claimed) {
            note(
                session,
                "runtime_event_payload",
                Some(claimed.name),
                Basis::Difference,
                format!("the payload of {} is not what the evidence's other fields lead to", claimed.name),
            );
        }
    }
}

/// What the register holds instead of the claimed list: a part of the boot, or one with a single change.
fn really_extended(session: &mut Session<'_>, runtime: &Runtime<'_>) {
    let quoted = *session.quoted(RegisterName::Rtmr3);
    let boot = if runtime.expected.is_empty() { runtime.claimed } else { runtime.expected };
    let boot: Vec<Sha384Digest> = boot.iter().map(RuntimeEvent::digest).collect();
    let names: Vec<&str> = {
        let list = if runtime.expected.is_empty() { runtime.claimed } else { runtime.expected };
        list.iter().map(|event| event.name.as_str()).collect()
    };
    let name = |at: usize| names.get(at).copied().unwrap_or("nothing");
    let detail = if quoted == Sha384Digest::ZERO {
        Some("rtmr_3 is zero: the guest has extended none of its events".to_owned())
    } else {
        changes(&boot).into_iter().find_map(|(list, change)| {
            let end = prefix_with(&list, &quoted)?;
            let upto = list.get(end.checked_sub(1)?).and_then(|digest| boot.iter().position(|d| d == digest));
            let upto = name(upto?);
            Some(match change {
                RuntimeChange::None => format!("the register holds the boot up to {upto}, not the claimed events"),
                RuntimeChange::Without(at) => format!("the register holds the boot up to {upto} without {}", name(at)),
                RuntimeChange::Twice(at) => format!("the register holds the boot up to {upto} with {} twice", name(at)),
                RuntimeChange::Exchanged(a, b) => {
                    format!("the register holds the boot up to {upto} with {} and {} exchanged", name(a), name(b))
                }
            })
        })
    };
    let (basis, detail) = match detail {
        Some(detail) => (Basis::Digest, detail),
        None => (
            Basis::Difference,
            "the claimed events do not lead to the quoted value, nor does the boot with one event left out, doubled or exchanged"
                .to_owned(),
        ),
    };
    note(session, "runtime_log_mismatch", None, basis, detail);
}

#[derive(Debug, Clone, Copy)]
enum RuntimeChange {
    None,
    Without(usize),
    Twice(usize),
    Exchanged(usize, usize),
}

/// A boot with one change: at most 64 events, so a few thousand lists.
fn changes(boot: &[Sha384Digest]) -> Vec<(Vec<Sha384Digest>, RuntimeChange)> {
    let mut all = vec![(boot.to_vec(), RuntimeChange::None)];
    let boot = boot.get(..EventName::ALL.len()).unwrap_or(boot);
    for (at, digest) in boot.iter().enumerate() {
        let mut without = boot.to_vec();
        without.remove(at);
        all.push((without, RuntimeChange::Without(at)));
        let mut twice = boot.to_vec();
        twice.insert(at, *digest);
        all.push((twice, RuntimeChange::Twice(at)));
        for other in at.saturating_add(1)..boot.len() {
            let mut exchanged = boot.to_vec();
            exchanged.swap(at, other);
            all.push((exchanged, RuntimeChange::Exchanged(at, other)));
        }
    }
    all
}

/// How many of the digests lead to the value.
fn prefix_with(digests: &[Sha384Digest], value: &Sha384Digest) -> Option<usize> {
    let mut register = Sha384Digest::ZERO;
    for (index, digest) in digests.iter().enumerate() {
        register = register.extend(digest);
        if register == *value {
            return Some(index.saturating_add(1));
        }
    }
    None
}

fn note(session: &mut Session<'_>, code: &'static str, event: Option<EventName>, basis: Basis, detail: String) {
    session.find(Finding {
        code,
        register: Some(RegisterName::Rtmr3),
        event: event.map(|event| event.as_str().to_owned()),
        field: "events",
        basis,
        detail,
        fix: "boot the release's own init; it extends each event of the boot once, in order".to_owned(),
    });
}
