// SPDX-License-Identifier: Apache-2.0
//! The API over real sockets and real TLS, with an attester and an engine that play their parts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod support;

use std::{net::SocketAddr, process::Stdio, sync::Arc, time::Duration};

use attested_channel::{
    DeliveredReceipt, Leaf, SignedReceipt,
    receipt::{SaidCall, SaidChoice, channel_id, embedding_bytes, response_bytes},
    verify_path,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use engine_protocol::{Command, Tenant};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;
use serve::{Ended, Limits, Options, Server};
use support::{Client, FakeAttester, FakeEngine, chat_body, post, raw, sockets, until_read};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinHandle,
};
use types::{FreshnessKind, Role};

struct Running {
    address: SocketAddr,
    attester: Arc<FakeAttester>,
    engine: FakeEngine,
    server: JoinHandle<Ended>,
    _directory: tempfile::TempDir,
}

async fn start(limits: Limits) -> Running {
    start_with(limits, FakeEngine::start).await
}

async fn start_with(limits: Limits, engine: fn(&std::path::Path) -> FakeEngine) -> Running {
    let (directory, attester_path, engine_path) = sockets();
    let attester = FakeAttester::start(&attester_path);
    let engine = engine(&engine_path);
    let listen = "127.0.0.1:0".parse().unwrap();
    let server = Server::start(Options {
        attester: attester_path,
        engine: engine_path,
        listen,
        proxy_protocol: false,
        limits,
        tenants: None,
    })
    .await
    .unwrap();
    let address = server.address();
    Running { address, attester, engine, server: tokio::spawn(server.run()), _directory: directory }
}

async fn until(mut condition: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came true");
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn delivered(base64: &str) -> DeliveredReceipt {
    DeliveredReceipt::from_canonical(&STANDARD.decode(base64).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_answered_before_a_proof_but_attestation() {
    let running = start(Limits::default()).await;
    let mut client = Client::connect(running.address).await;
    for (method, path) in
        [(Method::GET, "/v1/models"), (Method::POST, "/v1/chat/completions"), (Method::GET, "/v1/receipts/x")]
    {
        let (status, _, body) = client.send(method, path, chat_body("hi", "")).await;
        assert_eq!(status, StatusCode::PRECONDITION_REQUIRED);
        assert_eq!(json(&body)["error"]["code"], "attestation_required");
    }
    assert!(running.engine.commands.lock().unwrap().is_empty());
    let path = format!("/v1/attestation/evidence/{}", running.attester.evidence_digest());
    let (status, _, evidence) = client.send(Method::GET, &path, String::new()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(types::Sha256Digest::of(&evidence), running.attester.evidence_digest());

    let (proof, binding) = client.attest([9; 32]).await;
    let leaf = Leaf { kind: FreshnessKind::Tls, role: Role::Inference, challenge: [9; 32], binding };
    assert_eq!(
        verify_path(&leaf, proof.leaf_index, proof.freshness.tree_size, &proof.path, &proof.freshness.root),
        Ok(())
    );
    let (status, _, body) = client.send(Method::GET, "/v1/models", String::new()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(json(&body)["data"][0]["id"], support::model().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_has_openai_form_and_a_receipt_that_verifies() {
    let running = start(Limits::default()).await;
    let (mut client, binding) = Client::proven(running.address).await;
    let (status, headers, body) = client.chat("hi", "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body.len() % 512, 0);
    let answer = json(&body);
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["choices"][0]["message"]["content"], "Paris.");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["total_tokens"], 7);
    assert!((support::UNIX..support::UNIX + 60).contains(&answer["created"].as_u64().unwrap()));

    let receipt = delivered(headers["chrysalis-receipt"].to_str().unwrap());
    receipt.signed().verify_signature().unwrap();
    receipt.verify_content(chat_body("hi", "").as_bytes(), "Paris.").unwrap();
    assert!(receipt.verify_content(chat_body("ho", "").as_bytes(), "Paris.").is_err());
    assert_eq!(receipt.receipt.channel, channel_id(&binding));
    assert_eq!((receipt.receipt.prompt_tokens, receipt.receipt.completion_tokens), (3, 4));

    let path = format!("/v1/receipts/{}", answer["id"].as_str().unwrap());
    let (_, _, stored) = client.send(Method::GET, &path, String::new()).await;
    assert_eq!(SignedReceipt::from_canonical(&stored).unwrap(), receipt.signed());

    let (_, headers, _) = client.chat("hi again", "").await;
    let second = delivered(headers["chrysalis-receipt"].to_str().unwrap());
    second.signed().verify_follows(&receipt.receipt).unwrap();
    assert_ne!(second.salt, receipt.salt);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_padded_and_ends_with_done_and_the_receipt() {
    let running = start(Limits::default()).await;
    let (mut client, _) = Client::proven(running.address).await;
    let extra = r#","stream":true,"stream_options":{"include_usage":true}"#;
    let response = client.start(Method::POST, "/v1/chat/completions", chat_body("hi", extra)).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let mut body = response.into_body();
    let (mut all, mut text, mut usage) = (String::new(), String::new(), Value::Null);
    while let Some(frame) = body.frame().await {
        let bytes = frame.unwrap().into_data().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        all.push_str(std::str::from_utf8(&bytes).unwrap());
    }
    let (events, rest) = all.split_once("data: [DONE]\n\n").unwrap();
    for event in events.split_terminator("\n\n") {
        let chunk = json(event.strip_prefix("data: ").unwrap().as_bytes());
        assert_eq!(chunk["object"], "chat.completion.chunk");
        text.push_str(chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        usage = chunk["usage"].clone();
    }
    assert_eq!(text, "Paris.");
    assert_eq!(usage["completion_tokens"], 4);
    let line = rest.lines().next().unwrap();
    let receipt = delivered(line.strip_prefix(": chrysalis-receipt ").unwrap());
    receipt.signed().verify_signature().unwrap();
    receipt.verify_content(chat_body("hi", extra).as_bytes(), text).unwrap();
}

/// Attack 58 and its kind: refused by code before the engine hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_openai_form_and_cost_nothing() {
    let running = start(Limits { body_bytes: 4096, ..Limits::default() }).await;
    let (mut client, _) = Client::proven(running.address).await;
    for (extra, status, code) in [
        (r#","n":1000"#, 400, "invalid_value"),
        (r#","logit_bias":{"3":5}"#, 400, "invalid_value"),
        (r#","prediction":{}"#, 400, "unsupported_parameter"),
        (
            r#","response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"not":{}}}}"#,
            400,
            "invalid_value",
        ),
        (r#","model":"m""#, 400, "invalid_json"),
    ] {
        let (found, _, body) = client.chat("hi", extra).await;
        assert_eq!((found.as_u16(), json(&body)["error"]["code"].as_str().unwrap()), (status, code));
    }
    let other = chat_body("hi", "").replace("\"m\"", "\"other\"");
    let (status, _, body) = client.send(Method::POST, "/v1/chat/completions", other).await;
    assert_eq!((status.as_u16(), json(&body)["error"]["code"].as_str().unwrap()), (404, "model_not_found"));
    let (status, _, _) = client.chat(&"x".repeat(5000), "").await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let mut client = Client::proven(running.address).await.0;
    for (method, path, status) in
        [(Method::GET, "/v1/chat/completions", 405), (Method::GET, "/v1/x", 404), (Method::GET, "/v1/receipts/x", 404)]
    {
        assert_eq!(client.send(method, path, String::new()).await.0.as_u16(), status);
    }
    assert!(running.engine.commands.lock().unwrap().is_empty());
    let (status, _, body) = client.chat("hi", r#","max_tokens":512"#).await;
    assert_eq!((status.as_u16(), json(&body)["error"]["code"].as_str()), (400, Some("context_length_exceeded")));
    assert!(running.engine.commands.lock().unwrap().is_empty());
    let (status, _, body) = client.chat("overflow", r#","stream":true"#).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(json(&body)["error"]["code"], "context_length_exceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_engine_says_429_and_a_lost_client_frees_it() {
    let running = start(Limits { generations: 1, ..Limits::default() }).await;
    let (mut first, _) = Client::proven(running.address).await;
    let (mut second, _) = Client::proven(running.address).await;
    let hanging = first.start(Method::POST, "/v1/chat/completions", chat_body("hang", r#","stream":true"#)).await;
    assert_eq!(hanging.status(), StatusCode::OK);
    let (status, headers, body) = second.chat("hi", "").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(headers["retry-after"], "1");
    assert_eq!(json(&body)["error"]["code"], "server_busy");
    drop(hanging);
    drop(first);
    until(|| running.engine.cancelled()).await;
    for _ in 0..6000 {
        match second.chat("hi", "").await.0 {
            StatusCode::OK => return,
            status => assert_eq!(status, StatusCode::TOO_MANY_REQUESTS),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the slot was never free");
}

/// Places are answers: one request for eight takes as many as eight for one.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_takes_a_place_for_each_choice() {
    let running = start(Limits { generations: 16, ..Limits::default() }).await;
    let (mut first, _) = Client::proven(running.address).await;
    let (mut second, _) = Client::proven(running.address).await;
    let _hanging =
        first.start(Method::POST, "/v1/chat/completions", chat_body("hang", r#","n":8,"stream":true"#)).await;
    assert_eq!(second.chat("hi", r#","n":5"#).await.0, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(second.chat("hi", r#","n":4"#).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_a_whole_answer_cancels_it() {
    let running = start(Limits::default()).await;
    let (mut client, _) = Client::proven(running.address).await;
    let asking = tokio::spawn(async move { client.chat("hang", "").await });
    until(|| running.engine.commands.lock().unwrap().len() == 1).await;
    asking.abort();
    until(|| running.engine.cancelled()).await;
}

/// One byte behind a request does not keep it running when the client has left.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_more_and_leaves_cancels_its_request() {
    let chat = |extra| post("/v1/chat/completions", &chat_body("hang", extra));
    let vectors = post("/v1/embeddings", r#"{"model":"m","input":"hang"}"#);
    let models = "GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n";
    for (engine, request, extra) in [
        (FakeEngine::start as fn(&std::path::Path) -> FakeEngine, chat(r#","stream":true"#), "P"),
        (FakeEngine::start, chat(""), "P"),
        (FakeEngine::start, chat(""), models),
        (FakeEngine::embedder, vectors, "P"),
    ] {
        let running = start_with(Limits::default(), engine).await;
        let mut stream = raw(running.address).await;
        stream.write_all(&[request, extra.into()].concat()).await.unwrap();
        stream.flush().await.unwrap();
        until(|| !running.engine.commands.lock().unwrap().is_empty()).await;
        drop(stream);
        until(|| running.engine.cancelled()).await;
    }
    // Who stays is answered, one request after the other.
    let running = start(Limits::default()).await;
    let mut stream = raw(running.address).await;
    let chat = post("/v1/chat/completions", &chat_body("hi", ""));
    stream.write_all(&[chat, models.into()].concat()).await.unwrap();
    let seen = until_read(&mut stream, "context_window").await;
    assert!(seen.contains("Paris."));
}

/// Who does not read is cancelled, and is told so when it reads at last.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_is_cancelled_and_told() {
    let running = start(Limits { answer_bytes: 1 << 30, ..Limits::default() }).await;
    let (mut client, _) = Client::proven(running.address).await;
    let response = client.start(Method::POST, "/v1/chat/completions", chat_body("flood", r#","stream":true"#)).await;
    until(|| running.engine.cancelled()).await;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&body);
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    let last = json(last.strip_prefix("data: ").unwrap().as_bytes());
    assert_eq!(last["error"]["code"], "reader_too_slow");
    assert!(!text.contains("[DONE]"));
    assert_eq!(client.chat("hi", "").await.0, StatusCode::OK);
}

/// As many receipts as the limit says, without their salts, and read only.
#[tokio::test(flavor = "multi_thread")]
async fn the_newest_receipts_can_be_fetched() {
    let running = start(Limits { receipts: 2, ..Limits::default() }).await;
    let (mut client, _) = Client::proven(running.address).await;
    let mut paths = Vec::new();
    for _ in 0..3 {
        let (status, _, body) = client.chat("hi", "").await;
        assert_eq!(status, StatusCode::OK);
        paths.push(format!("/v1/receipts/{}", json(&body)["id"].as_str().unwrap()));
    }
    let (status, _, body) = client.send(Method::GET, &paths[0], String::new()).await;
    assert_eq!((status, json(&body)["error"]["code"].as_str()), (StatusCode::NOT_FOUND, Some("not_found")));
    for (sequence, path) in [(1, &paths[1]), (2, &paths[2])] {
        let (status, _, body) = client.send(Method::GET, path, String::new()).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(SignedReceipt::from_canonical(&body).unwrap().receipt.sequence, sequence);
    }
    let (status, ..) = client.send(Method::POST, &paths[2], "{}".to_owned()).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
}

/// A receipt that the attester has signed can be fetched, whoever has left or lost patience meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_is_kept_though_its_client_is_gone() {
    let running = start(Limits { receipt: Duration::from_millis(50), ..Limits::default() }).await;
    let (mut leaver, _) = Client::proven(running.address).await;
    let (mut waiter, _) = Client::proven(running.address).await;
    let gate = running.attester.gate.lock().unwrap();
    let first_id = tokio::task::block_in_place(|| {
        tokio::runtime::Handle::current().block_on(async {
            let response =
                leaver.start(Method::POST, "/v1/chat/completions", chat_body("hi", r#","stream":true"#)).await;
            let mut body = response.into_body();
            let mut text = String::new();
            while !text.contains("finish_reason\":\"stop") {
                text.push_str(std::str::from_utf8(&body.frame().await.unwrap().unwrap().into_data().unwrap()).unwrap());
            }
            let first = text.split("\n\n").next().unwrap().strip_prefix("data: ").unwrap().to_owned();
            drop((body, leaver));
            let (status, _, body) = waiter.chat("hi", "").await;
            assert_eq!((status.as_u16(), json(&body)["error"]["code"].as_str()), (503, Some("attester_failed")));
            json(first.as_bytes())["id"].as_str().unwrap().to_owned()
        })
    });
    drop(gate);
    let path = format!("/v1/receipts/{first_id}");
    for _ in 0..6000 {
        let (status, _, body) = waiter.send(Method::GET, &path, String::new()).await;
        if status == StatusCode::OK {
            SignedReceipt::from_canonical(&body).unwrap().verify_signature().unwrap();
            return;
        }
        assert_eq!(status, StatusCode::NOT_FOUND);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the receipt is nowhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_and_bodies_are_cut_off() {
    let short = Duration::from_millis(50);
    let running = start(Limits { handshake: short, ..Limits::default() }).await;
    let mut silent = tokio::net::TcpStream::connect(running.address).await.unwrap();
    assert_eq!(silent.read(&mut [0; 8]).await.unwrap(), 0);
    let running = start(Limits { body: short, ..Limits::default() }).await;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(attested_channel::tls::client_config().unwrap()));
    let tcp = tokio::net::TcpStream::connect(running.address).await.unwrap();
    let mut stream = connector.connect("guest".try_into().unwrap(), tcp).await.unwrap();
    stream.write_all(b"POST /v1/attestation HTTP/1.1\r\nhost: x\r\ncontent-length: 90\r\n\r\n{").await.unwrap();
    let mut answer = vec![0; 64];
    let length = stream.read(&mut answer).await.unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 408"));
    let running = start(Limits { head: short, ..Limits::default() }).await;
    let tcp = tokio::net::TcpStream::connect(running.address).await.unwrap();
    let mut stream = connector.connect("guest".try_into().unwrap(), tcp).await.unwrap();
    // Closed before, without an answer, or after one that refuses: in any case it ends.
    let _ = stream.write_all(b"POST /v1/att").await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_ends_with_its_engine() {
    let running = start(Limits::default()).await;
    let (mut client, _) = Client::proven(running.address).await;
    let asking = tokio::spawn(async move { client.chat("hang", "").await.0 });
    until(|| running.engine.commands.lock().unwrap().len() == 1).await;
    running.engine.stop();
    assert!(matches!(running.server.await.unwrap(), Ended::Engine(_)));
    assert_ne!(asking.await.ok(), Some(StatusCode::OK));
}

/// Attack 57 at process level: what the server prints holds nothing of a request, whatever happens to it.
#[tokio::test(flavor = "multi_thread")]
async fn the_prompt_appears_in_no_output_of_the_process() {
    for behind_proxy in [false, true] {
        nothing_of_a_prompt_is_printed(behind_proxy).await;
    }
}

async fn nothing_of_a_prompt_is_printed(behind_proxy: bool) {
    let (_directory, attester_path, engine_path) = sockets();
    let _attester = FakeAttester::start(&attester_path);
    let engine = FakeEngine::start(&engine_path);
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_serve"))
        .args(["--listen", "127.0.0.1:0", "--print-address", "--attester-socket"])
        .arg(&attester_path)
        .arg("--engine-socket")
        .arg(&engine_path)
        .args(behind_proxy.then_some("--proxy-protocol"))
        .env("RUST_BACKTRACE", "full")
        .env("RUST_LOG", "trace")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let address: SocketAddr = lines.next_line().await.unwrap().unwrap().parse().unwrap();
    let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    if behind_proxy {
        tcp.write_all(&proxy_protocol::LOCAL).await.unwrap();
    }
    let mut client = Client::over(tcp).await.unwrap();
    client.attest([7; 32]).await;
    let canary = "canary-8d1f3a";
    assert_eq!(client.chat(canary, "").await.0, StatusCode::OK);
    for extra in [r#","stream":true"#, r#","canary-8d1f3a":1"#, r#","seed":"canary-8d1f3a""#, "canary-8d1f3a"] {
        client.chat(canary, extra).await;
    }
    engine.stop();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr, "serve: the engine closed the connection\n");
    assert_eq!(lines.next_line().await.unwrap(), None);
}

/// The text of each choice of a stream, and its receipt.
async fn streamed(client: &mut Client, path: &str, body: String) -> (Vec<String>, DeliveredReceipt) {
    let (status, _, stream) = client.send(Method::POST, path, body).await;
    assert_eq!(status, StatusCode::OK);
    let stream = String::from_utf8(stream.to_vec()).unwrap();
    let (events, rest) = stream.split_once("data: [DONE]\n\n").unwrap();
    let mut texts = Vec::new();
    for event in events.split_terminator("\n\n") {
        let choice = &json(event.strip_prefix("data: ").unwrap().as_bytes())["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        texts.resize(texts.len().max(index + 1), String::new());
        let text = choice["text"].as_str().or(choice["delta"]["content"].as_str());
        texts[index].push_str(text.unwrap_or_default());
    }
    let line = rest.lines().next().unwrap();
    (texts, delivered(line.strip_prefix(": chrysalis-receipt ").unwrap()))
}

fn said(content: Option<&str>, reason: &str, tool_calls: Vec<SaidCall>) -> SaidChoice {
    SaidChoice { content: content.map(str::to_owned), finish_reason: reason.to_owned(), tool_calls }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_covers_all_choices() {
    let running = start(Limits::default()).await;
    let (mut client, _) = Client::proven(running.address).await;
    let expected = response_bytes(&vec![said(Some("Paris."), "stop", vec![]); 3]).unwrap();
    let (_, headers, body) = client.chat("hi", r#","n":3"#).await;
    assert_eq!(json(&body)["choices"].as_array().unwrap().len(), 3);
    assert_eq!(json(&body)["usage"]["completion_tokens"], 12);
    let receipt = delivered(headers["chrysalis-receipt"].to_str().unwrap());
    receipt.verify_content(chat_body("hi", r#","n":3"#).as_bytes(), &expected).unwrap();
    assert!(receipt.verify_content(chat_body("hi", r#","n":3"#).as_bytes(), "Paris.").is_err());
    let body = chat_body("hi", r#","n":3,"stream":true"#);
    let (texts, receipt) = streamed(&mut client, "/v1/chat/completions", body.clone()).await;
    assert_eq!(texts, ["Paris."; 3]);
    receipt.verify_content(body.as_bytes(), &expected).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_is_continued() {
    let running = start(Limits::default()).await;
    let (mut client, _) = Client::proven(running.address).await;
    let body = r#"{"model":"m","prompt":"hi","stream":true}"#.to_owned();
    let (texts, receipt) = streamed(&mut client, "/v1/completions", body.clone()).await;
    assert_eq!(texts, ["Paris."]);
    receipt.verify_content(body.as_bytes(), "Paris.").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_tools_are_told_from_text_and_covered_by_the_receipt() {
    let running = start(Limits::default()).await;
    let (mut client, _) = Client::proven(running.address).await;
    let extra = r#","tools":[{"type":"function","function":{"name":"f"}}]"#;
    let (_, headers, body) = client.chat("call", extra).await;
    let choice = &json(&body)["choices"][0];
    assert_eq!(
        (choice["finish_reason"].as_str(), choice["message"]["content"].as_str()),
        (Some("tool_calls"), Some("I ask.\n"))
    );
    let calls: Vec<SaidCall> = choice["message"]["tool_calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| SaidCall {
            arguments: call["function"]["arguments"].as_str().unwrap().into(),
            id: call["id"].as_str().unwrap().into(),
            name: call["function"]["name"].as_str().unwrap().into(),
        })
        .collect();
    assert_eq!((calls.len(), calls[0].name.as_str(), calls[0].arguments.as_str()), (2, "f", "{}"));
    let expected = response_bytes(&[said(Some("I ask.\n"), "tool_calls", calls)]).unwrap();
    let receipt = delivered(headers["chrysalis-receipt"].to_str().unwrap());
    receipt.verify_content(chat_body("call", extra).as_bytes(), &expected).unwrap();
    let (texts, _) =
        streamed(&mut client, "/v1/chat/completions", chat_body("call", &format!("{extra},\"stream\":true"))).await;
    assert_eq!(texts, ["I ask.\n"], "marks of calls are no content");
}

/// What a connection's prompts left in the engine's cache is for that connection alone, and goes with it.
#[tokio::test(flavor = "multi_thread")]
async fn each_connection_is_a_tenant_until_it_ends() {
    let running = start(Limits::default()).await;
    let tenants = || -> Vec<Tenant> {
        let commands = running.engine.commands.lock().unwrap();
        let of = |command: &Command| if let Command::Generate(request) = command { Some(request.tenant) } else { None };
        commands.iter().filter_map(of).collect()
    };
    let (mut first, _) = Client::proven(running.address).await;
    let (mut second, _) = Client::proven(running.address).await;
    first.chat("hi", "").await;
    first.chat("hi", "").await;
    second.chat("hi", "").await;
    let seen = tenants();
    assert!(seen[0] == seen[1] && seen[0] != seen[2] && seen[0].0 != [0; 32]);
    drop(first);
    let forgotten = Command::Forget { tenant: seen[0] };
    until(|| running.engine.commands.lock().unwrap().contains(&forgotten)).await;
    assert!(!running.engine.commands.lock().unwrap().contains(&Command::Forget { tenant: seen[2] }));
}

async fn embed(client: &mut Client, input: &str, extra: &str) -> (StatusCode, http::HeaderMap, bytes::Bytes, String) {
    let body = format!(r#"{{"model":"m","input":{input}{extra}}}"#);
    let (status, headers, answer) = client.send(Method::POST, "/v1/embeddings", body.clone()).await;
    (status, headers, answer, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_have_openai_form_in_both_encodings_and_a_receipt_that_verifies() {
    let running = start_with(Limits::default(), FakeEngine::embedder).await;
    let (mut client, binding) = Client::proven(running.address).await;
    let vectors = [[0.5_f32, -1e-7], [1.5, -1e-7]];
    for (extra, is_base64) in [("", false), (r#","encoding_format":"base64","dimensions":2"#, true)] {
        let (status, headers, answer, body) = embed(&mut client, r#"["one","two"]"#, extra).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(answer.len() % 512, 0);
        let json = json(&answer);
        assert_eq!((&json["object"], &json["model"]), (&"list".into(), &support::model().to_string().into()));
        assert_eq!((&json["usage"]["prompt_tokens"], &json["usage"]["total_tokens"]), (&6.into(), &6.into()));
        for (index, vector) in vectors.iter().enumerate() {
            let entry = &json["data"][index];
            assert_eq!((&entry["object"], &entry["index"]), (&"embedding".into(), &index.into()));
            let found: Vec<f32> = if is_base64 {
                let bytes = STANDARD.decode(entry["embedding"].as_str().unwrap()).unwrap();
                bytes.chunks(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
            } else {
                entry["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
            };
            assert_eq!(found, vector);
        }
        let receipt = delivered(headers["chrysalis-receipt"].to_str().unwrap());
        receipt.signed().verify_signature().unwrap();
        receipt.verify_content(body.as_bytes(), embedding_bytes(&vectors).unwrap()).unwrap();
        assert!(receipt.verify_content(body.as_bytes(), embedding_bytes(&[[0.5_f32, -2e-7]]).unwrap()).is_err());
        assert_eq!(receipt.receipt.channel, channel_id(&binding));
        assert_eq!((receipt.receipt.prompt_tokens, receipt.receipt.completion_tokens), (6, 0));
        let path = format!("/v1/receipts/{}", json["id"].as_str().unwrap());
        let (_, _, stored) = client.send(Method::GET, &path, String::new()).await;
        assert_eq!(SignedReceipt::from_canonical(&stored).unwrap(), receipt.signed());
    }
    let all = format!("[{}[7]]", "[7],".repeat(2047));
    let (status, _, answer, _) = embed(&mut client, &all, "").await;
    assert_eq!((status, json(&answer)["data"].as_array().unwrap().len()), (StatusCode::OK, 2048));
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_that_cannot_become_vectors_are_refused_by_code() {
    let running = start_with(Limits { answer_bytes: 1000, ..Limits::default() }, FakeEngine::embedder).await;
    let (mut client, _) = Client::proven(running.address).await;
    for (input, extra, code, param) in [
        (r#""overflow""#, "", "context_length_exceeded", "input"),
        (r#""many""#, "", "max_tokens_per_request", "input"),
        (r#""unknown""#, "", "invalid_value", "input"),
        (r#""""#, "", "invalid_value", "input"),
        (r#"["a","a","a","a","a","a","a","a","a","a","a"]"#, "", "invalid_value", "input"),
        (r#""a""#, r#","dimensions":1"#, "invalid_value", "dimensions"),
        (r#""a""#, r#","truncate":true"#, "unsupported_parameter", "truncate"),
        (r#""a""#, r#","model":"gpt""#, "invalid_json", ""),
    ] {
        let (status, headers, answer, _) = embed(&mut client, input, extra).await;
        let error = &json(&answer)["error"];
        assert_eq!((status, &error["code"]), (StatusCode::BAD_REQUEST, &code.into()), "{input}");
        assert_eq!(error["param"].as_str().unwrap_or_default(), param, "{input}");
        assert!(headers.get("chrysalis-receipt").is_none());
    }
    for input in [r#""misnumbered""#, r#""long""#] {
        let (status, _, answer, _) = embed(&mut client, input, "").await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(json(&answer)["error"]["code"], "engine_failed");
    }
    assert_eq!(embed(&mut client, r#""fine""#, "").await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_refuses_what_it_is_not_for_and_says_what_it_is_for() {
    let answers = start(Limits::default()).await;
    let vectors = start_with(Limits::default(), FakeEngine::embedder).await;
    for (running, right, wrong, dimensions) in [
        (answers, &["/v1/chat/completions", "/v1/completions"][..], &["/v1/embeddings"][..], Value::Null),
        (vectors, &["/v1/embeddings"], &["/v1/chat/completions", "/v1/completions"], 2.into()),
    ] {
        let (mut client, _) = Client::proven(running.address).await;
        for path in wrong {
            let (status, _, body) = client.send(Method::POST, path, chat_body("hi", "")).await;
            assert_eq!((status, &json(&body)["error"]["code"]), (StatusCode::BAD_REQUEST, &"wrong_endpoint".into()));
            let (status, _, _) = client.send(Method::GET, path, String::new()).await;
            assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
        }
        assert!(running.engine.commands.lock().unwrap().is_empty());
        let (_, _, body) = client.send(Method::GET, "/v1/models", String::new()).await;
        let entry = &json(&body)["data"][0];
        assert_eq!(entry["endpoints"], serde_json::json!(right));
        assert_eq!(entry["embedding_dimensions"], dimensions);
    }
}
