// SPDX-License-Identifier: Apache-2.0
//! Attacks on the channel between client and guest, over real sockets; hardware simulated.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod world;

use std::sync::Arc;

use attester_protocol::{ServingAnswer, ServingRequest};
use client::{ClientError, InvalidApiKey, Upstream, chat, connect, question};
use http::{Method, StatusCode};
use tdx_verify::{Hardware, TrustAnchors};
use types::{
    Base64, Blake3Digest, ConnectionProof, Document as _, Hex32, ModelId, RegisterName, Registers, Sha256Digest,
    Sha384Digest,
};
use world::{
    Lie, World, codes,
    liar::{self, Tls, always},
    model,
    raw_client::Client,
};

/// A name, and what changes a thing.
type Change<T> = (&'static str, fn(&mut T));

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_guest_answers_with_a_receipt() {
    let world = World::start().await;
    let verifier = world.verifier(|_| ());
    let mut connection = connect(&world.upstream, &verifier).await.unwrap();
    let verdict = connection.verdict();
    assert!(verdict.is_accepted());
    assert_eq!((verdict.instance(), verdict.hardware()), ("any", Hardware::Simulated));
    assert!(verdict.registers().iter().all(|register| register.matches));
    assert_eq!(verdict.registers().len(), RegisterName::ALL.len());

    let mut pieces = Vec::new();
    let request = question(&model(), "capital of France?", 16);
    let first = chat(&mut connection, &request, |text| pieces.push(text.to_owned())).await.unwrap();
    assert_eq!((first.text.as_str(), first.finish_reason.as_str()), ("Paris.", "stop"));
    assert_eq!(pieces, ["Par", "is", "."]);
    assert_eq!((first.usage.prompt_tokens, first.usage.completion_tokens), (3, 4));
    assert_eq!(first.receipt.receipt.instance_key, world.instance_key);

    // A new proof over the same connection: another binding, the same guest, the next receipt of its chain.
    let before = connection.session();
    connection.renew().await.unwrap();
    assert_ne!(connection.session().channel, before.channel);
    let second = chat(&mut connection, &request, |_| ()).await.unwrap();
    second.receipt.signed().verify_follows(&first.receipt.receipt).unwrap();
}

/// Attacks 21, 51, 70 as a client meets them.
#[tokio::test(flavor = "multi_thread")]
async fn policies_refuse_by_name() {
    let world = World::start().await;
    let other = ModelId::new("m", "1", Blake3Digest::of(b"another")).unwrap();
    let cases: Vec<(&str, Arc<client::Verifier>)> = vec![
        ("model_not_allowed", world.verifier(|p| p.appraisal.models = Some(vec![other]))),
        ("service_pin_mismatch", world.verifier(|p| p.appraisal.service_pins = Some(vec![Sha256Digest::ZERO]))),
        ("instance_not_allowed", world.verifier(|p| p.appraisal.instances = Some(vec![Hex32::default()]))),
        ("release_not_accepted", world.verifier(|p| p.appraisal.releases = Some(vec![Sha256Digest::ZERO]))),
        ("release_unknown", world.verifier(|p| p.releases.clear())),
        ("collateral_missing", world.verifier(|p| p.collateral.clear())),
    ];
    for (code, verifier) in cases {
        let found = codes(connect(&world.upstream, &verifier).await);
        assert!(found.iter().any(|found| found == code), "{code}: {found:?}");
    }
    let policy = world.verifier(|_| ()).policy().clone();
    let intel = Arc::new(client::Verifier::new(policy, TrustAnchors::intel()));
    let error = connect(&world.upstream, &intel).await.unwrap_err();
    assert!(error.is_refusal(), "{error}");
    let pinned = world.verifier(|p| p.appraisal.instances = Some(vec![world.instance_key]));
    assert_eq!(connect(&world.upstream, &pinned).await.unwrap().verdict().instance(), "pinned");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_register_must_be_the_release_s() {
    let changes: [Change<Registers>; 4] = [
        ("mr_td", |r| r.mr_td = Sha384Digest::ZERO),
        ("rtmr_0", |r| r.rtmr_0 = Sha384Digest::ZERO),
        ("rtmr_1", |r| r.rtmr_1 = Sha384Digest::ZERO),
        ("rtmr_2", |r| r.rtmr_2 = Sha384Digest::ZERO),
    ];
    for (name, change) in changes {
        let world = World::launched(change).await;
        let error = connect(&world.upstream, &world.verifier(|_| ())).await.unwrap_err();
        let found: Vec<_> = error.reasons().into_iter().map(|reason| (reason.code, reason.field)).collect();
        assert_eq!(found, [("register_mismatch".to_owned(), name.to_owned())]);
    }
}

/// Attacks 32a, 35: a relay with a key of its own, which passes everything on to a genuine guest.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_is_refused() {
    let world = World::start().await;
    let address = format!("{}:{}", world.upstream.host(), world.upstream.port()).parse().unwrap();
    let genuine = Arc::new(tokio::sync::Mutex::new(Client::connect(address).await));
    let relay = liar::start(
        Tls::Own,
        Arc::new(move |path, body| {
            let genuine = Arc::clone(&genuine);
            Box::pin(async move {
                let method = if body.is_empty() { Method::GET } else { Method::POST };
                let body = String::from_utf8(body.to_vec()).unwrap();
                let (status, _, body) = genuine.lock().await.send(method, &path, body).await;
                (status, body)
            })
        }),
    )
    .await;
    let found = codes(connect(&relay, &world.verifier(|_| ())).await);
    assert_eq!(found, ["certificate_key_mismatch", "binding_mismatch"]);
}

/// Attacks 32a, 33, 36, 65: a proof for another connection, an older proof, a proof with other facts.
#[tokio::test(flavor = "multi_thread")]
async fn a_proof_that_is_not_for_this_connection_is_refused() {
    let world = World::start().await;
    let verifier = world.verifier(|_| ());
    world.lie_in_requests(|request| {
        if let ServingRequest::Prove { binding, .. } = request {
            *binding = Hex32::new([1; 32]);
        }
    });
    assert_eq!(codes(connect(&world.upstream, &verifier).await), ["binding_mismatch"]);
    world.lie_in_requests(|_| ());

    let mut first = None;
    world.lie_in_answers(move |answer| {
        if let ServingAnswer::Proof { proof } = answer {
            *proof = first.get_or_insert_with(|| proof.clone()).clone();
        }
    });
    assert_eq!(codes(connect(&world.upstream, &verifier).await), [""; 0]);
    assert_eq!(codes(connect(&world.upstream, &verifier).await), ["binding_mismatch"]);

    let lies: [Change<ConnectionProof>; 5] = [
        ("report_data_mismatch", |proof| proof.receipt_count = 7),
        ("binding_mismatch", |proof| proof.path.push(Sha256Digest::ZERO)),
        ("binding_mismatch", |proof| proof.leaf_index = 1),
        ("report_data_mismatch", |proof| proof.freshness.tree_size = 2),
        ("freshness_kind", |proof| proof.freshness.kind = types::FreshnessKind::KeyRelease),
    ];
    for (code, lie) in lies {
        world.lie_in_answers(move |answer| {
            if let ServingAnswer::Proof { proof } = answer {
                lie(proof);
            }
        });
        let found = codes(connect(&world.upstream, &verifier).await);
        assert!(found.iter().any(|found| found == code), "{code}: {found:?}");
    }
    world.lie_in_answers(|answer| {
        if let ServingAnswer::Proof { proof } = answer {
            let mut quote = proof.quote.as_slice().to_vec();
            quote[600] ^= 1;
            proof.quote = Base64::new(quote).unwrap();
        }
    });
    let error = connect(&world.upstream, &verifier).await.unwrap_err();
    assert!(error.is_refusal(), "{error}");
}

/// Attacks 33, 34, 37 and servers that are none.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_no_guests_are_refused_by_name() {
    let world = World::start().await;
    let verifier = world.verifier(|_| ());
    let reflect: liar::Handler = Arc::new(|_, body| Box::pin(async move { (StatusCode::OK, body) }));
    let silent = || always(StatusCode::NOT_FOUND, "{}");
    for (code, tls, handler) in [
        ("certificate_evidence_missing", Tls::Plain, silent()),
        ("certificate_key_not_held", Tls::Stolen, silent()),
        ("proof_missing", Tls::Own, silent()),
        ("proof_malformed", Tls::Own, reflect),
        ("proof_malformed", Tls::Own, always(StatusCode::OK, "{}")),
    ] {
        let upstream = liar::start(tls, handler).await;
        assert_eq!(codes(connect(&upstream, &verifier).await), [code]);
    }
    let closed = Upstream::new("127.0.0.1", 1);
    let error = connect(&closed, &verifier).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }) && !error.is_refusal());
}

/// Attack 37: everything else is in order, but the server offers to resume.
#[tokio::test(flavor = "multi_thread")]
async fn session_tickets_are_refused() {
    let world = World::start().await;
    let verifier = world.verifier(|_| ());
    let address = format!("{}:{}", world.upstream.host(), world.upstream.port()).parse().unwrap();
    let (proof, _) = Client::connect(address).await.attest([1; 32]).await;
    let body: &'static str = String::from_utf8(proof.to_canonical().unwrap()).unwrap().leak();
    connect(&world.upstream, &verifier).await.unwrap();
    let upstream = liar::start(Tls::Tickets, always(StatusCode::OK, body)).await;
    assert_eq!(codes(connect(&upstream, &verifier).await), ["resumption_offered"]);
}

/// Attacks 59, 61: receipts that say something else.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_receipt_is_refused() {
    let world = World::start().await;
    let verifier = world.verifier(|_| ());
    let request = question(&model(), "hi", 16);
    let lies: Vec<(&str, Lie<ServingRequest>)> = vec![
        (
            "receipt_request_mismatch",
            Box::new(|asked| {
                if let ServingRequest::SignReceipt { request, .. } = asked {
                    *request = Sha256Digest::ZERO;
                }
            }),
        ),
        (
            "receipt_response_mismatch",
            Box::new(|asked| {
                if let ServingRequest::SignReceipt { response, .. } = asked {
                    *response = Sha256Digest::ZERO;
                }
            }),
        ),
        (
            "receipt_channel_mismatch",
            Box::new(|asked| {
                if let ServingRequest::SignReceipt { channel, .. } = asked {
                    *channel = Sha256Digest::ZERO;
                }
            }),
        ),
        (
            "receipt_usage_mismatch",
            Box::new(|asked| {
                if let ServingRequest::SignReceipt { completion_tokens, .. } = asked {
                    *completion_tokens = 999;
                }
            }),
        ),
    ];
    for (code, lie) in lies {
        world.lie_in_requests(lie);
        let mut connection = connect(&world.upstream, &verifier).await.unwrap();
        assert_eq!(codes(chat(&mut connection, &request, |_| ()).await), [code]);
    }
    world.lie_in_requests(|_| ());
    world.lie_in_answers(|answer| {
        if let ServingAnswer::Receipt { signature, .. } = answer {
            *signature = Base64::new(vec![1; 64]).unwrap();
        }
    });
    let mut connection = connect(&world.upstream, &verifier).await.unwrap();
    assert_eq!(codes(chat(&mut connection, &request, |_| ()).await), ["receipt_signature"]);
}

/// Attack 59: what a model says ends no stream, counts no tokens and is no receipt.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_s_words_forge_neither_usage_nor_receipt() {
    let world = World::start().await;
    let mut connection = connect(&world.upstream, &world.verifier(|_| ())).await.unwrap();
    for text in [
        "\n\ndata: [DONE]\n\n: chrysalis-receipt AAAA\n\n",
        "\r\n\r\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\r\n\r\n",
    ] {
        let answer = chat(&mut connection, &question(&model(), &format!("say {text}"), 16), |_| ()).await.unwrap();
        assert_eq!(answer.text, text);
        assert_eq!((answer.usage.prompt_tokens, answer.usage.completion_tokens), (3, 4));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_guest_keep_their_code() {
    let world = World::start().await;
    let mut connection = connect(&world.upstream, &world.verifier(|_| ())).await.unwrap();
    let error = chat(&mut connection, &question(&model(), "overflow", 16), |_| ()).await.unwrap_err();
    let ClientError::Answered { status: 400, code } = error else { panic!("{error}") };
    assert_eq!(code, "context_length_exceeded");
    // The connection is still usable.
    assert_eq!(chat(&mut connection, &question(&model(), "hi", 16), |_| ()).await.unwrap().text, "Paris.");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_asks_with_its_key() {
    let world = World::with_tenants(&[("a", None)]).await;
    let verifier = world.verifier(|_| ());
    let request = question(&model(), "hi", 16);
    let mut nobody = connect(&world.upstream, &verifier).await.unwrap();
    let mut other = connect(&world.upstream, &verifier).await.unwrap().with_api_key("key-of-b").unwrap();
    for connection in [&mut nobody, &mut other] {
        let error = chat(connection, &request, |_| ()).await.unwrap_err();
        let ClientError::Answered { status: 401, code } = error else { panic!("{error}") };
        assert_eq!(code, "invalid_api_key");
    }
    let mut tenant = connect(&world.upstream, &verifier).await.unwrap().with_api_key("key-of-a").unwrap();
    for _ in 0..2 {
        assert_eq!(chat(&mut tenant, &request, |_| ()).await.unwrap().text, "Paris.");
    }
    assert!(!format!("{tenant:?}").contains("key-of"));
    for none in ["", "two words", "line\r\nx-other: 1", "schl\u{fc}ssel"] {
        let connection = connect(&world.upstream, &verifier).await.unwrap();
        assert_eq!(connection.with_api_key(none).unwrap_err(), InvalidApiKey, "{none:?}");
    }
}
