// SPDX-License-Identifier: Apache-2.0
//! Requests, and answers as they come.

use anyhow::Context as _;
use attested_channel::DeliveredReceipt;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use client::{AttestedConnection, Blocks};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use types::ModelId;

use super::random::Random;

/// A chat request for some words about others.
pub(crate) fn chat_body(model: &ModelId, words: u64, max_tokens: u64, random: &mut Random) -> Value {
    let text: Vec<&str> = (0..words).map(|_| random.one_of(&WORDS)).collect();
    json!({
        "model": model.to_string(),
        "messages": [{ "role": "user", "content": text.join(" ") }],
        "max_completion_tokens": max_tokens,
        "temperature": 0.8,
        "seed": random.next() >> 12,
    })
}

/// The same with a form that cannot end before its tokens do: whatever the model says, the answer has that many.
pub(crate) fn endless(mut body: Value) -> Value {
    let schema = json!({ "type": "array", "items": { "enum": [1, 2] }, "minItems": 1000 });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "numbers", "schema": schema } });
    set(&mut body, "response_format", format);
    body
}

pub(crate) fn set(body: &mut Value, name: &str, value: impl Into<Value>) {
    if let Some(fields) = body.as_object_mut() {
        fields.insert(name.to_owned(), value.into());
    }
}

/// Sends a completion request and gives the head of the answer.
pub(crate) async fn send(connection: &mut AttestedConnection, body: Bytes) -> anyhow::Result<Response<Incoming>> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(connection.send(Method::POST, "/v1/chat/completions", headers, body).await?)
}

/// Status, headers and body of an answer that is not streamed.
pub(crate) async fn whole(response: Response<Incoming>) -> anyhow::Result<(StatusCode, HeaderMap, Bytes)> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MOST).collect().await.map_err(|_| anyhow::anyhow!("the answer broke"))?;
    Ok((head.status, head.headers, body.to_bytes()))
}

/// A whole answer with its receipt.
pub(crate) async fn ask(
    connection: &mut AttestedConnection,
    body: &Value,
) -> anyhow::Result<(Value, DeliveredReceipt)> {
    let (status, headers, answer) = whole(send(connection, body.to_string().into()).await?).await?;
    let answer: Value = serde_json::from_slice(&answer)?;
    anyhow::ensure!(status == StatusCode::OK, "{}", code(&answer));
    let receipt = headers.get("chrysalis-receipt").context("an answer without a receipt")?;
    Ok((answer, delivered(receipt.to_str()?)?))
}

/// The code of an error object.
pub(crate) fn code(answer: &Value) -> String {
    answer.pointer("/error/code").and_then(Value::as_str).unwrap_or("no error code").to_owned()
}

pub(crate) fn delivered(base64: &str) -> anyhow::Result<DeliveredReceipt> {
    Ok(DeliveredReceipt::from_canonical(&STANDARD.decode(base64)?)?)
}

/// What comes of a streamed answer.
#[derive(Debug)]
pub(crate) enum Event {
    /// A piece of it; the first ones may be empty.
    Piece(Value),
    /// Its receipt in base64.
    Receipt(String),
    /// Filling, or the end's mark.
    Other,
}

/// A streamed answer.
pub(crate) struct Events {
    body: Incoming,
    blocks: Blocks,
}

impl Events {
    /// Asks for `body` as a stream.
    pub(crate) async fn ask(connection: &mut AttestedConnection, mut body: Value) -> anyhow::Result<Self> {
        set(&mut body, "stream", true);
        let response = send(connection, body.to_string().into()).await?;
        if response.status() != StatusCode::OK {
            let (_, _, answer) = whole(response).await?;
            anyhow::bail!("{}", code(&serde_json::from_slice(&answer)?));
        }
        Ok(Self { body: response.into_body(), blocks: Blocks::default() })
    }

    /// The next event, or nothing at the end.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        loop {
            if let Some(block) = self.blocks.next_block()? {
                let receipt = block.comments.iter().find_map(|comment| comment.strip_prefix("chrysalis-receipt "));
                return match (block.data, receipt) {
                    (_, Some(receipt)) => Ok(Some(Event::Receipt(receipt.to_owned()))),
                    (Some(data), None) if data != "[DONE]" => {
                        let piece: Value = serde_json::from_str(&data)?;
                        anyhow::ensure!(piece.get("error").is_none(), "{}", code(&piece));
                        Ok(Some(Event::Piece(piece)))
                    }
                    _ => Ok(Some(Event::Other)),
                };
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            if let Ok(bytes) = frame?.into_data() {
                self.blocks.push(&bytes);
            }
        }
    }
}

/// The id of the answer that a piece belongs to.
pub(crate) fn id(piece: &Value) -> Option<&str> {
    piece.get("id").and_then(Value::as_str)
}

/// Most bytes of a whole answer.
const MOST: usize = 16 << 20;
const WORDS: [&str; 16] = [
    "ship", "tree", "why", "blue", "the", "river", "tell", "me", "about", "one", "stone", "and", "how", "city", "rain",
    "?",
];
