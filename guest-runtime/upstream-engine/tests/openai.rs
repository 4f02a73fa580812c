// SPDX-License-Identifier: Apache-2.0
//! Through `serve`, as a client of the API sees it: attested TLS in front, the adapter and its server behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

#[allow(dead_code, reason = "other tests ask for more")]
mod adapter;
#[allow(dead_code, unused_imports, reason = "other tests ask for more")]
#[path = "../../serve/tests/support/mod.rs"]
mod support;

use adapter::{Adapter, CONTEXT, server, stand_in::serve_if_told};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use serve::{Limits, Options, Server};
use std::sync::Arc;
use support::{Client, FakeAttester, sockets};

/// Not a test by itself: the server behind the adapter.
#[test]
fn stand_in() {
    serve_if_told();
}

struct World {
    client: Client,
    _attester: Arc<FakeAttester>,
    _adapter: Adapter,
    _directory: tempfile::TempDir,
}

async fn start() -> Option<World> {
    let (directory, attester_path, _) = sockets();
    let attester = FakeAttester::start(&attester_path);
    let mut adapter = Adapter::start(&server(), CONTEXT);
    if !adapter.listens() {
        return None;
    }
    let options = Options {
        attester: attester_path,
        engine: adapter.socket.clone(),
        listen: "127.0.0.1:0".parse().unwrap(),
        proxy_protocol: false,
        limits: Limits::default(),
        tenants: None,
    };
    let server = Server::start(options).await.unwrap();
    let address = server.address();
    tokio::spawn(server.run());
    let client = Client::proven(address).await.0;
    Some(World { client, _attester: attester, _adapter: adapter, _directory: directory })
}

impl World {
    async fn chat(&mut self, prompt: &str, extra: &str) -> (StatusCode, HeaderMap, Value) {
        let (status, headers, body) = self.client.chat(prompt, extra).await;
        (status, headers, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// The events of a stream, and what stands behind the last.
    async fn stream(&mut self, prompt: &str, extra: &str) -> (Vec<Value>, String) {
        let (status, _, body) = self.client.chat(prompt, &format!(r#"{extra},"stream":true"#)).await;
        assert_eq!(status, StatusCode::OK);
        let body = String::from_utf8(body.to_vec()).unwrap();
        let (events, rest) = body.split_once("data: [DONE]").unwrap_or((&body, ""));
        let events = events.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
        (events.map(|event| serde_json::from_str(event).unwrap()).collect(), rest.to_owned())
    }
}

fn content(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
}

const CITY: &str = r#","response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object",
    "properties":{"city":{"type":"string"}},"required":["city"]}}}"#;
const TOOL: &str = r#","tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object",
    "properties":{"city":{"type":"string"}},"required":["city"]}}}]"#;

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_openai_form_and_receipts() {
    let Some(mut world) = start().await else { return };
    let (status, headers, answer) = world.chat("Where?", r#","n":2,"logprobs":true,"top_logprobs":2"#).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert!(headers.contains_key("chrysalis-receipt"));
    for choice in answer["choices"].as_array().unwrap() {
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!("Paris."), &json!("stop")));
        let first = &choice["logprobs"]["content"][0];
        assert_eq!((&first["token"], first["top_logprobs"].as_array().unwrap().len()), (&json!("Paris"), 2));
    }
    let usage = &answer["usage"];
    assert_eq!((&usage["completion_tokens"], &usage["prompt_tokens_details"]["cached_tokens"]), (&json!(6), &json!(2)));

    let (events, rest) = world.stream("Where?", r#","stream_options":{"include_usage":true}"#).await;
    assert_eq!(content(&events), "Paris.");
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 3);
    assert!(rest.contains(": chrysalis-receipt "), "{rest}");

    let (_, _, answer) = world.chat("Where?", CITY).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "{\"city\": \"Paris\"}");
    let (_, _, answer) = world.chat("call", TOOL).await;
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!((&call["name"], call["arguments"].as_str()), (&json!("weather"), Some(r#"{"city":"Paris"}"#)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_behind_has_openai_codes_and_no_words_of_the_server() {
    let Some(mut world) = start().await else { return };
    for (prompt, extra, status, code) in [
        ("no form", CITY, 400, "form_stuck"),
        ("<|im_end|>", "", 400, "control_token"),
        ("miscounted prompt", "", 500, "engine_failed"),
        ("garbage", "", 500, "engine_failed"),
        ("error", "", 500, "engine_failed"),
        ("too busy", "", 429, "server_busy"),
        ("x", r#","max_tokens":2047"#, 400, "context_length_exceeded"),
    ] {
        let (found, _, answer) = world.chat(prompt, extra).await;
        assert_eq!((found.as_u16(), answer["error"]["code"].as_str()), (status, Some(code)), "{prompt}: {answer}");
        assert!(!answer.to_string().contains("secret"), "{answer}");
    }
    // In the middle of a stream: what was said, an error, and no end.
    let (events, rest) = world.stream("die", "").await;
    assert_eq!(content(&events), "I am");
    assert_eq!(events.last().unwrap()["error"]["code"], "engine_failed");
    assert!(!rest.contains("receipt"));
    for _ in 0..1200 {
        let (status, _, answer) = world.chat("Where?", "").await;
        if status == StatusCode::OK {
            assert_eq!(answer["choices"][0]["message"]["content"], "Paris.");
            return;
        }
        assert_eq!(answer["error"]["code"], "engine_failed");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("no server came back");
}
