// SPDX-License-Identifier: Apache-2.0
//! The control socket: order, configuration, and the only moment for key-release evidence.

use attested_channel::{Leaf, Moment, ReportDataInputs, expected_events};
use attester_protocol::{ControlAnswer, ControlRequest, Failure};
use types::{Base64, Document as _, EventName, Evidence, FreshnessKind, Hex32, Role, Sha384Digest, event::replay};

use crate::guest::{Guest, config_bytes, configuration, gpu, model, quote, time};

fn key_release() -> ControlRequest {
    ControlRequest::KeyReleaseEvidence {
        challenge: Hex32::new([1; 32]),
        binding: Hex32::new([2; 32]),
        hpke_key: Hex32::new([3; 32]),
    }
}

#[test]
fn events_are_extended_in_their_order_only() {
    let mut guest = Guest::start();
    assert_eq!(guest.extend(EventName::Entropy), Err(Failure::EventOrder));
    guest.extend(EventName::Mounts).unwrap();
    assert_eq!(guest.extend(EventName::Mounts), Err(Failure::EventOrder));
    assert_eq!(guest.extend(EventName::Configuration), Err(Failure::EventOrder));
    assert_eq!(guest.record.lock().unwrap().rtmr3, [guest.event(EventName::Mounts).digest()]);
    assert!(guest.end().is_ok());
}

#[test]
fn a_configuration_other_than_the_measured_one_is_refused_and_there_is_only_one() {
    let mut guest = Guest::start();
    let mut changed = configuration();
    let text = String::from_utf8(config_bytes()).unwrap().replace("8443", "8444");
    changed.guest_config = Base64::new(text.into_bytes()).unwrap();
    assert_eq!(guest.ask(ControlRequest::Configure(Box::new(changed))), Err(Failure::Configuration));
    guest.configure().unwrap();
    assert_eq!(guest.configure(), Err(Failure::AlreadyConfigured));
}

#[test]
fn the_report_names_the_keys_that_evidence_will_bind() {
    let mut guest = Guest::start();
    let (spki_sha256, instance_key) = (guest.spki_sha256, guest.instance_key);
    let mr_config_id = Sha384Digest::of(&config_bytes());
    let expected = ControlAnswer::Report { mr_config_id, spki_sha256, instance_key };
    assert_eq!(guest.ask(ControlRequest::Report {}), Ok(expected));
}

#[test]
fn key_release_evidence_binds_challenge_connection_and_hpke_key() {
    let mut guest = Guest::start();
    guest.boot_until(EventName::Gpu);
    let Ok(ControlAnswer::KeyReleaseEvidence { evidence }) = guest.ask(key_release()) else { panic!("no evidence") };
    let evidence = Evidence::from_canonical(evidence.as_slice()).unwrap();
    // REPORTDATA is recomputed as every verifier does.
    assert_eq!(evidence.quote.as_slice(), quote(&ReportDataInputs::of(&evidence).unwrap().report_data()));
    let leaf = Leaf { kind: FreshnessKind::KeyRelease, role: Role::Inference, challenge: [1; 32], binding: [2; 32] };
    assert_eq!((evidence.freshness.tree_size, evidence.freshness.root), (1, leaf.hash()));
    assert_eq!(evidence.hpke_key, Hex32::new([3; 32]));
    assert_eq!(evidence.guest_config.as_slice(), config_bytes());
    let (time, gpu, model) = (time(), gpu(), model());
    let expected = expected_events(&guest.facts(&time, &gpu, &model), Moment::KeyRelease).unwrap();
    assert_eq!(evidence.events, expected);
    let digests = guest.record.lock().unwrap().rtmr3.clone();
    assert_eq!(digests.iter().fold(Sha384Digest::ZERO, |register, digest| register.extend(digest)), replay(&expected));
}

/// Attack 67: no key-release evidence before its moment, after it, or once the attester is sealed.
#[test]
fn key_release_evidence_exists_at_one_moment_only() {
    let mut guest = Guest::start();
    guest.boot_until(EventName::Time);
    assert_eq!(guest.ask(key_release()), Err(Failure::NotKeyRelease));
    guest.extend(EventName::Gpu).unwrap();
    guest.ask(key_release()).unwrap();
    guest.extend(EventName::Keys).unwrap();
    assert_eq!(guest.ask(key_release()), Err(Failure::NotKeyRelease));
    assert_eq!(guest.extend(EventName::KeysClosed), Err(Failure::NotSealed));
    guest.ask(ControlRequest::Seal {}).unwrap();
    for request in [key_release(), ControlRequest::Report {}, ControlRequest::Seal {}] {
        assert_eq!(guest.ask(request), Err(Failure::Sealed));
    }
    assert_eq!(guest.configure(), Err(Failure::Sealed));
    for name in [EventName::KeysClosed, EventName::Model, EventName::Serve] {
        guest.extend(name).unwrap();
    }
    assert_eq!(guest.ask(key_release()), Err(Failure::Sealed));
    assert_eq!(guest.extend(EventName::Serve), Err(Failure::Sealed));
}

#[test]
fn a_seal_before_the_release_closes_it() {
    let mut guest = Guest::start();
    guest.boot_until(EventName::Gpu);
    guest.ask(ControlRequest::Seal {}).unwrap();
    assert_eq!(guest.ask(key_release()), Err(Failure::Sealed));
}

#[test]
fn a_guest_without_configuration_never_serves() {
    let mut guest = Guest::start();
    for name in EventName::ALL {
        if name == EventName::KeysClosed {
            assert_eq!(guest.ask(ControlRequest::Seal {}), Ok(ControlAnswer::Sealed {}));
        }
        let expected =
            if name == EventName::Serve { Err(Failure::NotConfigured) } else { Ok(ControlAnswer::Extended {}) };
        assert_eq!(guest.extend(name), expected);
    }
}
