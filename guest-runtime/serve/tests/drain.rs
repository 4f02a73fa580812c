// SPDX-License-Identifier: Apache-2.0
//! A guest that is told to finish, over real sockets and real TLS: no answer is lost, and nothing keeps it busy.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]
#![allow(dead_code, reason = "the support has more than these tests need")]

mod support;

use std::{io::Write as _, net::SocketAddr, os::unix::net::UnixListener, path::PathBuf, sync::mpsc, time::Duration};

use drain_protocol::{ANSWER, REQUEST};
use engine_protocol::Command;
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use serve::{DrainLink, Limits, Options, Server};
use support::{Client, FakeAttester, FakeEngine, chat_body, post, raw, sockets, until_read};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

struct Running {
    address: SocketAddr,
    engine: FakeEngine,
    drain: PathBuf,
    _directory: tempfile::TempDir,
}

/// A server whose host is heard at a Unix socket.
async fn start(grace: Duration) -> Running {
    let (directory, attester, engine_path) = sockets();
    FakeAttester::start(&attester);
    let engine = FakeEngine::start(&engine_path);
    let drain = directory.path().join("drain");
    let listener = UnixListener::bind(&drain).unwrap();
    listener.set_nonblocking(true).unwrap();
    let limits = Limits { grace, ..Limits::default() };
    let options = Options {
        attester,
        engine: engine_path,
        listen: "127.0.0.1:0".parse().unwrap(),
        proxy_protocol: false,
        limits,
        tenants: None,
    };
    let server = Server::start(options).await.unwrap().heeding(DrainLink::new(listener.into()).unwrap());
    let address = server.address();
    tokio::spawn(server.run());
    Running { address, engine, drain, _directory: directory }
}

impl Running {
    async fn tell(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(&self.drain).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer
    }

    async fn drain(&self) {
        assert_eq!(self.tell(&REQUEST).await, ANSWER);
    }

    async fn generating(&self) {
        let begun = || self.engine.commands.lock().unwrap().iter().any(|c| matches!(c, Command::Generate(_)));
        while !begun() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

const LONG: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_answered_and_what_is_idle_is_closed_at_once() {
    let running = start(LONG).await;
    let (mut idle, _) = Client::proven(running.address).await;
    assert_eq!(idle.chat("hi", "").await.0, StatusCode::OK);
    let (mut whole, _) = Client::proven(running.address).await;
    let (mut stream, _) = Client::proven(running.address).await;
    let asked = tokio::spawn(async move { (whole.chat("hang", "").await, whole) });
    let events = stream.start(Method::POST, "/v1/chat/completions", chat_body("hang", r#","stream":true"#)).await;
    running.generating().await;
    while running.engine.commands.lock().unwrap().len() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.drain().await;
    idle.closed().await;
    running.engine.answer_hanging();
    let ((status, headers, body), whole) = asked.await.unwrap();
    assert_eq!((status, headers["connection"].to_str().unwrap()), (StatusCode::OK, "close"));
    assert!(headers.contains_key("chrysalis-receipt") && body.windows(6).any(|window| window == b"Paris."));
    whole.closed().await;
    // Its head was sent before; it ends with its receipt nevertheless, and then with its connection.
    let text = String::from_utf8(events.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(text.contains("data: [DONE]") && text.contains(": chrysalis-receipt "), "{text}");
    stream.closed().await;
    assert!(!running.engine.cancelled());
}

/// The one thread that serves finds the host's word first, and requests on connections that wait behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_request_that_has_come_is_answered() {
    let running = start(LONG).await;
    let chat = post("/v1/chat/completions", &chat_body("hi", ""));
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = raw(running.address).await;
        client.write_all(&chat).await.unwrap();
        until_read(&mut client, "Paris.").await;
        clients.push(client);
    }
    let mut host = std::os::unix::net::UnixStream::connect(&running.drain).unwrap();
    let (part, rest) = REQUEST.split_at(3);
    host.write_all(part).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let ((stopped, has_stopped), (go, goes)) = (mpsc::channel(), mpsc::channel::<()>());
    let thread = tokio::spawn(async move {
        stopped.send(()).unwrap();
        goes.recv().unwrap();
    });
    has_stopped.recv().unwrap();
    host.write_all(rest).unwrap();
    for client in &mut clients {
        client.write_all(&chat).await.unwrap();
        client.flush().await.unwrap();
    }
    go.send(()).unwrap();
    thread.await.unwrap();
    for mut client in clients {
        until_read(&mut client, "Paris.").await;
    }
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_just_come_is_answered_once() {
    let running = start(LONG).await;
    let (mut proven, _) = Client::proven(running.address).await;
    let mut connected = Client::connect(running.address).await;
    running.drain().await;
    // Sent here a moment ago.
    let (mut new, _) = Client::proven(running.address).await;
    connected.attest([9; 32]).await;
    for client in [&mut proven, &mut connected, &mut new] {
        let (status, headers, _) = client.chat("hi", "").await;
        assert_eq!((status, headers["connection"].to_str().unwrap()), (StatusCode::OK, "close"));
        client.closed().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_grace_nobody_is_let_in_and_nobody_stays() {
    let running = start(Duration::from_millis(50)).await;
    let (proven, _) = Client::proven(running.address).await;
    running.drain().await;
    proven.closed().await;
    while TcpStream::connect(running.address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The link goes on: who asks again gets the same answer.
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_words_change_nothing() {
    let running = start(Duration::ZERO).await;
    let (mut client, _) = Client::proven(running.address).await;
    let long = [REQUEST.as_slice(), b"x"].concat();
    for bytes in [b"".as_slice(), b"drain 1", b"stop 11\n", b"\xff\xff\xff\xff\xff\xff\xff\xff", &long] {
        assert!(running.tell(bytes).await.is_empty());
        let (status, headers, _) = client.chat("hi", "").await;
        assert_eq!((status, headers.get("connection")), (StatusCode::OK, None));
    }
    assert!(TcpStream::connect(running.address).await.is_ok());
}
