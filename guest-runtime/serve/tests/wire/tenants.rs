// SPDX-License-Identifier: Apache-2.0
//! A model with tenants: who has no key gets nothing, who has one gets as much as it allows.

use std::time::Duration;

use engine_protocol::{Command, Generate, Tenant as EngineTenant};
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;
use serve::{Limits, StartError};
use types::{Blake3Digest, Document as _, ModelId, Sha256Digest, Tenants, tenants::Tenant};

use crate::{
    Guest,
    support::{Client, chat_body, model},
};

/// Its key is `key-of-` and its id.
fn tenant(id: &str, change: impl FnOnce(&mut Tenant)) -> Tenant {
    let mut tenant = Tenant {
        id: id.to_owned(),
        keys: vec![Sha256Digest::of(format!("key-of-{id}").as_bytes())],
        max_tokens: None,
        requests_at_once: None,
        requests_per_minute: None,
        tokens_per_minute: None,
    };
    change(&mut tenant);
    tenant
}

fn document(tenants: Vec<Tenant>) -> Vec<u8> {
    Tenants { schema: Tenants::SCHEMA.into(), model: model(), tenants }.to_canonical().unwrap()
}

async fn guest(tenants: Vec<Tenant>) -> Guest {
    Guest::start_with(Limits::default(), Some(document(tenants))).await.unwrap()
}

fn code(body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap();
    json["error"]["code"].as_str().unwrap_or_default().to_owned()
}

fn generated(guest: &Guest) -> Vec<Generate> {
    let of = |command: &Command| if let Command::Generate(request) = command { Some(request.clone()) } else { None };
    guest.engine.commands.lock().unwrap().iter().filter_map(of).collect()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..2000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never holds");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_key_gets_the_proof_and_nothing_else() {
    let guest = guest(vec![tenant("a", |_| ())]).await;
    // The proof comes first: no key is asked for before it, nor of use.
    let mut early = Client::connect(guest.address).await;
    early.headers.insert("authorization", "Bearer key-of-a".parse().unwrap());
    let (status, _, body) = early.chat("hi", "").await;
    assert_eq!((status, code(&body).as_str()), (StatusCode::PRECONDITION_REQUIRED, "attestation_required"));
    for key in [None, Some("Bearer key-of-b"), Some("Bearer "), Some("Basic key-of-a"), Some("key-of-a")] {
        let (mut client, _) = Client::proven(guest.address).await;
        client.headers.extend(key.map(|key| (http::header::AUTHORIZATION, key.parse().unwrap())));
        for (method, path) in [
            (Method::POST, "/v1/chat/completions"),
            (Method::POST, "/v1/completions"),
            (Method::POST, "/v1/embeddings"),
            (Method::GET, "/v1/models"),
            (Method::GET, "/v1/receipts/x"),
            (Method::GET, "/v1/nothing"),
        ] {
            // Nobody looks at what it sent.
            let sent = if method == Method::POST { "{" } else { "" };
            let (status, headers, body) = client.send(method, path, sent).await;
            assert_eq!((status, code(&body).as_str()), (StatusCode::UNAUTHORIZED, "invalid_api_key"), "{key:?} {path}");
            assert_eq!(text(&headers, "www-authenticate"), "Bearer");
            let said = String::from_utf8(body.to_vec()).unwrap();
            assert!(!said.contains("key-of") && headers.keys().all(|name| !name.as_str().starts_with("x-ratelimit")));
        }
        // Another proof, and the evidence, are anybody's.
        client.attest([8; 32]).await;
        let path = format!("/v1/attestation/evidence/{}", guest.attester.evidence_digest());
        assert_eq!(client.send(Method::GET, &path, "").await.0, StatusCode::OK);
    }
    assert_eq!(guest.asked(), 0);
    let mut client = Client::of_tenant(guest.address, "key-of-a").await;
    assert_eq!(client.chat("hi", "").await.0, StatusCode::OK);
    assert_eq!(client.send(Method::GET, "/v1/models", "").await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_does_not_start_with_a_document_that_is_not_its_own() {
    let other = ModelId::new("m", "1", Blake3Digest::of(b"another")).unwrap();
    let swapped = Tenants { schema: Tenants::SCHEMA.into(), model: other, tenants: vec![] }.to_canonical().unwrap();
    let twice = document(vec![tenant("a", |_| ()), tenant("b", |b| b.keys = tenant("a", |_| ()).keys)]);
    let good = document(vec![tenant("a", |_| ())]);
    let unknown = String::from_utf8(good.clone()).unwrap().replace("\"id\"", "\"burst\":1,\"id\"").into_bytes();
    for bad in [swapped, twice, unknown, vec![], [good.as_slice(), &vec![b' '; 256 << 10]].concat()] {
        let refused = Guest::start_with(Limits::default(), Some(bad)).await;
        assert!(matches!(refused.err(), Some(StartError::Tenants(_))));
    }
    assert!(Guest::start_with(Limits::default(), Some(good)).await.is_ok());
}

/// What the engine keeps is a tenant's over all of its connections, and goes when the tenant is gone for long.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_one_over_its_connections() {
    let limits = Limits { tenant_idle: Duration::from_millis(400), ..Limits::default() };
    let tenants = document(vec![tenant("a", |_| ()), tenant("b", |_| ())]);
    let guest = Guest::start_with(limits, Some(tenants)).await.unwrap();
    // A connection may carry the requests of several: a proxy's do.
    let mut first = Client::of_tenant(guest.address, "key-of-a").await;
    let mut second = Client::of_tenant(guest.address, "key-of-a").await;
    let (_, _, answer) = first.chat("hi", "").await;
    second.chat("hi", "").await;
    second.headers.insert("authorization", "Bearer key-of-b".parse().unwrap());
    second.chat("hi", "").await;
    let seen: Vec<EngineTenant> = generated(&guest).iter().map(|request| request.tenant).collect();
    assert!(seen[0] == seen[1] && seen[0] != seen[2] && seen[0].0 != [0; 32]);
    // Receipts are each tenant's own.
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    let path = format!("/v1/receipts/{}", answer["id"].as_str().unwrap());
    assert_eq!(second.send(Method::GET, &path, "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(first.send(Method::GET, &path, "").await.0, StatusCode::OK);
    // The ends of connections change nothing: the next one goes on where they were.
    drop((first, second));
    let mut third = Client::of_tenant(guest.address, "key-of-a").await;
    third.chat("hi", "").await;
    let forgotten = |tenant| guest.engine.commands.lock().unwrap().contains(&Command::Forget { tenant });
    assert!(generated(&guest)[3].tenant == seen[0] || forgotten(seen[0]), "kept until it was idle for so long");
    until(async || forgotten(seen[0]) && forgotten(seen[2])).await;
    third.chat("hi", "").await;
    assert!(!seen.contains(&generated(&guest).last().unwrap().tenant), "another one begins anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_have_a_rate_and_a_number_at_once() {
    let guest = guest(vec![
        tenant("a", |tenant| tenant.requests_per_minute = Some(2)),
        tenant("b", |tenant| tenant.requests_at_once = Some(1)),
    ])
    .await;
    let mut client = Client::of_tenant(guest.address, "key-of-a").await;
    for remaining in ["1", "0"] {
        let (status, headers, _) = client.chat("hi", "").await;
        assert_eq!((status, text(&headers, "x-ratelimit-limit-requests")), (StatusCode::OK, "2"));
        assert_eq!(text(&headers, "x-ratelimit-remaining-requests"), remaining);
        assert!(text(&headers, "x-ratelimit-reset-requests").ends_with('s'));
    }
    // Over another connection, too, and before anybody reads its body.
    let mut other = Client::of_tenant(guest.address, "key-of-a").await;
    let (status, headers, body) = other.send(Method::POST, "/v1/chat/completions", "{").await;
    assert_eq!((status, code(&body).as_str()), (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded"));
    let wait: u64 = text(&headers, "retry-after").parse().unwrap();
    assert!((20..=30).contains(&wait), "{wait}");
    assert_eq!(
        other.send(Method::GET, "/v1/models", "").await.0,
        StatusCode::OK,
        "what computes nothing is not counted"
    );

    let mut running = Client::of_tenant(guest.address, "key-of-b").await;
    let hanging = running.start(Method::POST, "/v1/chat/completions", chat_body("hang", ",\"stream\":true")).await;
    assert_eq!(hanging.status(), StatusCode::OK);
    let mut second = Client::of_tenant(guest.address, "key-of-b").await;
    let (status, headers, body) = second.chat("hi", "").await;
    assert_eq!((status, code(&body).as_str()), (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded"));
    assert_eq!(text(&headers, "retry-after"), "1");
    drop((running, hanging));
    until(async || second.chat("hi", "").await.0 == StatusCode::OK).await;
}

/// The stand-in counts three tokens in a prompt and four in an answer; one comes back in 600 milliseconds.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_reserved_and_what_is_not_used_comes_back() {
    let guest = guest(vec![tenant("a", |tenant| tenant.tokens_per_minute = Some(100))]).await;
    let mut client = Client::of_tenant(guest.address, "key-of-a").await;
    let (status, headers, _) = client.chat("hi", ",\"max_tokens\":90").await;
    assert_eq!((status, text(&headers, "x-ratelimit-limit-tokens")), (StatusCode::OK, "100"));
    let left: u32 = text(&headers, "x-ratelimit-remaining-tokens").parse().unwrap();
    assert!((93..96).contains(&left), "7 were used: {left}");
    // A stream that takes what is there, and is cancelled.
    let mut running = Client::of_tenant(guest.address, "key-of-a").await;
    let extra = ",\"max_tokens\":80,\"stream\":true";
    let hanging = running.start(Method::POST, "/v1/chat/completions", chat_body("hang", extra)).await;
    assert_eq!(hanging.status(), StatusCode::OK);
    let (status, headers, body) = client.chat("hi", ",\"max_tokens\":50").await;
    assert_eq!((status, code(&body).as_str()), (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded"));
    let wait: u64 = text(&headers, "retry-after").parse().unwrap();
    assert!((15..=30).contains(&wait), "{wait}");
    drop((running, hanging));
    until(async || client.chat("hi", ",\"max_tokens\":70").await.0 == StatusCode::OK).await;
    // What the engine refuses costs nothing.
    let left = async |client: &mut Client| -> u32 {
        let (_, headers, _) = client.send(Method::GET, "/v1/models", "").await;
        text(&headers, "x-ratelimit-remaining-tokens").parse().unwrap()
    };
    let before = left(&mut client).await;
    let (status, _, _) = client.chat("overflow", ",\"max_tokens\":20").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(left(&mut client).await >= before);
}

/// Tokens that were made likely may have no text: nobody sees how many were computed when the client hangs up.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_makes_tokens_likely_and_hangs_up_pays_for_all_of_them() {
    let guest = guest(vec![tenant("a", |tenant| tenant.tokens_per_minute = Some(1000))]).await;
    let mut client = Client::of_tenant(guest.address, "key-of-a").await;
    let left = async |client: &mut Client| -> u32 {
        let (_, headers, _) = client.send(Method::GET, "/v1/models", "").await;
        text(&headers, "x-ratelimit-remaining-tokens").parse().unwrap()
    };
    let cut_off = async |extra: &str| {
        let mut running = Client::of_tenant(guest.address, "key-of-a").await;
        let extra = format!(",\"max_tokens\":400,\"stream\":true{extra}");
        let hanging = running.start(Method::POST, "/v1/chat/completions", chat_body("hang", &extra)).await;
        assert_eq!(hanging.status(), StatusCode::OK);
        drop((running, hanging));
    };
    cut_off("").await;
    until(async || left(&mut client).await > 950).await;
    cut_off(",\"logit_bias\":{\"1\":100}").await;
    // Longer than the guest needs to notice, shorter than a minute needs to give 200 back.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let left = left(&mut client).await;
    assert!(left < 800, "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_no_longer_than_the_key_allows() {
    let guest = guest(vec![tenant("a", |tenant| tenant.max_tokens = Some(8))]).await;
    let mut client = Client::of_tenant(guest.address, "key-of-a").await;
    for name in ["max_tokens", "max_completion_tokens"] {
        let (status, _, body) = client.chat("hi", &format!(",\"{name}\":9")).await;
        assert_eq!((status, code(&body).as_str()), (StatusCode::BAD_REQUEST, "invalid_value"));
    }
    assert_eq!(guest.asked(), 0);
    client.chat("hi", ",\"max_tokens\":8").await;
    client.chat("hi", "").await;
    client.send(Method::POST, "/v1/completions", r#"{"model":"m","prompt":"hi"}"#).await;
    let asked: Vec<_> = generated(&guest).iter().map(|request| (request.max_tokens, request.most_tokens)).collect();
    assert_eq!(asked, [(Some(8), None), (None, Some(8)), (Some(8), None)]);
}

/// Without a document all is as it was: a key changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_tenants_answers_whoever_has_a_proof() {
    let guest = Guest::start().await;
    for key in [None, Some("Bearer anything")] {
        let (mut client, _) = Client::proven(guest.address).await;
        client.headers.extend(key.map(|key| (http::header::AUTHORIZATION, key.parse().unwrap())));
        let (status, headers, _) = client.chat("hi", "").await;
        assert_eq!(status, StatusCode::OK);
        assert!(headers.keys().all(|name| !name.as_str().starts_with("x-ratelimit")));
    }
}
