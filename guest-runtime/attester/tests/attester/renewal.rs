// SPDX-License-Identifier: Apache-2.0
//! Renewal of the TLS key, with certificate and evidence: what old connections go on with, and for how long.

use attested_channel::{GuestCertificate, Moment, Receipt, expected_events};
use attester_protocol::{
    Failure, Identity, ServingAnswer, ServingRequest, TlsSide,
    serving::{OLD_KEYS, TLS_SCHEME},
};
use types::{Base64, Document as _, Evidence, FreshnessKind, Hex32, Sha256Digest};

use crate::{
    guest::{Guest, Serve, gpu, model, time},
    serving::{identity, leaf, verify},
};

/// Has the key renewed, and gives who the guest is then.
fn renewed(guest: &Guest, serve: &mut Serve, before: &Identity) -> Identity {
    guest.renewer.renew();
    successor(serve.ask(&ServingRequest::Successor { key: before.spki_sha256 }))
}

fn successor(answer: Result<ServingAnswer, Failure>) -> Identity {
    let Ok(ServingAnswer::Identity(identity)) = answer else { panic!("no successor") };
    *identity
}

fn prove(key: Sha256Digest, number: u64) -> ServingRequest {
    let leaf = leaf(number, FreshnessKind::Tls);
    let (challenge, binding) = (Hex32::new(leaf.challenge), Hex32::new(leaf.binding));
    ServingRequest::Prove { key, kind: FreshnessKind::Tls, challenge, binding }
}

fn sign(key: Sha256Digest, side: TlsSide) -> ServingRequest {
    let context: &[u8] = match side {
        TlsSide::Server => b"TLS 1.3, server CertificateVerify\0",
        TlsSide::Client => b"TLS 1.3, client CertificateVerify\0",
    };
    let message = Base64::new([&[0x20; 64], context, &[7; 32]].concat()).unwrap();
    ServingRequest::SignTls { key, side, scheme: TLS_SCHEME, message }
}

fn receipt(evidence: &Identity) -> ServingRequest {
    let other = Sha256Digest::of(b"other");
    ServingRequest::SignReceipt {
        evidence: Sha256Digest::of(evidence.evidence.as_slice()),
        request: other,
        response: other,
        prompt_tokens: 1,
        completion_tokens: 1,
        channel: other,
    }
}

#[test]
fn both_keys_prove_and_sign_and_the_new_evidence_has_the_newest_receipt() {
    let guest = Guest::serving();
    let mut serve = guest.connect();
    let old = identity(&mut serve);
    let Ok(ServingAnswer::Receipt { receipt: signed, .. }) = serve.ask(&receipt(&old)) else { panic!("no receipt") };
    let newest = Receipt::from_canonical(signed.as_slice()).unwrap().digest().unwrap();
    let new = renewed(&guest, &mut serve, &old);
    assert_eq!(identity(&mut serve), Identity { unix: identity(&mut serve).unix, ..new.clone() });
    assert_ne!(new.spki_sha256, old.spki_sha256);
    assert_eq!((new.instance_key, old.instance_key), (guest.instance_key, guest.instance_key));
    let certificate = GuestCertificate::from_der(new.certificates[0].as_slice()).unwrap();
    assert_eq!(certificate.spki_sha256, new.spki_sha256);
    assert_eq!(certificate.evidence.evidence, Sha256Digest::of(new.evidence.as_slice()));
    let evidence = Evidence::from_canonical(new.evidence.as_slice()).unwrap();
    assert_eq!((evidence.spki_sha256, evidence.instance_key), (new.spki_sha256, guest.instance_key));
    assert_eq!((evidence.receipt_count, evidence.receipt_head), (1, newest));
    // The register cannot forget: its events name the key that the guest began with.
    let (time, gpu, model) = (time(), gpu(), model());
    assert_eq!(evidence.events, expected_events(&guest.facts(&time, &gpu, &model), Moment::Serving).unwrap());
    for known in [&old, &new] {
        let Ok(ServingAnswer::Proof { proof }) = serve.ask(&prove(known.spki_sha256, 3)) else { panic!("no proof") };
        verify(known.evidence.as_slice(), &proof, &leaf(3, FreshnessKind::Tls));
        for side in [TlsSide::Server, TlsSide::Client] {
            assert!(serve.ask(&sign(known.spki_sha256, side)).is_ok());
        }
        assert!(serve.ask(&receipt(known)).is_ok());
    }
}

#[test]
fn one_quote_answers_the_connections_of_one_key() {
    let guest = Guest::serving();
    let mut serve = guest.connect();
    let old = identity(&mut serve);
    let new = renewed(&guest, &mut serve, &old);
    let (started, go) = guest.hold_next_quote();
    serve.send(0, &prove(new.spki_sha256, 0));
    started.recv().unwrap();
    for (id, of) in [(1, &old), (2, &new), (3, &old)] {
        serve.send(id, &prove(of.spki_sha256, id));
    }
    serve.send(9, &ServingRequest::Identity {});
    assert_eq!(serve.receive().0, 9);
    go.send(()).unwrap();
    for _ in 0..4 {
        let (id, Ok(ServingAnswer::Proof { proof })) = serve.receive() else { panic!("no proof") };
        let of = if id % 2 == 1 { &old } else { &new };
        verify(of.evidence.as_slice(), &proof, &leaf(id, FreshnessKind::Tls));
        assert_eq!(proof.freshness.tree_size, if id % 2 == 1 { 2 } else { 1 });
    }
}

#[test]
fn a_successor_is_told_when_there_is_one() {
    let guest = Guest::serving();
    let (mut serve, mut other) = (guest.connect(), guest.connect());
    let old = identity(&mut serve);
    serve.send(1, &ServingRequest::Successor { key: old.spki_sha256 });
    // What is asked later is answered earlier.
    serve.send(2, &ServingRequest::Identity {});
    assert_eq!(serve.receive().0, 2);
    guest.renewer.renew();
    let (1, answer) = serve.receive() else { panic!("another answer") };
    assert_ne!(successor(answer).spki_sha256, old.spki_sha256);
    // Who asks late is answered at once; who asks too often is told so.
    let new = successor(other.ask(&ServingRequest::Successor { key: old.spki_sha256 }));
    for id in 0..20 {
        other.send(id, &ServingRequest::Successor { key: new.spki_sha256 });
    }
    assert_eq!(other.receive(), (8, Err(Failure::Busy)));
}

#[test]
fn a_key_that_nobody_uses_is_given_up_and_the_newest_never() {
    let guest = Guest::serving();
    let mut serve = guest.connect();
    let old = identity(&mut serve);
    assert_eq!(serve.ask(&ServingRequest::Retire { key: old.spki_sha256 }), Err(Failure::KeyInUse));
    let new = renewed(&guest, &mut serve, &old);
    assert_eq!(serve.ask(&ServingRequest::Retire { key: old.spki_sha256 }), Ok(ServingAnswer::Retired {}));
    assert_eq!(serve.ask(&prove(old.spki_sha256, 1)), Err(Failure::UnknownKey));
    assert_eq!(serve.ask(&sign(old.spki_sha256, TlsSide::Server)), Err(Failure::UnknownKey));
    assert!(serve.ask(&prove(new.spki_sha256, 1)).is_ok());
}

#[test]
fn a_key_that_another_connection_holds_is_not_given_up_before_it_is_too_old() {
    let guest = Guest::serving();
    let (mut serve, mut other) = (guest.connect(), guest.connect());
    let old = identity(&mut serve);
    let key = old.spki_sha256;
    assert_eq!(other.ask(&ServingRequest::Hold { key }), Ok(ServingAnswer::Held {}));
    let mut newest = renewed(&guest, &mut serve, &old);
    assert_eq!(serve.ask(&ServingRequest::Retire { key }), Err(Failure::KeyInUse));
    assert!(other.ask(&prove(key, 1)).is_ok());
    // The end of the connection is the end of the hold.
    drop(other);
    while serve.ask(&ServingRequest::Retire { key }) == Err(Failure::KeyInUse) {}
    assert_eq!(serve.ask(&ServingRequest::Hold { key }), Err(Failure::UnknownKey));
    let mut other = guest.connect();
    let key = newest.spki_sha256;
    assert_eq!(other.ask(&ServingRequest::Hold { key }), Ok(ServingAnswer::Held {}));
    for _ in 0..=OLD_KEYS {
        newest = renewed(&guest, &mut serve, &newest);
    }
    assert_eq!(other.ask(&prove(key, 1)), Err(Failure::UnknownKey));
}

#[test]
fn a_key_outlives_some_renewals_and_its_evidence_is_named_after_that() {
    let guest = Guest::serving();
    let mut serve = guest.connect();
    let first = identity(&mut serve);
    let mut newest = first.clone();
    for _ in 0..OLD_KEYS {
        newest = renewed(&guest, &mut serve, &newest);
        assert!(serve.ask(&prove(first.spki_sha256, 1)).is_ok());
    }
    newest = renewed(&guest, &mut serve, &newest);
    assert_eq!(serve.ask(&prove(first.spki_sha256, 1)), Err(Failure::UnknownKey));
    assert_eq!(serve.ask(&sign(first.spki_sha256, TlsSide::Server)), Err(Failure::UnknownKey));
    // An answer that takes longer than that gets its receipt; one over evidence of another guest never.
    assert!(serve.ask(&receipt(&first)).is_ok());
    let mut foreign = newest;
    foreign.evidence = Base64::new(b"evidence of another guest".to_vec()).unwrap();
    assert_eq!(serve.ask(&receipt(&foreign)), Err(Failure::UnknownEvidence));
}
