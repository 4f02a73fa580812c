// SPDX-License-Identifier: Apache-2.0
//! Asks a question and reads the streamed answer up to its verified receipt.

use std::time::Duration;

use attested_channel::{
    DeliveredReceipt,
    receipt::{SaidChoice, response_bytes},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use types::ModelId;

use crate::{
    connection::AttestedConnection,
    error::ClientError,
    openai::{self, Chunk, Usage},
    sse::{Block, Blocks},
};

/// A whole answer whose receipt was verified.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The completion's id, for `GET /v1/receipts/{id}`.
    pub id: String,
    /// The text, of the first choice where there are several.
    pub text: String,
    /// All choices, with the tools to call.
    pub choices: Vec<SaidChoice>,
    /// `stop`, `length` or `tool_calls`, of the first choice.
    pub finish_reason: String,
    /// Tokens as the guest counted them, the same as in the receipt.
    pub usage: Usage,
    /// The receipt, with its salt.
    pub receipt: DeliveredReceipt,
}

/// A request for an answer to one question, greedy.
#[must_use]
pub fn question(model: &ModelId, text: &str, max_tokens: u32) -> Value {
    json!({
        "model": model.to_string(),
        "messages": [{"role": "user", "content": text}],
        "max_completion_tokens": max_tokens,
        "temperature": 0,
    })
}

/// What a streamed answer came to, before its receipt is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streamed {
    /// What each choice says, as a guest signs it.
    pub choices: Vec<SaidChoice>,
    /// The bytes that a receipt's hash must cover.
    pub response: Vec<u8>,
    /// The receipt. Nothing of it has been verified: [`check_receipt`] does that.
    pub receipt: Option<DeliveredReceipt>,
    /// Code of the error object that ended it.
    pub failed: Option<String>,
}

/// Reads the body of a streamed answer in pieces as they came, by the rules of [`chat`].
///
/// # Errors
/// [`ClientError::Refused`] for a stream that no guest sends.
pub fn read_streamed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Streamed, ClientError> {
    let (mut blocks, mut reading, mut failed) = (Blocks::default(), Reading::default(), None);
    'pieces: for piece in pieces {
        blocks.push(piece);
        while let Some(block) = next_block(&mut blocks)? {
            if let Seen::Failed(code) = reading.take(&block)? {
                failed = Some(code);
                break 'pieces;
            }
        }
    }
    let response = reading.response()?;
    let Reading { said, receipt, .. } = reading;
    Ok(Streamed { choices: openai::as_signed(said), response, receipt, failed })
}

/// Sends a chat completion request (a JSON object, as [`question`] makes one) with the connection's API key, streams the answer to `on_text`, and
/// verifies the receipt. An error after some text means that the text has no valid receipt.
///
/// # Errors
/// [`ClientError`].
pub async fn chat(
    connection: &mut AttestedConnection,
    request: &Value,
    mut on_text: impl FnMut(&str),
) -> Result<Answer, ClientError> {
    let mut request = request.clone();
    if let Some(fields) = request.as_object_mut() {
        fields.insert("stream".to_owned(), true.into());
        fields.insert("stream_options".to_owned(), json!({"include_usage": true}));
    }
    let body = Bytes::from(request.to_string());
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(key) = connection.api_key() {
        headers.insert(header::AUTHORIZATION, key.clone());
    }
    let sending = connection.send(Method::POST, "/v1/chat/completions", headers, body.clone());
    let response = tokio::time::timeout(PATIENCE, sending).await.map_err(|_| SLOW)??;
    let status = response.status();
    if status != StatusCode::OK {
        let body = Limited::new(response.into_body(), MAX_ERROR).collect().await.map_err(|_| SLOW)?.to_bytes();
        return Err(ClientError::Answered { status: status.as_u16(), code: openai::error_code(&body) });
    }
    let reading = read(response.into_body(), &mut on_text).await?;
    let response = reading.response()?;
    let Reading { said, receipt, id, usage: told, .. } = reading;
    let receipt = receipt.ok_or_else(receipt_missing)?;
    connection.accept_receipt(receipt.clone(), &body, &response).await?;
    let usage =
        Usage { prompt_tokens: receipt.receipt.prompt_tokens, completion_tokens: receipt.receipt.completion_tokens };
    if told != Some(usage) {
        let detail = "the receipt names other token counts than the answer";
        return Err(ClientError::refuse("receipt_usage_mismatch", "receipt.completion_tokens", detail, NO_FIX));
    }
    let choices = openai::as_signed(said);
    let first = choices.first().cloned();
    let (text, finish_reason) =
        first.map(|first| (first.content.unwrap_or_default(), first.finish_reason)).unwrap_or_default();
    Ok(Answer { id, text, choices, finish_reason, usage, receipt })
}

async fn read(mut body: Incoming, on_text: &mut impl FnMut(&str)) -> Result<Reading, ClientError> {
    let (mut blocks, mut reading) = (Blocks::default(), Reading::default());
    while let Some(bytes) = next_bytes(&mut body, PATIENCE).await? {
        blocks.push(&bytes);
        while let Some(block) = next_block(&mut blocks)? {
            match reading.take(&block)? {
                Seen::Text(text) => on_text(&text),
                Seen::Failed(code) => return Err(ClientError::Answered { status: 200, code }),
                Seen::Done | Seen::Receipt(_) | Seen::Other => {}
            }
        }
    }
    Ok(reading)
}

/// The next bytes of a streamed answer, for which the guest has so long; `None` at its end.
pub(crate) async fn next_bytes(body: &mut Incoming, patience: Duration) -> Result<Option<Bytes>, ClientError> {
    loop {
        let frame = tokio::time::timeout(patience, body.frame()).await.map_err(|_| SLOW)?;
        match frame {
            None => return Ok(None),
            Some(Err(_)) => return Err(SLOW),
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

/// The next whole event.
pub(crate) fn next_block(blocks: &mut Blocks) -> Result<Option<Block>, ClientError> {
    blocks.next_block().map_err(|error| malformed(&error.to_string()))
}

/// What a streamed answer has said so far.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    said: Vec<SaidChoice>,
    bytes: usize,
    pub(crate) receipt: Option<DeliveredReceipt>,
    id: String,
    usage: Option<Usage>,
    done: bool,
}

/// What one event was.
#[derive(Debug)]
pub(crate) enum Seen {
    /// A piece of the answer.
    Text(String),
    /// `[DONE]`.
    Done,
    /// The receipt, not yet checked.
    Receipt(Box<DeliveredReceipt>),
    /// An error object with this code.
    Failed(String),
    /// Anything else.
    Other,
}

impl Reading {
    /// What the receipt's hash must cover.
    pub(crate) fn response(&self) -> Result<Vec<u8>, ClientError> {
        let said = openai::as_signed(self.said.clone());
        response_bytes(&said).map_err(|_| malformed("the answer has no canonical form"))
    }

    /// Takes one event. Text after `[DONE]` and a second receipt are refused: no receipt would speak of them.
    pub(crate) fn take(&mut self, block: &Block) -> Result<Seen, ClientError> {
        if let Some(base64) = block.comments.iter().find_map(|comment| comment.strip_prefix(RECEIPT_COMMENT)) {
            if !self.done || self.receipt.is_some() || block.data.is_some() {
                return Err(malformed("the receipt is out of place"));
            }
            let receipt = decode_receipt(base64)?;
            self.receipt = Some(receipt.clone());
            return Ok(Seen::Receipt(Box::new(receipt)));
        }
        match block.data.as_deref() {
            None => Ok(Seen::Other),
            Some(_) if self.done => Err(malformed("there is an event after [DONE]")),
            Some("[DONE]") => {
                self.done = true;
                Ok(Seen::Done)
            }
            Some(data) => self.take_chunk(data),
        }
    }

    fn take_chunk(&mut self, data: &str) -> Result<Seen, ClientError> {
        let chunk: Chunk = serde_json::from_str(data).map_err(|_| malformed("an event is not the expected JSON"))?;
        if let Some(error) = &chunk.error {
            return Ok(Seen::Failed(error.code()));
        }
        if chunk.has_more_than_one_choice() {
            return Err(malformed("an event has more than one choice"));
        }
        self.usage = chunk.usage.or(self.usage);
        let added = chunk.add_to(&mut self.said);
        let (text, added) = added.ok_or_else(|| malformed("an event does not fit those before it"))?;
        self.bytes = self.bytes.saturating_add(added);
        if self.bytes > MAX_TEXT {
            return Err(malformed("the answer is too long"));
        }
        if let Some(id) = chunk.id {
            self.id = id;
        }
        Ok(if text.is_empty() { Seen::Other } else { Seen::Text(text) })
    }
}

/// Reads a receipt as it stands in the comment or the header.
pub(crate) fn decode_receipt(base64: &str) -> Result<DeliveredReceipt, ClientError> {
    let bytes = STANDARD.decode(base64).map_err(|_| malformed_receipt())?;
    DeliveredReceipt::from_canonical(&bytes).map_err(|error| ClientError::Refused(vec![error.refusal()]))
}

/// The refusal of an answer without a receipt.
pub(crate) fn receipt_missing() -> ClientError {
    let detail = "the answer ended without a receipt";
    ClientError::refuse("receipt_missing", "receipt", detail, "ask again; an answer without a receipt may be cut short")
}

fn malformed_receipt() -> ClientError {
    ClientError::refuse("receipt_malformed", "receipt", "the receipt is not base64", NO_FIX)
}

fn malformed(detail: &str) -> ClientError {
    ClientError::refuse("answer_malformed", "answer", detail, "ask again")
}

const RECEIPT_COMMENT: &str = "chrysalis-receipt ";
const NO_FIX: &str = "do not rely on this answer: ask again";
const SLOW: ClientError = ClientError::Broken("the answer was read");
/// How long the guest may say nothing: reading a long prompt takes time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
const MAX_ERROR: usize = 64 << 10;
const MAX_TEXT: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn take(reading: &mut Reading, stream: &str) -> Result<Vec<Seen>, ClientError> {
        let mut blocks = Blocks::default();
        blocks.push(stream.as_bytes());
        let mut seen = Vec::new();
        while let Some(block) = next_block(&mut blocks)? {
            seen.push(reading.take(&block)?);
        }
        Ok(seen)
    }

    fn code(stream: &str) -> String {
        take(&mut Reading::default(), stream).unwrap_err().reasons()[0].code.clone()
    }

    #[test]
    fn text_usage_and_errors_are_read() {
        let mut reading = Reading::default();
        let seen = take(
            &mut reading,
            "data: {\"id\":\"x\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"Hé\"}}],\"obfuscation\":\"xx\"}\n\n\
             data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
             data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2,\"total_tokens\":3}}\n\n: pad\n\n",
        )
        .unwrap();
        assert!(matches!(&seen[1], Seen::Text(text) if text == "Hé"));
        assert_eq!(
            (reading.response().unwrap().as_slice(), reading.id.as_str(), reading.said[0].finish_reason.as_str()),
            ("Hé".as_bytes(), "x", "stop")
        );
        assert_eq!(reading.usage, Some(Usage { prompt_tokens: 1, completion_tokens: 2 }));
        let seen = take(&mut Reading::default(), "data: {\"error\":{\"code\":\"engine_failed\"}}\n\n").unwrap();
        assert!(matches!(&seen[0], Seen::Failed(code) if code == "engine_failed"));
    }

    #[test]
    fn what_no_receipt_would_cover_is_refused() {
        assert_eq!(code("data: [DONE]\n\ndata: {\"choices\":[]}\n\n"), "answer_malformed");
        assert_eq!(code(": chrysalis-receipt AAAA\n\n"), "answer_malformed");
        assert_eq!(code("data: [DONE]\n\n: chrysalis-receipt ?\n\n"), "receipt_malformed");
        assert_eq!(code("data: [DONE]\n\n: chrysalis-receipt e30=\n\n"), "receipt_malformed");
        assert_eq!(code("data: nonsense\n\n"), "answer_malformed");
        let two = r#"data: {"choices":[{"delta":{"content":"a"}},{"delta":{"content":"b"}}]}"#;
        assert_eq!(code(&format!("{two}\n\n")), "answer_malformed");
    }
}
