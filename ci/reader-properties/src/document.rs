// SPDX-License-Identifier: Apache-2.0
//! Canonical JSON: a document that is accepted has exactly these bytes.

use core::fmt::Debug;

use event_log::check_order;
use release::TrustPolicy;
use serde_json::Value;
use types::{ConnectionProof, Document, EventName, Evidence, GuestConfig, canonical};

/// Configurations, evidence, connection proofs and trust policies: the bytes as they are, and their canonical form.
pub fn document(bytes: &[u8]) -> bool {
    let accepted = any_document(bytes);
    canonical_form(bytes).map_or(accepted, |canonical| accepted | any_document(&canonical))
}

/// The canonical form of any JSON whose numbers are integers. Making it twice changes nothing.
pub(crate) fn canonical_form(bytes: &[u8]) -> Option<Vec<u8>> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let canonical = canonical::to_bytes(&value).ok()?;
    let again: Value = canonical::from_bytes(&canonical, usize::MAX).expect("the canonical form is canonical");
    assert_eq!(again, value, "the canonical form says something else");
    Some(canonical)
}

fn any_document(bytes: &[u8]) -> bool {
    read::<GuestConfig>(bytes) & guest_config(bytes)
        | read::<Evidence>(bytes) & evidence(bytes)
        | read::<ConnectionProof>(bytes)
        | read::<TrustPolicy>(bytes) & TrustPolicy::parse(bytes).is_ok()
}

pub(crate) fn read<D: Document + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let Ok(document) = D::from_canonical(bytes) else { return false };
    assert!(bytes.len() <= D::MAX_BYTES, "a document that is too large was accepted");
    assert_eq!(document.to_canonical().as_deref(), Ok(bytes), "an accepted document has one spelling");
    true
}

fn guest_config(bytes: &[u8]) -> bool {
    let Ok(config) = GuestConfig::parse(bytes) else { return false };
    assert!((8..=30).contains(&config.network.prefix.0) && config.network.port.0 != 0);
    assert!(!config.network.address.0.is_loopback() && !config.network.address.0.is_multicast());
    assert!((64..=1 << 20).contains(&config.engine.context_tokens.0));
    let facts = config.shape.0.facts();
    assert!((1..=1024).contains(&facts.vcpus) && (256..=16 << 20).contains(&facts.memory_mib));
    true
}

fn evidence(bytes: &[u8]) -> bool {
    let Ok(evidence) = Evidence::from_canonical(bytes) else { return false };
    for last in EventName::ALL {
        let names: Vec<EventName> = evidence.events.iter().map(|event| event.name).collect();
        let upto = EventName::ALL.iter().position(|name| *name == last).map_or(0, |position| position + 1);
        let expected = EventName::ALL.get(..upto).is_some_and(|expected| expected == names);
        assert_eq!(check_order(&evidence.events, last).is_ok(), expected, "the order of events up to {last}");
    }
    true
}
