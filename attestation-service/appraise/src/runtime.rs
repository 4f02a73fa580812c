// SPDX-License-Identifier: Apache-2.0
//! RTMR3: the exact events of the boot, for the moment at which the guest is asked.

use attested_channel::{BootFacts, Moment, expected_events};
use tdx_verify::VerifiedQuote;
use types::{EventName, Evidence, GuestConfig, RegisterName, RuntimeEvent, Sha256Digest, Sha384Digest, event::replay};

use crate::verdict::Checks;

pub(crate) fn check(
    evidence: &Evidence,
    config: &GuestConfig,
    moment: Moment,
    quote: &VerifiedQuote,
    checks: &mut Checks,
) {
    let quoted = quote.registers().rtmr_3;
    let facts = BootFacts {
        config: GuestConfig::mr_config_id(evidence.guest_config.as_slice()),
        time: &evidence.time,
        gpu: &evidence.gpu,
        model: &config.model.0,
        spki_sha256: first_key(evidence),
        instance_key: evidence.instance_key,
    };
    let (Ok(expected), Ok(all)) = (expected_events(&facts, moment), expected_events(&facts, Moment::Serving)) else {
        checks.add(false, REGISTER, "events with a canonical form", quoted);
        return;
    };
    check_list(&expected, &evidence.events, checks);
    if moment == Moment::KeyRelease {
        check_open(&all, &evidence.events, &quoted, checks);
    }
    let value = replay(&expected);
    checks.equal(REGISTER, &value, &quoted);
    checks.register(RegisterName::Rtmr3, vec![value], quoted);
}

/// The TLS key that the guest began to serve with, which only the event `serve` names once it was renewed. What the events
/// claim is compared with the register; the key of the evidence itself stands in REPORTDATA.
fn first_key(evidence: &Evidence) -> Sha256Digest {
    let serve = evidence.events.iter().find(|event| event.name == EventName::Serve);
    let payload = serve.map(|event| event.payload.as_slice()).filter(|payload| payload.len() == 2 * KEY_BYTES);
    let key = payload.and_then(|payload| payload.first_chunk::<KEY_BYTES>());
    key.map_or(evidence.spki_sha256, |key| Sha256Digest::from_bytes(*key))
}

/// Compares the claimed events with the expected ones, and says how they differ.
fn check_list(expected: &[RuntimeEvent], found: &[RuntimeEvent], checks: &mut Checks) {
    let names = |events: &[RuntimeEvent]| events.iter().map(|e| e.name.as_str()).collect::<Vec<_>>().join(" ");
    // No boot has more; a longer list would only cost time, and room in the answer.
    if found.len() > EventName::ALL.len() {
        checks.add(false, UNEXPECTED, names(expected), format!("{} events", found.len()));
        return;
    }
    let has = |events: &[RuntimeEvent], name: EventName| events.iter().any(|event| event.name == name);
    let missing: Vec<_> = expected.iter().filter(|event| !has(found, event.name)).cloned().collect();
    checks.add(
        missing.is_empty(),
        MISSING,
        names(expected),
        format!("{} (missing: {})", names(found), names(&missing)),
    );
    let count = |name: EventName| found.iter().filter(|event| event.name == name).count();
    let unexpected: Vec<_> =
        found.iter().filter(|event| !has(expected, event.name) || count(event.name) > 1).cloned().collect();
    checks.add(unexpected.is_empty(), UNEXPECTED, names(expected), format!("also {}", names(&unexpected)));
    if missing.is_empty() && unexpected.is_empty() {
        let order = expected.iter().map(|e| e.name).eq(found.iter().map(|e| e.name));
        checks.add(order, ORDER, names(expected), names(found));
        let differing: Vec<_> = expected.iter().filter(|event| !found.contains(event)).cloned().collect();
        let found = if differing.is_empty() { "the same".to_owned() } else { names(&differing) };
        checks.add(differing.is_empty(), PAYLOAD, "payloads that follow from the evidence", found);
    }
}

/// Refuses a guest that closed its keys, whatever it claims about its events (attack 67).
fn check_open(all: &[RuntimeEvent], found: &[RuntimeEvent], quoted: &Sha384Digest, checks: &mut Checks) {
    let claimed = found.iter().any(|event| event.name == EventName::KeysClosed);
    let mut register = Sha384Digest::ZERO;
    let mut closed = false;
    let mut quoted_closed = false;
    for event in all {
        register = register.extend(&event.digest());
        closed |= event.name == EventName::KeysClosed;
        quoted_closed |= closed && register == *quoted;
    }
    let found = if claimed || quoted_closed { "the event keys-closed" } else { "no such event" };
    checks.add(!claimed && !quoted_closed, KEYS_CLOSED, "a guest that has not closed its keys", found);
}

/// Of a digest of a TLS key, and of an instance key.
const KEY_BYTES: usize = 32;

type Facts = (&'static str, &'static str, &'static str);
const REGISTER: Facts = ("register_mismatch", "rtmr_3", "boot the release's own init; RTMR3 holds other events");
const MISSING: Facts = ("rtmr3_event_missing", "events", "send evidence from the right moment of the boot");
const UNEXPECTED: Facts = ("rtmr3_event_unexpected", "events", "send evidence from the right moment of the boot");
const ORDER: Facts = ("rtmr3_event_order", "events", "send the events in the order in which they were extended");
const PAYLOAD: Facts = ("rtmr3_event_payload", "events", "send the documents that the events were made from");
const KEYS_CLOSED: Facts = ("keys_closed", "rtmr_3", "boot the guest anew: a guest asks for its key once per boot");
