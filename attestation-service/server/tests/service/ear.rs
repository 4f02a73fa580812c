// SPDX-License-Identifier: Apache-2.0
//! Attestation results: one goes with every key, none with a refusal; of files they come from the program.

use crate::world;

use std::{path::Path, process::Command, sync::Arc};

use attestation_result::{KeySet, Tier, verify};
use key_release::{ChallengeAnswer, KeyReleaseRequest};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use types::{Base64, Document as _, Sha256Digest, canonical};
use world::{Guest, NOW, World, key_pair, model};

async fn connect(world: &World) -> TlsStream<TcpStream> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.enable_sni = false;
    let stream = TcpStream::connect(world.service.as_ref().unwrap().address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("x.invalid").unwrap(), stream).await.unwrap()
}

/// Head and body of the answer to one request.
async fn exchange(stream: &mut TlsStream<TcpStream>, line: &str, body: &[u8]) -> (String, Vec<u8>) {
    let head = format!("{line} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        answer.push(byte[0]);
        if answer.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let head = String::from_utf8(answer).unwrap();
    let mut body = vec![0; header(&head, "content-length").unwrap().parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    (head, body)
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.split_once(": ").filter(|(found, _)| *found == name)).map(|(_, value)| value)
}

/// Asks for a key; gives the head of the answer and the challenge.
async fn ask(world: &World, guest: &Guest) -> (String, [u8; 32]) {
    let mut stream = connect(world).await;
    let (_, body) = exchange(&mut stream, "POST /v1/challenges", b"").await;
    let ChallengeAnswer { token, .. } = canonical::from_bytes(&body, 4096).unwrap();
    let challenge = token.challenge();
    let label = b"EXPORTER-chrysalis-attest-v1";
    let exporter: [u8; 32] = stream.get_ref().1.export_keying_material([0; 32], label, Some(&challenge)).unwrap();
    let evidence = guest.evidence_for(&challenge, &exporter, key_pair().public()).to_canonical().unwrap();
    let request = KeyReleaseRequest {
        schema: KeyReleaseRequest::SCHEMA.into(),
        token,
        model: model(),
        evidence: Base64::new(evidence).unwrap(),
        work: None,
    };
    let (head, _) = exchange(&mut stream, "POST /v1/key-release", &request.to_canonical().unwrap()).await;
    (head, challenge)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_comes_with_a_result_and_a_refusal_without() {
    let world = World::start().await;
    let guest = world.guest().await;
    let (head, challenge) = ask(&world, &guest).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let token = header(&head, "chrysalis-ear").expect("a result");
    assert!(token.len() <= 4096, "{} bytes", token.len());

    let (_, body) = exchange(&mut connect(&world).await, "GET /v1/ear/keys", b"").await;
    let keys = KeySet::verified(&body, Some(&world.pin)).unwrap();
    assert!(KeySet::verified(&body, Some(&Sha256Digest::of(b"other"))).is_err());
    let result = verify(token, &keys, None, NOW).unwrap();
    assert!(verify(token, &keys, None, NOW + 600).is_err(), "it ends");
    assert_eq!(result.eat_nonce, Some(Sha256Digest::of(&challenge).to_string()));
    // The hardware is simulated: that is never affirmed.
    assert_eq!((result.ear_status, result.submods.len()), (Tier::Warning, 1));
    let tdx = result.submods["tdx"].ear_verifier_claims.clone().unwrap();
    assert_eq!((tdx.bound, tdx.reasons.len()), (true, 0));
    let claims = tdx.claims.unwrap();
    assert_eq!((claims.release.unwrap().digest, claims.model.unwrap()), (world.release, model()));
    let policy = Sha256Digest::of(b"{\"schema\":\"chrysalis/appraisal-policy/v1\"}");
    assert_eq!(result.submods["tdx"].ear_appraisal_policy_ids, [format!("sha256:{policy}")]);

    // A guest that is refused gets no token that somebody could show around.
    let other = world.guest_with(|_| (), |registers| registers.rtmr_1 = types::Sha384Digest::of(b"other")).await;
    let (head, _) = ask(&world, &other).await;
    assert!(head.starts_with("HTTP/1.1 403") && header(&head, "chrysalis-ear").is_none(), "{head}");
}

/// Exit code and the JSON document of one call.
fn call(args: &[&str]) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_attestation-service")).args(args).arg("--json").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap_or_default();
    (output.status.code().unwrap(), serde_json::from_str(last).unwrap_or(Value::Null))
}

/// The program believes Intel alone: of a simulated guest it gives a result that says no.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_of_files_are_issued_and_verified_by_the_program() {
    let world = World::start().await;
    let guest = world.guest().await;
    let path = |name: &str| world.dir.path().join(name).to_str().unwrap().to_owned();
    let write = |name: &str, bytes: &[u8]| std::fs::write(Path::new(&path(name)), bytes).unwrap();
    write("evidence", &guest.evidence_for(&[1; 32], &[2; 32], key_pair().public()).to_canonical().unwrap());
    write("collateral", world.platform.collateral(NOW, None).unwrap().to_json().as_bytes());
    let (evidence, collateral, store) = (path("evidence"), path("collateral"), path("store"));
    let (token, keys) = (path("result.jwt"), path("keys.json"));
    let common = ["appraise", "--evidence", &evidence, "--collateral", &collateral, "--at", "2027-01-15T08:00:00Z"];
    assert_eq!(call(&[&common[..], &["--ear", &token]].concat()).0, 64, "whose key?");
    let (code, judged) = call(&[&common[..], &["--ear", &token, "--store", &store, "--audience", "us"]].concat());
    assert_eq!((code, &judged["ear"]), (2, &"contraindicated".into()));
    assert_eq!(
        (&judged["checks"][0]["code"], &judged["checks"][0]["passed"]),
        (&"root_untrusted".into(), &false.into())
    );

    let (code, set) = call(&["ear", "keys", "--store", &store]);
    assert_eq!(code, 0);
    write("keys.json", set.to_string().as_bytes());
    let pin = world.pin.to_string();
    let verify = |more: &[&str]| {
        let (code, document) = call(&[&["ear", "verify", "--token", &token, "--keys", &keys][..], more].concat());
        (code, document["reasons"][0]["code"].as_str().unwrap_or_default().to_owned(), document)
    };
    let (code, reason, document) = verify(&["--pin", &pin, "--audience", "us"]);
    assert_eq!((code, reason.as_str()), (2, "ear_contraindicated"));
    assert_eq!(document["result"]["submods"]["tdx"]["ear_verifier_claims"]["chrysalis.bound"], false);
    for (more, expected) in [
        (vec!["--audience", "us", "--pin", &"00".repeat(32)], "ear_keys"),
        (vec!["--audience", "them"], "ear_token"),
        (vec![], "ear_token"),
        (vec!["--audience", "us", "--at", "2020-01-01T00:00:00Z"], "ear_token"),
        (vec!["--audience", "us", "--at", "2100-01-01T00:00:00Z"], "ear_token"),
    ] {
        let (code, reason, _) = verify(&more);
        assert_eq!((code, reason.as_str()), (2, expected), "{more:?}");
    }
}

/// Takes any certificate: these tests are about what is said over the connection.
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
        Err(rustls::Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
