// SPDX-License-Identifier: Apache-2.0
//! The serving socket: identity, proofs in batches, TLS signatures, receipts.

use attested_channel::{
    GuestCertificate, Leaf, Moment, Quoted, Receipt, ReportDataInputs, SignedReceipt, expected_events, verify_path,
};
use attester_protocol::{Failure, Identity, ServingAnswer, ServingRequest, TlsSide, serving::TLS_SCHEME};
use ed25519_dalek::{Signature, VerifyingKey};
use types::{Base64, ConnectionProof, Document as _, Evidence, Freshness, FreshnessKind, Hex32, Role, Sha256Digest};

use crate::guest::{Guest, Serve, gpu, model, quote, time};

pub(crate) fn identity(serve: &mut Serve) -> Identity {
    let Ok(ServingAnswer::Identity(identity)) = serve.ask(&ServingRequest::Identity {}) else { panic!("no identity") };
    *identity
}

fn prove(guest: &Guest, number: u64, kind: FreshnessKind) -> ServingRequest {
    let Leaf { challenge, binding, .. } = leaf(number, kind);
    ServingRequest::Prove {
        key: guest.spki_sha256,
        kind,
        challenge: Hex32::new(challenge),
        binding: Hex32::new(binding),
    }
}

pub(crate) fn leaf(number: u64, kind: FreshnessKind) -> Leaf {
    let of = |label: &[u8]| *Sha256Digest::of_parts(&[label, &number.to_be_bytes()]).as_bytes();
    Leaf { kind, role: Role::Inference, challenge: of(b"challenge"), binding: of(b"binding") }
}

/// Verifies as a client does, but for the quote's signature.
pub(crate) fn verify(evidence: &[u8], proof: &ConnectionProof, leaf: &Leaf) {
    assert_eq!(proof.evidence, Sha256Digest::of(evidence));
    let evidence = Evidence::from_canonical(evidence).unwrap();
    let inputs = ReportDataInputs {
        receipt_head: proof.receipt_head,
        receipt_count: proof.receipt_count,
        freshness: proof.freshness.clone(),
        ..ReportDataInputs::of(&evidence).unwrap()
    };
    assert_eq!(proof.quote.as_slice(), quote(&inputs.report_data()));
    let Freshness { tree_size, root, .. } = &proof.freshness;
    verify_path(leaf, proof.leaf_index, *tree_size, &proof.path, root).unwrap();
}

#[test]
fn certificate_and_evidence_say_the_same() {
    let guest = Guest::serving();
    let identity = identity(&mut guest.connect());
    let certificate = GuestCertificate::from_der(identity.certificates[0].as_slice()).unwrap();
    let evidence = Evidence::from_canonical(identity.evidence.as_slice()).unwrap();
    assert_eq!(certificate.spki_sha256, guest.spki_sha256);
    assert_eq!(certificate.evidence.evidence, Sha256Digest::of(identity.evidence.as_slice()));
    assert_eq!(certificate.evidence.quote, evidence.quote);
    assert_eq!((evidence.spki_sha256, evidence.instance_key), (guest.spki_sha256, guest.instance_key));
    assert_eq!(evidence.freshness, Freshness::none());
    assert_eq!(evidence.quote.as_slice(), quote(&ReportDataInputs::of(&evidence).unwrap().report_data()));
    let (time, gpu, model) = (time(), gpu(), model());
    assert_eq!(evidence.events, expected_events(&guest.facts(&time, &gpu, &model), Moment::Serving).unwrap());
    assert!(identity.unix >= time.floor);
}

/// One slow quote is in flight: everything that arrives meanwhile shares exactly one further quote, while signatures
/// and receipts are not held back.
#[test]
fn challenges_during_a_quote_share_the_next_one() {
    let guest = Guest::serving();
    let evidence = identity(&mut guest.connect()).evidence;
    let (started, go) = guest.hold_next_quote();
    let mut first = guest.connect();
    first.send(0, &prove(&guest, 0, FreshnessKind::Tls));
    started.recv().unwrap();
    let mut connections: Vec<_> = (0..CONNECTIONS).map(|_| guest.connect()).collect();
    for (index, connection) in (0..).zip(&mut connections) {
        for number in 0..EACH {
            let id = 1 + index * EACH + number;
            connection.send(id, &prove(&guest, id, FreshnessKind::Tls));
        }
        // Its answer shows that the challenges before it have been taken in; and it overtakes them.
        connection.send(u64::MAX, &ServingRequest::Identity {});
        assert_eq!(connection.receive().0, u64::MAX);
    }
    go.send(()).unwrap();
    let (id, Ok(ServingAnswer::Proof { proof })) = first.receive() else { panic!("no proof") };
    assert_eq!((id, proof.freshness.tree_size), (0, 1));
    verify(evidence.as_slice(), &proof, &leaf(0, FreshnessKind::Tls));
    let mut roots = Vec::new();
    for connection in &mut connections {
        for _ in 0..EACH {
            let (id, Ok(ServingAnswer::Proof { proof })) = connection.receive() else { panic!("no proof") };
            assert_eq!(proof.freshness.tree_size, CONNECTIONS * EACH);
            verify(evidence.as_slice(), &proof, &leaf(id, FreshnessKind::Tls));
            roots.push(proof.freshness.root);
        }
    }
    assert_eq!(roots.len() as u64, CONNECTIONS * EACH);
    assert!(roots.iter().all(|root| *root == roots[0]));
}

#[test]
fn a_tree_has_leaves_of_one_kind() {
    let guest = Guest::serving();
    let (started, go) = guest.hold_next_quote();
    let mut serve = guest.connect();
    serve.send(0, &prove(&guest, 0, FreshnessKind::Tls));
    started.recv().unwrap();
    for (id, kind) in [(1, FreshnessKind::Hpke), (2, FreshnessKind::Tls), (3, FreshnessKind::Hpke)] {
        serve.send(id, &prove(&guest, id, kind));
    }
    serve.send(9, &ServingRequest::Identity {});
    assert_eq!(serve.receive().0, 9);
    go.send(()).unwrap();
    let mut sizes: Vec<_> = (0..4)
        .map(|_| {
            let (id, Ok(ServingAnswer::Proof { proof })) = serve.receive() else { panic!("no proof") };
            (id, proof.freshness.kind, proof.freshness.tree_size)
        })
        .collect();
    sizes.sort_unstable_by_key(|(id, ..)| *id);
    let (tls, hpke) = (FreshnessKind::Tls, FreshnessKind::Hpke);
    assert_eq!(sizes, [(0, tls, 1), (1, hpke, 2), (2, tls, 1), (3, hpke, 2)]);
}

/// A client's abandoned challenges must not cost `serve` its connection, and with it the guest its life.
#[test]
fn a_full_queue_says_busy_and_its_batch_reaches_one_connection() {
    let guest = Guest::serving();
    let (started, go) = guest.hold_next_quote();
    let mut serve = guest.connect();
    serve.send(0, &prove(&guest, 0, FreshnessKind::Tls));
    started.recv().unwrap();
    for id in 1..=MANY {
        serve.send(id, &prove(&guest, id, FreshnessKind::Tls));
    }
    serve.send(u64::MAX, &ServingRequest::Identity {});
    let answers = std::iter::from_fn(|| Some(serve.receive()).filter(|(id, _)| *id != u64::MAX));
    let busy = answers.inspect(|(_, answer)| assert_eq!(*answer, Err(Failure::Busy))).count() as u64;
    assert!((1..MANY).contains(&busy));
    go.send(()).unwrap();
    // Taken in only when the large batch has left the queue, and of the batch after it: the proof shows that the large
    // one has been delivered, unread.
    let mut last = guest.connect();
    while last.ask(&prove(&guest, 1, FreshnessKind::Tls)) == Err(Failure::Busy) {}
    for _ in 0..=MANY - busy {
        let (_, Ok(ServingAnswer::Proof { .. })) = serve.receive() else { panic!("no proof") };
    }
}

/// Attack 67, by way of serve.
#[test]
fn serve_may_not_ask_for_key_release_proofs() {
    let guest = Guest::serving();
    let mut serve = guest.connect();
    for kind in [FreshnessKind::KeyRelease, FreshnessKind::None] {
        assert_eq!(serve.ask(&prove(&guest, 1, kind)), Err(Failure::Kind));
    }
}

#[test]
fn only_certificate_verify_is_signed_and_only_by_the_keys_scheme() {
    let guest = Guest::serving();
    let mut serve = guest.connect();
    let content = [&[0x20; 64], b"TLS 1.3, server CertificateVerify\0".as_slice(), &[7; 48]].concat();
    let sign = |serve: &mut Serve, scheme, content: &[u8]| {
        serve.ask(&ServingRequest::SignTls {
            key: guest.spki_sha256,
            side: TlsSide::Server,
            scheme,
            message: Base64::new(content.to_vec()).unwrap(),
        })
    };
    let Ok(ServingAnswer::TlsSignature { signature }) = sign(&mut serve, TLS_SCHEME, &content) else {
        panic!("not signed")
    };
    let key = VerifyingKey::from_bytes(guest.tls_key.as_bytes()).unwrap();
    key.verify_strict(&content, &Signature::from_slice(signature.as_slice()).unwrap()).unwrap();
    assert_eq!(sign(&mut serve, 0x0403, &content), Err(Failure::Scheme));
    let client = [&[0x20; 64], b"TLS 1.3, client CertificateVerify\0".as_slice(), &[7; 48]].concat();
    for other in [client.as_slice(), b"chrysalis/receipt/v2", &content[..content.len() - 1], b""] {
        assert_eq!(sign(&mut serve, TLS_SCHEME, other), Err(Failure::NotCertificateVerify));
    }
}

#[test]
fn receipts_form_a_chain_whose_head_stands_in_later_proofs() {
    let guest = Guest::serving();
    let mut serve = guest.connect();
    let evidence = identity(&mut serve).evidence;
    let launch = Quoted::read(Evidence::from_canonical(evidence.as_slice()).unwrap().quote.as_slice()).unwrap().launch;
    let mut receipts: Vec<SignedReceipt> = Vec::new();
    for number in 0..3 {
        let request = ServingRequest::SignReceipt {
            evidence: Sha256Digest::of(evidence.as_slice()),
            request: Sha256Digest::of(b"request"),
            response: Sha256Digest::of(b"response"),
            prompt_tokens: number,
            completion_tokens: 2,
            channel: Sha256Digest::of(b"channel"),
        };
        let Ok(ServingAnswer::Receipt { receipt, signature }) = serve.ask(&request) else { panic!("no receipt") };
        let receipt = Receipt::from_canonical(receipt.as_slice()).unwrap();
        let signed = SignedReceipt { receipt, signature: signature.as_slice().try_into().unwrap() };
        signed.verify_signature().unwrap();
        assert_eq!((signed.receipt.sequence, &signed.receipt.model), (number, &model()));
        assert_eq!(signed.receipt.evidence, Sha256Digest::of(evidence.as_slice()));
        assert_eq!((signed.receipt.instance_key, signed.receipt.launch), (guest.instance_key, launch));
        if let Some(earlier) = receipts.last() {
            signed.verify_follows(&earlier.receipt).unwrap();
        }
        receipts.push(signed);
    }
    let Ok(ServingAnswer::Proof { proof }) = serve.ask(&prove(&guest, 1, FreshnessKind::Tls)) else {
        panic!("no proof")
    };
    verify(evidence.as_slice(), &proof, &leaf(1, FreshnessKind::Tls));
    assert_eq!((proof.receipt_count, proof.receipt_head), (3, receipts[2].receipt.digest().unwrap()));
}

#[test]
fn a_number_that_no_receipt_can_hold_does_not_move_the_chain() {
    let guest = Guest::serving();
    let mut serve = guest.connect();
    let evidence = Sha256Digest::of(identity(&mut serve).evidence.as_slice());
    let request = ServingRequest::SignReceipt {
        evidence,
        request: Sha256Digest::ZERO,
        response: Sha256Digest::ZERO,
        prompt_tokens: u64::MAX,
        completion_tokens: 0,
        channel: Sha256Digest::ZERO,
    };
    assert_eq!(serve.ask(&request), Err(Failure::TooLarge));
    let Ok(ServingAnswer::Proof { proof }) = serve.ask(&prove(&guest, 1, FreshnessKind::Tls)) else {
        panic!("no proof")
    };
    assert_eq!((proof.receipt_count, proof.receipt_head), (0, Sha256Digest::ZERO));
}

#[test]
fn a_hostile_connection_is_closed_and_others_go_on() {
    let guest = Guest::serving();
    let mut good = guest.connect();
    for bytes in [b"\xff\xff\xff\xff".as_slice(), b"\x00\x00\x00\x02{}", b"\x00\x00\x00\x01x"] {
        let mut bad = guest.connect();
        bad.send_raw(bytes);
        assert!(bad.is_closed());
        identity(&mut good);
    }
}

const CONNECTIONS: u64 = 5;
const EACH: u64 = 9;
/// More than may wait.
const MANY: u64 = 1500;
