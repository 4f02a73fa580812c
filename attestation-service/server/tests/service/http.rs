// SPDX-License-Identifier: Apache-2.0
//! The endpoints as any stranger reaches them.

use crate::world;

use std::{sync::Arc, time::Duration};

use rustls::{
    ClientConfig, DigitallySignedStruct, NamedGroup, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use store::{OpenOptions, Store};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use types::{Document as _, Sha384Digest};
use world::World;

async fn connect(
    world: &World,
    version: &'static rustls::SupportedProtocolVersion,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.enable_sni = false;
    let stream = TcpStream::connect(world.service.as_ref().unwrap().address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("x.invalid").unwrap(), stream).await
}

/// Status and body of one request on a connection of its own.
async fn send(world: &World, head: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = connect(world, &rustls::version::TLS13).await.unwrap();
    let request = format!("{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    // The service may answer and close before it has read everything.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("an answer");
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (status, answer[end + 4..].to_vec())
}

fn code(body: &[u8]) -> String {
    let document: serde_json::Value = serde_json::from_slice(body).unwrap();
    document["reasons"][0]["code"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_tls_1_3_with_the_hybrid_and_without_tickets() {
    let world = World::start().await;
    assert!(connect(&world, &rustls::version::TLS12).await.is_err());
    let mut stream = connect(&world, &rustls::version::TLS13).await.unwrap();
    stream.write_all(b"GET /v1/log/checkpoint HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let connection = stream.get_ref().1;
    assert_eq!(connection.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(connection.tls13_tickets_received(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_are_refused_with_a_code() {
    let world = World::start().await;
    let forged = format!("no JSON \"token\":\"{}\"}}", "00".repeat(56)).into_bytes();
    for (head, body, status, expected) in [
        ("GET /v1/time HTTP/1.1", &b""[..], 400, "request_malformed"),
        ("GET /v1/time?nonce=AA HTTP/1.1", b"", 400, "request_malformed"),
        ("POST /v1/challenges HTTP/1.1", b"x", 400, "request_malformed"),
        ("POST /v1/key-release HTTP/1.1", b"{}", 400, "request_malformed"),
        ("POST /v1/key-release HTTP/1.1", b"\xff", 400, "request_malformed"),
        // Token and work are looked at before anything else.
        ("POST /v1/key-release HTTP/1.1", &forged, 403, "challenge_unknown"),
        ("GET /v1/key-release HTTP/1.1", b"", 405, "method_not_allowed"),
        ("DELETE /v1/time HTTP/1.1", b"", 405, "method_not_allowed"),
        ("GET / HTTP/1.1", b"", 404, "not_found"),
        ("GET /v1/releases/../kek HTTP/1.1", b"", 404, "not_found"),
        ("GET /v1/releases/kek HTTP/1.1", b"", 400, "request_malformed"),
        ("GET /v1/log/tile/../../kek HTTP/1.1", b"", 404, "not_found"),
        ("GET /v1/log/tile/0/000.p/9 HTTP/1.1", b"", 404, "not_found"),
    ] {
        let (found, answer) = send(&world, head, body).await;
        assert_eq!((found, code(&answer).as_str()), (status, expected), "{head}");
    }
    let (status, answer) = send(&world, "POST /v1/key-release HTTP/1.1", &vec![b' '; (3 << 20) + 1]).await;
    assert_eq!((status, code(&answer).as_str()), (400, "request_malformed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_and_the_log_are_public() {
    let world = World::start().await;
    let guest = world.guest().await;
    assert!(world.ask(&guest).await.is_ok());
    let (status, bundle) = send(&world, &format!("GET /v1/releases/{} HTTP/1.1", world.release), b"").await;
    assert_eq!(status, 200);
    assert_eq!(*release::Bundle::from_json(&bundle).unwrap().digest().as_bytes(), *world.release.as_bytes());
    let (status, checkpoint) = send(&world, "GET /v1/log/checkpoint HTTP/1.1", b"").await;
    assert_eq!((status, checkpoint.starts_with(b"test.invalid/audit\n4\n")), (200, true));
    let (status, tile) = send(&world, "GET /v1/log/tile/0/000.p/4 HTTP/1.1", b"").await;
    assert_eq!((status, tile.len()), (200, 4 * 32));
    let (status, entries) = send(&world, "GET /v1/log/tile/entries/000.p/4 HTTP/1.1", b"").await;
    assert_eq!(status, 200);
    let text = String::from_utf8_lossy(&entries).into_owned();
    assert!(text.contains("chrysalis/audit/key-release/v1") && text.contains(&world.release.to_string()));
    // What the operator did before stands before it.
    let first = text.find("chrysalis/audit/operator-change/v1").unwrap();
    assert!(first < text.find("chrysalis/audit/key-release/v1").unwrap());
}

/// Believes every certificate: strangers need not know the pin.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// A peer that does not wait for its refusal stands on the audit log all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_logged_though_its_peer_went_away() {
    const ROUNDS: u64 = 12;
    let mut world = World::start().await;
    let guest = world.guest_with(|_| (), |registers| registers.mr_td = Sha384Digest::of(b"x")).await;
    let mut left = 0;
    for _ in 0..ROUNDS {
        let mut connection = world.connect().await;
        let challenge = connection.challenge().await.unwrap();
        let key = world::key_pair();
        let evidence = guest.evidence(&challenge, key.public()).to_canonical().unwrap();
        let model = world::model();
        let asked = connection.release(challenge.clone(), &model, evidence, key);
        // Gone while the service works on it, as a rule.
        let _ = tokio::time::timeout(Duration::from_millis(3), asked).await;
        drop(connection);
        // One refusal after the redemption for each challenge: of the request above or, where that did not arrive, of this.
        let again = world.connect().await.release(challenge, &model, b"{}".to_vec(), world::key_pair()).await;
        left += u64::from(world::reasons(again)[0].0 == "challenge_replayed");
    }
    world.service.take().unwrap().end().await;
    let options = OpenOptions { sequencer: false, ..OpenOptions::default() };
    let summary = Store::open_with(&world.store_dir(), &options).unwrap().verify_audit().unwrap();
    assert_eq!((summary.key_releases, summary.refusals), (0, ROUNDS), "{left} of them did not wait");
}
