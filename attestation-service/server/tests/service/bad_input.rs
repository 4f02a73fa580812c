// SPDX-License-Identifier: Apache-2.0
//! Peers that send too much, too little or never anything, and a clock that jumps: a refusal with a code, and others are
//! served.

use crate::world;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use attestation_service::Limits;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use types::Document as _;
use world::{NOW, World, key_pair, model, reasons};

async fn tcp(world: &World) -> TcpStream {
    TcpStream::connect(world.service.as_ref().unwrap().address).await.unwrap()
}

async fn tls(world: &World) -> TlsStream<TcpStream> {
    let config = attested_channel::tls::pinned_client_config(world.pin).unwrap();
    let name = ServerName::try_from("x.invalid").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp(world).await).await.unwrap()
}

/// Status and code of an answer to these very bytes.
async fn send(world: &World, head: &str, body: &[u8]) -> (u16, String) {
    let mut stream = tls(world).await;
    let head = format!("{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // The service may answer and close before it has read everything.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
    let document: serde_json::Value = serde_json::from_str(body).unwrap();
    (head[9..12].parse().unwrap(), document["reasons"][0]["code"].as_str().unwrap().to_owned())
}

const RELEASE: &str = "POST /v1/key-release HTTP/1.1";
const MAX: usize = 3 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_are_refused() {
    let world = World::start().await;
    let guest = world.guest().await;
    let malformed = (400, "request_malformed".to_owned());
    for (name, body) in [
        ("nested lists", b"[".repeat(MAX)),
        ("nested objects", b"{\"a\":".repeat(MAX / 5)),
        ("digits", b"1".repeat(MAX)),
        ("digits in a field", [b"{\"schema\":".as_slice(), &b"9".repeat(MAX - 20), b"}"].concat()),
        ("a text without an end", [b"\"".as_slice(), &b"a".repeat(MAX - 1)].concat()),
        ("zeros", vec![0; MAX]),
        ("many fields", [b"{".as_slice(), &b"\"a\":1,".repeat(MAX / 6 - 1), b"\"a\":1}"].concat()),
    ] {
        assert_eq!(send(&world, RELEASE, &body).await, malformed, "{name}");
        assert_eq!(send(&world, "POST /v1/owner-commands HTTP/1.1", &body[..100_000]).await, malformed, "{name}");
    }
    // Compressed bodies are not unpacked, whatever is inside.
    let coded = format!("{RELEASE}\r\ncontent-type: application/json\r\ncontent-encoding: gzip");
    assert_eq!(send(&world, &coded, b"\x1f\x8b").await, (415, "media_type".to_owned()));
    let other = format!("{RELEASE}\r\ncontent-type: text/plain");
    assert_eq!(send(&world, &other, b"{}").await, (415, "media_type".to_owned()));
    // The same inside the evidence of a good token.
    for bomb in [b"[".repeat(1 << 20), b"1".repeat(1 << 20), vec![0; 1 << 20]] {
        let mut connection = world.connect().await;
        let challenge = connection.challenge().await.unwrap();
        let refused = connection.release(challenge, &model(), bomb, key_pair()).await;
        assert_eq!(reasons(refused)[0].0, "evidence_malformed");
    }
    assert!(world.ask(&guest).await.is_ok());
}

/// Peers that stop in the middle of everything take their places, and nobody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_stop_nobody() {
    let mut world = World::stopped(release::Hardware::Simulated);
    // Those that hang and those that ask have one address here.
    world.limits = Limits { client_connections: 512, ..Limits::default() };
    world.launch().await;
    let guest = world.guest().await;
    let (half, held) = half_open(&world).await;
    for _ in 0..3 {
        assert!(world.ask(&guest).await.is_ok());
    }
    assert_eq!((held.len(), half.len()), (60, 40));
}

/// Nor do they keep their places: each is ended in its time, with a code where there is somebody to tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_are_ended() {
    let mut world = World::stopped(release::Hardware::Simulated);
    // Long enough for a client that has to wait for the processor between two writes.
    let short = Duration::from_millis(2500);
    // The limits of a whole body and a whole request would end them, too, and are out of the way.
    let never = Duration::from_secs(3600);
    world.limits = Limits {
        client_connections: 512,
        handshake: short * 4,
        stall: short,
        body: never,
        request: never,
        ..Limits::default()
    };
    world.launch().await;
    let (half, held) = half_open(&world).await;
    for mut stream in half {
        let mut rest = Vec::new();
        // An end or a reset, and not a byte before.
        let _ = stream.read_to_end(&mut rest).await;
        assert_eq!(rest, b"", "no handshake, no answer");
    }
    for (number, mut stream) in held.into_iter().enumerate() {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        let answer = String::from_utf8(rest).unwrap();
        if number < 20 {
            assert_eq!(answer, "", "no request, no answer");
        } else {
            assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"request_timeout\""), "{answer}");
        }
    }
    assert_eq!(world.count("request_timeout"), 40);
    // Others are served, under limits that a busy machine keeps.
    world.limits = Limits::default();
    world.launch().await;
    let guest = world.guest().await;
    assert!(world.ask(&guest).await.is_ok());
}

/// A body that comes, but byte by byte, ends at its own limit; a request that the service itself does not get done in
/// time is no fault of the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_slow_is_told_apart() {
    let slow = Duration::from_millis(500);
    for (limits, expected) in [
        (Limits { body: slow, ..Limits::default() }, ("408", "request_timeout")),
        (Limits { request: slow, ..Limits::default() }, ("503", "service_unavailable")),
    ] {
        let mut world = World::stopped(release::Hardware::Simulated);
        world.limits = limits;
        world.launch().await;
        let (mut reading, mut writing) = tokio::io::split(tls(&world).await);
        let drip = tokio::spawn(async move {
            let head = format!("{RELEASE}\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n");
            let mut sent = writing.write_all(head.as_bytes()).await;
            while sent.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
                sent = writing.write_all(b" ").await;
            }
        });
        let mut answer = Vec::new();
        let _ = reading.read_to_end(&mut answer).await;
        drip.abort();
        let answer = String::from_utf8(answer).unwrap();
        assert_eq!(&answer[9..12], expected.0, "{answer}");
        assert!(answer.contains(&format!("\"{}\"", expected.1)), "{answer}");
        let retry = answer.to_ascii_lowercase().contains("retry-after: 1");
        assert_eq!(retry, expected.0 == "503", "who may try again is told so");
    }
}

/// Forty that never finish a handshake, and sixty that never finish a request: of the head for the first twenty, of the
/// body for the others.
async fn half_open(world: &World) -> (Vec<TcpStream>, Vec<TlsStream<TcpStream>>) {
    let (mut half, mut held) = (Vec::new(), Vec::new());
    for number in 0..40 {
        let mut stream = tcp(world).await;
        if number % 2 == 0 {
            // A record of the handshake that is announced and does not come.
            stream.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        }
        half.push(stream);
    }
    for start in [
        "G",
        "POST /v1/key-release HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n{\"",
        "POST /v1/key-release HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffff\r\n{",
    ] {
        for _ in 0..20 {
            let mut stream = tls(world).await;
            stream.write_all(start.as_bytes()).await.unwrap();
            held.push(stream);
        }
    }
    (half, held)
}

/// Attack 68 at the service: its own clock steps ahead and back while it runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_makes_no_key_and_no_second_redemption() {
    let mut world = World::start().await;
    let guest = world.guest().await;
    let clock = Arc::clone(&world.clock);
    let set = |time: u64| clock.store(time, Ordering::SeqCst);
    let mut connection = world.connect().await;
    let (spent, kept) = (connection.challenge().await.unwrap(), connection.challenge().await.unwrap());
    let key = key_pair();
    let evidence = guest.evidence(&spent, key.public()).to_canonical().unwrap();
    connection.release(spent.clone(), &model(), evidence.clone(), key).await.map(drop).unwrap();
    // Years ahead: challenges end, collateral and the time of the guest as well; nothing that was verified before counts.
    set(NOW + 3 * 365 * 86_400);
    let ask = async |connection: &mut release_client::ServiceConnection, challenge: &release_client::Challenge| {
        let key = key_pair();
        let evidence = guest.evidence(challenge, key.public()).to_canonical().unwrap();
        reasons(connection.release(challenge.clone(), &model(), evidence, key).await)
    };
    assert_eq!(ask(&mut connection, &kept).await[0].0, "challenge_expired");
    let ahead = connection.challenge().await.unwrap();
    let late = connection.challenge().await.unwrap();
    let codes = ask(&mut connection, &late).await;
    assert!(codes.iter().any(|(code, _)| code == "collateral_expired"), "{codes:?}");
    // And back: what ended in between has ended for good; what was made ahead lasts no longer than a minute.
    set(NOW + 1);
    assert_eq!(ask(&mut connection, &spent).await[0].0, "challenge_replayed");
    assert_eq!(ask(&mut connection, &ahead).await[0].0, "challenge_expired");
    assert!(world.ask(&guest).await.is_ok(), "the right time, and all is well");
    // Years back: what is valid then is refused, too.
    set(NOW - 3 * 365 * 86_400);
    let early = connection.challenge().await.unwrap();
    let codes = ask(&mut connection, &early).await;
    assert!(codes.iter().any(|(code, _)| code == "collateral_not_yet_valid"), "{codes:?}");
    set(NOW + 2);
    assert!(world.ask(&guest).await.is_ok());
    // Where expired challenges were forgotten while the clock was ahead, none of them comes back.
    let service = &world.service.as_ref().unwrap().service;
    set(NOW + 1000);
    service.prune();
    set(NOW + 3);
    assert_eq!(ask(&mut connection, &spent).await[0].0, "challenge_expired");
    assert_eq!(world.refusal(&guest).await[0].0, "challenge_expired", "nor any other before that time");
    // A start voids all challenges there were: nothing has to be kept from them.
    drop(connection);
    world.launch().await;
    assert!(world.ask(&guest).await.is_ok());
}
