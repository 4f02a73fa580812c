// SPDX-License-Identifier: Apache-2.0
//! What is refused, by code, before it costs anything: the engine is not asked, and the next request is answered.

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    Guest, code, content,
    support::{Client, chat_body, raw, until_read},
};

const CHAT: &str = "/v1/chat/completions";

/// A good request with one field changed.
fn with(name: &str, value: impl Into<Value>) -> Vec<u8> {
    let mut body: Value = serde_json::from_str(&chat_body("hi", "")).unwrap();
    body[name] = value.into();
    body.to_string().into_bytes()
}

/// The text of a good request with `value` as it stands, which need be no JSON.
fn with_text(name: &str, value: &str) -> Vec<u8> {
    chat_body("hi", &format!(",\"{name}\":{value}")).into_bytes()
}

/// Each body with the code that refuses it.
async fn all_refused(guest: &Guest, cases: Vec<(&str, Vec<u8>, &str)>) {
    let (mut client, _) = Client::proven(guest.address).await;
    for (what, body, expected) in cases {
        let (status, _, answer) = client.send(Method::POST, CHAT, body).await;
        assert_eq!((status, code(&answer).as_str()), (StatusCode::BAD_REQUEST, expected), "{what}");
        assert!(answer.len() < 600, "{what}: {} bytes of refusal", answer.len());
    }
    assert_eq!(guest.asked(), 0);
    // The connection itself is as good as before.
    let (_, _, body) = client.chat("hi", "").await;
    assert_eq!((content(&body).as_str(), guest.asked()), ("Paris.", 1));
    guest.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_are_refused() {
    let guest = Guest::start().await;
    let within = |bytes: &[u8]| [br#"{"model":"m","messages":[{"role":"user","content":""#, bytes, br#""}]}"#].concat();
    all_refused(
        &guest,
        vec![
            ("a byte that UTF-8 has not", within(b"\xff"), "invalid_json"),
            ("a letter cut in two", within(b"\xc3"), "invalid_json"),
            ("a longer form than needed", within(b"\xc0\xaf"), "invalid_json"),
            ("half of a pair as bytes", within(b"\xed\xa0\x80"), "invalid_json"),
            ("half of a pair as an escape", within(br"\ud800"), "invalid_json"),
            ("pairs in the wrong order", within(br"\udc00\ud800"), "invalid_json"),
            ("beyond the last letter", within(b"\xf4\x90\x80\x80"), "invalid_json"),
            ("a zero byte", within(b"\0"), "invalid_json"),
            ("a zero byte as an escape", within(br"\u0000"), "invalid_value"),
            ("a line's end", within(b"\n"), "invalid_json"),
            ("UTF-16", chat_body("hi", "").encode_utf16().flat_map(u16::to_le_bytes).collect(), "invalid_json"),
            ("nothing", Vec::new(), "invalid_json"),
            ("half of it", chat_body("hi", "").into_bytes()[..30].to_vec(), "invalid_json"),
            ("more than it", [chat_body("hi", ""), "{}".into()].concat().into_bytes(), "invalid_json"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_bombs_are_refused() {
    let guest = Guest::start().await;
    let nested = |open: &str, close: &str, depth: usize| open.repeat(depth) + "1" + &close.repeat(depth);
    let schema = |schema: &str| {
        with_text(
            "response_format",
            &format!(r#"{{"type":"json_schema","json_schema":{{"name":"x","schema":{schema}}}}}"#),
        )
    };
    let many = |count: usize| (0..count).map(|n| format!("\"a{n}\":1")).collect::<Vec<_>>().join(",");
    let options: Vec<String> = (0..257).map(|n| n.to_string()).collect();
    all_refused(
        &guest,
        vec![
            ("arrays", nested("[", "]", 400_000).into_bytes(), "invalid_json"),
            ("objects", nested("{\"a\":", "}", 100_000).into_bytes(), "invalid_json"),
            ("arrays that never end", "[".repeat(900_000).into_bytes(), "invalid_json"),
            ("arrays as a value", with_text("stop", &nested("[", "]", 400_000)), "invalid_json"),
            ("arrays in the conversation", with_text("user", &nested("[", "]", 65)), "invalid_json"),
            ("a name twice", with_text("model", "\"m\""), "invalid_json"),
            ("a name twice, escaped", with_text("mod\\u0065l", "\"m\""), "invalid_json"),
            ("100,000 names", format!("{{{}}}", many(70_000)).into_bytes(), "unsupported_parameter"),
            ("a number without an end", with_text("seed", &"9".repeat(900_000)), "invalid_json"),
            ("a deep schema", schema(&nested("{\"anyOf\":[", "]}", 40)), "invalid_json"),
            ("a long schema", schema(&format!("{{\"title\":\"{}\"}}", "x".repeat(65 << 10))), "invalid_value"),
            ("a schema of many values", schema(&format!("{{\"enum\":[{}]}}", options.join(","))), "invalid_value"),
            ("a schema without an end", schema(r##"{"$ref":"#"}"##), "invalid_value"),
            (
                "a schema that multiplies",
                schema(r##"{"$defs":{"a":{"anyOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/a"}]}},"$ref":"#/$defs/a"}"##),
                "invalid_value",
            ),
        ],
    )
    .await;
}

/// Attack 58: a request that is larger than what it may cost.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_beyond_their_limits_are_refused() {
    let guest = Guest::start().await;
    let message = json!({ "role": "user", "content": "hi" });
    let mut cases = Vec::new();
    for n in ["1000", "9", "0", "-1", "1.5", "\"8\"", "1e3", "4294967297", "18446744073709551617", "true", "[8]"] {
        cases.push(("n", with_text("n", n), "invalid_value"));
        cases.push((
            "max_tokens",
            with_text(
                "max_completion_tokens",
                if n == "9" {
                    "1048577"
                } else if n == "1000" {
                    "0"
                } else {
                    n
                },
            ),
            "invalid_value",
        ));
    }
    // 1e400 is no number that anybody could hold.
    cases.push(("temperature", with_text("temperature", "1e400"), "invalid_json"));
    for (name, value) in [
        ("temperature", "2.1"),
        ("temperature", "-0.1"),
        ("top_p", "1.1"),
        ("frequency_penalty", "-2.1"),
        ("presence_penalty", "1e39"),
        ("stop", r#"["a","b","c","d","e"]"#),
        ("seed", "18446744073709551616"),
    ] {
        cases.push((name, with_text(name, value), "invalid_value"));
    }
    cases.push(("top_logprobs", with_text("logprobs", "true,\"top_logprobs\":21"), "invalid_value"));
    cases.push(("messages", with("messages", vec![message; 257]), "invalid_value"));
    cases.push(("messages", with("messages", Value::Array(vec![])), "invalid_value"));
    for most in ["512", "513", "1048576"] {
        cases.push(("context", with_text("max_completion_tokens", most), "context_length_exceeded"));
    }
    all_refused(&guest, cases).await;
}

/// Ten megabytes are refused when they are announced, and where they are not, when one of them has come.
#[tokio::test(flavor = "multi_thread")]
async fn prompts_of_ten_megabytes_are_refused_before_they_are_read() {
    let guest = Guest::start().await;
    let mut announced = raw(guest.address).await;
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 10 << 20);
    announced.write_all(head.as_bytes()).await.unwrap();
    let answer = until_read(&mut announced, "request_too_large").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");

    let unannounced = raw(guest.address).await;
    let (mut reading, mut writing) = tokio::io::split(unannounced);
    let sender = tokio::spawn(async move {
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
        let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
        let mut sent = 0;
        let mut done = writing.write_all(head.as_bytes()).await.is_ok();
        // The server may close what it will not read: then writing fails, and it did not take ten megabytes.
        while done && sent < 10 << 20 {
            done = writing.write_all(&chunk).await.is_ok();
            sent += 0x10000;
        }
        done
    });
    let mut answer = Vec::new();
    let _ = reading.read_to_end(&mut answer).await;
    let all_was_taken = sender.await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    // The answer can be lost where the connection was reset behind it.
    assert!(
        answer.is_empty() || (answer.starts_with("HTTP/1.1 413") && answer.contains("request_too_large")),
        "{answer}"
    );
    assert!(!all_was_taken || !answer.is_empty());
    assert_eq!(guest.asked(), 0);
    guest.is_unharmed().await;
}

/// Only the engine can count tokens: it refuses before it computes, and the connection goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_does_not_fit_is_refused() {
    let guest = Guest::start().await;
    let (mut client, _) = Client::proven(guest.address).await;
    for extra in ["", r#","stream":true"#, r#","n":8"#] {
        let (status, headers, body) = client.chat("overflow", extra).await;
        assert_eq!((status, code(&body).as_str()), (StatusCode::BAD_REQUEST, "context_length_exceeded"));
        assert!(!headers.contains_key("chrysalis-receipt"));
    }
    let (status, _, body) = client.chat("hi", "").await;
    assert_eq!((status, content(&body).as_str()), (StatusCode::OK, "Paris."));
}

/// Some who read nothing hold up nobody else: their requests are cancelled, and all others are answered meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_hold_up_nobody() {
    let guest = Guest::start().await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        let (mut client, _) = Client::proven(guest.address).await;
        let body = chat_body("flood", r#","stream":true"#);
        let response = client.start(Method::POST, CHAT, body).await;
        assert_eq!(response.status(), StatusCode::OK);
        slow.push((client, response));
        guest.is_unharmed().await;
    }
    for (_, response) in slow {
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("reader_too_slow") && !text.contains("[DONE]"));
    }
    guest.is_unharmed().await;
}
