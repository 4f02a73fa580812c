// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 beside HTTP/1.1: the same answers, the same binding to the connection, and bounds of its own.

use crate::world;

use std::{sync::Arc, time::Duration};

use attestation_service::Limits;
use attested_channel::{stream, tls};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderValue, Method, Request, StatusCode};
use key_release::{ChallengeAnswer, KeyReleaseAnswer, KeyReleaseRequest, SealContext};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, TlsStream};
use types::{Base64, Document as _, Sha256Digest, canonical};
use world::{KEY, World, key_pair, model};

/// TLS to the service, by the protocol that `alpn` names.
async fn tls(world: &World, alpn: &[&[u8]]) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut config = tls::pinned_client_config(world.pin).unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(world.service.as_ref().unwrap().address).await.unwrap();
    let name = ServerName::try_from("x.invalid").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

struct Connection {
    sender: SendRequest<Bytes>,
    channel: stream::Channel<TcpStream>,
}

impl Connection {
    async fn new(world: &World) -> Self {
        let tls = tls(world, &[b"h2"]).await;
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (stream, channel) = stream::share(TlsStream::Client(tls));
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        Self { sender, channel }
    }

    async fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> Result<(StatusCode, Vec<u8>), h2::Error> {
        let request = Request::builder().method(method).uri(format!("https://x.invalid{path}")).body(()).unwrap();
        let mut sender = self.sender.clone().ready().await?;
        let (answer, mut stream) = sender.send_request(request, false)?;
        // The answer may come before the body was read.
        let _ = stream.send_data(Bytes::from(body), true);
        let answer = answer.await?;
        let status = answer.status();
        let mut incoming = answer.into_body();
        let mut bytes = Vec::new();
        while let Some(data) = incoming.data().await {
            let data = data?;
            incoming.flow_control().release_capacity(data.len())?;
            bytes.extend_from_slice(&data);
        }
        Ok((status, bytes))
    }
}

/// Several releases at once over one connection, each bound to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_released_over_streams_of_one_connection() {
    let world = World::start().await;
    let guest = world.guest().await;
    let (connection, other) = (Connection::new(&world).await, Connection::new(&world).await);
    let release = async |asked: &Connection, bound: &Connection| {
        let (status, body) = asked.ask(Method::POST, "/v1/challenges", Vec::new()).await.unwrap();
        assert_eq!(status, 200);
        let token = canonical::from_bytes::<ChallengeAnswer>(&body, 4096).unwrap().token;
        let key = key_pair();
        let challenge = token.challenge();
        let binding = bound.channel.binding(&challenge).unwrap();
        let evidence = guest.evidence_for(&challenge, &binding, key.public()).to_canonical().unwrap();
        let digest = Sha256Digest::of(&evidence);
        let request = KeyReleaseRequest {
            schema: KeyReleaseRequest::SCHEMA.into(),
            token,
            model: model(),
            evidence: Base64::new(evidence).unwrap(),
            work: None,
        };
        let request = request.to_canonical().unwrap();
        let (status, body) = asked.ask(Method::POST, "/v1/key-release", request).await.unwrap();
        if status != StatusCode::OK {
            return Err(String::from_utf8(body).unwrap());
        }
        let answer = KeyReleaseAnswer::from_canonical(&body).unwrap();
        let context = SealContext {
            challenge: &challenge,
            model: &model(),
            key_version: answer.key_version,
            evidence: &digest,
            audit_leaf: &answer.audit.leaf,
        };
        Ok(*key.open(&answer.enc, &answer.ciphertext, &context).unwrap().key)
    };
    let (one, two, three) = tokio::join!(
        release(&connection, &connection),
        release(&connection, &connection),
        release(&connection, &connection)
    );
    assert_eq!((one, two, three), (Ok(KEY), Ok(KEY), Ok(KEY)));
    // Attack 36: another connection's exporter, though both speak HTTP/2 to the same service.
    assert!(release(&connection, &other).await.unwrap_err().contains("binding_mismatch"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_protocol_is_the_one_that_tls_named() {
    let world = World::start().await;
    for (offered, chosen) in
        [(&[&b"h2"[..], b"http/1.1"][..], Some(&b"h2"[..])), (&[b"http/1.1"], Some(b"http/1.1")), (&[], None)]
    {
        assert_eq!(tls(&world, offered).await.get_ref().1.alpn_protocol(), chosen);
    }
    // Without a name it is HTTP/1.1, whose parser refuses the preface of the other.
    let mut stream = tls(&world, &[]).await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(&[0, 0]), "no SETTINGS: {answer:?}");
}

/// The same refusals as over HTTP/1.1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_the_same() {
    let world = World::start().await;
    let connection = Connection::new(&world).await;
    for (method, path, body, status, code) in [
        (Method::GET, "/v1/nothing", vec![], 404, "not_found"),
        (Method::PUT, "/v1/time", vec![], 405, "method_not_allowed"),
        (Method::CONNECT, "/v1/time", vec![], 405, "method_not_allowed"),
        (Method::POST, "/v1/challenges", vec![1], 400, "request_malformed"),
        (Method::POST, "/v1/key-release", vec![b' '; (3 << 20) + 1], 400, "request_malformed"),
    ] {
        // CONNECT without the extended protocol is refused below HTTP: there is no answer, and no harm.
        let answered = connection.ask(method.clone(), path, body).await;
        if method == Method::CONNECT {
            assert!(answered.is_err() || answered.unwrap().0 != StatusCode::OK);
            continue;
        }
        let (found, answer) = answered.unwrap();
        assert_eq!(found, status, "{method} {path}");
        assert!(String::from_utf8(answer).unwrap().contains(code), "{method} {path}");
    }
    assert_eq!(connection.ask(Method::GET, "/v1/log/checkpoint", vec![]).await.unwrap().0, 200);
}

/// Length, type, flags and stream of a frame (RFC 9113 section 4.1), and its payload.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET` with the static table of HPACK (RFC 7541 appendix A): method, path `/`, scheme https.
const GET: [u8; 3] = [0x82, 0x84, 0x87];
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Sends raw frames and reads what comes until the service closes; the kinds of its frames, and the error of GOAWAY.
async fn raw(world: &World, frames: &[u8]) -> (Vec<u8>, Option<u32>) {
    let mut stream = tls(world, &[b"h2"]).await;
    stream.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await.unwrap();
    let _ = stream.write_all(frames).await;
    let mut answer = Vec::new();
    // A service that does not close is a failure that the test's own time-out shows.
    let _ = stream.read_to_end(&mut answer).await;
    let (mut kinds, mut error, mut rest) = (Vec::new(), None, answer.as_slice());
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        kinds.push(rest[3]);
        if rest[3] == 7 {
            error = Some(u32::from_be_bytes(rest[13..17].try_into().unwrap()));
        }
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    (kinds, error)
}

const ENHANCE_YOUR_CALM: u32 = 11;

/// CVE-2023-44487: streams that are opened and reset at once, and as many frames that mean nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_end_the_connection_and_nothing_else() {
    let world = World::start().await;
    let guest = world.guest().await;
    let reset: Vec<u8> = (0..200)
        .flat_map(|number| {
            let stream = 2 * number + 1;
            [frame(1, 5, stream, &GET), frame(3, 0, stream, &[0, 0, 0, 8])].concat()
        })
        .collect();
    assert!(reset.len() < 16 * 1024, "it is one record of TLS");
    assert_eq!(raw(&world, &reset).await.1, Some(ENHANCE_YOUR_CALM));
    // CVE-2024-27316: headers that never end.
    let endless: Vec<u8> = [frame(1, 1, 1, &GET)]
        .into_iter()
        .chain((0..200).map(|_| frame(9, 0, 1, &[[0, 1, b'x', 1].as_slice(), b"y"].concat().repeat(200))))
        .flatten()
        .collect();
    let (kinds, error) = raw(&world, &endless).await;
    assert!(error.is_some_and(|error| error != 0), "{kinds:?} {error:?}");
    assert!(world.ask(&guest).await.is_ok(), "others are served");
}

/// Bodies of one client: together no more than its part, whatever is announced. Others do not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_shared_by_clients() {
    const ANNOUNCED: usize = 3 << 20;
    let mut world = World::stopped(release::Hardware::Simulated);
    // A thirty-second part: one request of the largest size, and no second one.
    world.limits = Limits { client_connections: 16, ..Limits::default() };
    world.launch().await;
    let guest = world.guest().await;
    let connection = Connection::new(&world).await;
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let sender = connection.sender.clone();
        asked.spawn(async move {
            let request = Request::post("https://x.invalid/v1/key-release").header("content-length", ANNOUNCED);
            let (answer, mut body) = sender.ready().await.unwrap().send_request(request.body(()).unwrap(), false).unwrap();
            tokio::pin!(answer);
            loop {
                tokio::select! {
                    answer = &mut answer => return answer.unwrap(),
                    () = tokio::time::sleep(Duration::from_secs(1)) => drop(body.send_data(Bytes::from_static(b"x"), false)),
                }
            }
        });
    }
    for _ in 0..2 {
        let answer = asked.join_next().await.unwrap().unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (429, &HeaderValue::from_static("1")));
    }
    let mut other = world.connect_from([127, 0, 0, 2].into()).await;
    let challenge = other.challenge().await.unwrap();
    let key = key_pair();
    let evidence = guest.evidence(&challenge, key.public()).to_canonical().unwrap();
    assert!(other.release(challenge, &model(), evidence, key).await.is_ok());
    assert_eq!(world.count("busy"), 2);
}

/// A peer that asks and takes no answer: the connection ends, and with it what was kept for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_not_taken_end_the_connection() {
    let mut world = World::stopped(release::Hardware::Simulated);
    world.limits = Limits { sending: Duration::from_secs(1), ..Limits::default() };
    world.launch().await;
    let mut builder = h2::client::Builder::new();
    let (sender, connection) =
        builder.initial_window_size(0).handshake::<_, Bytes>(tls(&world, &[b"h2"]).await).await.unwrap();
    let ended = tokio::spawn(connection);
    let mut answers = Vec::new();
    for path in [format!("/v1/releases/{}", world.release), "/v1/openapi.json".to_owned()] {
        let request = Request::get(format!("https://x.invalid{path}")).body(()).unwrap();
        let (answer, _) = sender.clone().ready().await.unwrap().send_request(request, true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        answers.push(answer);
    }
    // A service that keeps it open is a failure that the test's own time-out shows.
    let _ = ended.await.unwrap();
    let taken = Connection::new(&world).await.ask(Method::GET, "/v1/openapi.json", vec![]).await.unwrap();
    assert_eq!(taken.0, StatusCode::OK);
    assert!(serde_json::from_slice::<serde_json::Value>(&taken.1).is_ok(), "whole, though in pieces");
}

/// Headers beyond the cap: refused, and the connection serves on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_headers_are_refused() {
    let world = World::start().await;
    let connection = Connection::new(&world).await;
    let request = Request::get("https://x.invalid/v1/log/checkpoint").header("x", "y".repeat(20_000)).body(()).unwrap();
    let mut sender = connection.sender.clone().ready().await.unwrap();
    // The peer's setting says how much it takes; a client that knows it sends nothing.
    let answered = match sender.send_request(request, true) {
        Ok((answer, _)) => answer.await.map(|answer| answer.status()),
        Err(error) => Err(error),
    };
    assert!(!matches!(answered, Ok(StatusCode::OK)), "{answered:?}");
    assert_eq!(connection.ask(Method::GET, "/v1/log/checkpoint", vec![]).await.unwrap().0, 200);
}
