// SPDX-License-Identifier: Apache-2.0
//! The end of the service with a request under way: it is answered, its entry is on the log, and nobody new gets in.

use crate::world;

use std::{sync::Arc, time::Duration};

use attested_channel::{stream, tls};
use key_release::{ChallengeAnswer, KeyReleaseAnswer, KeyReleaseRequest};
use rustls::pki_types::ServerName;
use store::{AuditEntry, OpenOptions, Store};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, TlsStream};
use types::{Base64, Document as _, Sha256Digest};
use world::{World, key_pair, model};

/// One head and as much of a body as it announces.
async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    (head, body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_under_way_is_answered_and_nobody_new_gets_in() {
    let mut world = World::start().await;
    let guest = world.guest().await;
    let address = world.service.as_ref().unwrap().address;
    let connector = TlsConnector::from(Arc::new(tls::pinned_client_config(world.pin).unwrap()));
    let name = ServerName::try_from("x.invalid").unwrap();
    let connected = connector.connect(name, TcpStream::connect(address).await.unwrap()).await.unwrap();
    let (mut stream, channel) = stream::share(TlsStream::Client(connected));
    stream.write_all(b"POST /v1/challenges HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let ChallengeAnswer { token, .. } = serde_json::from_slice(&receive(&mut stream).await.1).unwrap();
    let challenge = token.challenge();
    let evidence = guest.evidence_for(&challenge, &channel.binding(&challenge).unwrap(), key_pair().public());
    let request = KeyReleaseRequest {
        schema: KeyReleaseRequest::SCHEMA.into(),
        token,
        model: model(),
        evidence: Base64::new(evidence.to_canonical().unwrap()).unwrap(),
        work: None,
    };
    let body = request.to_canonical().unwrap();
    let head = format!(
        "POST /v1/key-release HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (go_on, _) = receive(&mut stream).await;
    assert!(go_on.starts_with("http/1.1 100"), "the service waits for the body: {go_on}");
    let (first, rest) = body.split_at(1000);
    stream.write_all(first).await.unwrap();

    let ended = tokio::spawn(world.service.take().unwrap().end());
    let closed = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let closed = tokio::time::timeout(Duration::from_secs(60), closed).await;
    assert!(closed.is_ok(), "the service that ends still takes connections");
    assert!(!ended.is_finished(), "it waits for what is under way");
    stream.write_all(rest).await.unwrap();
    let (head, body) = receive(&mut stream).await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let answer = KeyReleaseAnswer::from_canonical(&body).unwrap();
    let mut more = Vec::new();
    let _ = stream.read_to_end(&mut more).await;
    assert_eq!(more, b"", "and the connection ends");
    ended.await.unwrap();
    let options = OpenOptions { sequencer: false, ..OpenOptions::default() };
    let store = Store::open_with(&world.store_dir(), &options).unwrap();
    let mut entries = Vec::new();
    let listed = store.verify_audit_with(|index, entry| {
        if let AuditEntry::KeyRelease(entry) = entry {
            entries.push((index, entry.challenge));
        }
    });
    listed.unwrap();
    assert_eq!(entries, [(answer.audit.index, Sha256Digest::of(&challenge))]);
}
