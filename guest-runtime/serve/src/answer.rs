// SPDX-License-Identifier: Apache-2.0
//! The JSON of answers and the server-sent events, padded to buckets so that their sizes do not spell the text.

use engine_protocol::FinishReason;
use serde::Serialize;

/// What all parts of one answer share.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
}

/// Tokens as the engine counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u64,
}

impl Usage {
    pub(crate) fn new(prompt_tokens: u32, completion_tokens: u32) -> Self {
        let total_tokens = u64::from(prompt_tokens).saturating_add(completion_tokens.into());
        Self { prompt_tokens, completion_tokens, total_tokens }
    }

    pub(crate) fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens.into()
    }

    pub(crate) fn completion_tokens(&self) -> u64 {
        self.completion_tokens.into()
    }
}

impl Frame {
    /// A whole answer. White space after it fills its bucket.
    pub(crate) fn completion(&self, text: &str, reason: FinishReason, usage: Usage) -> Vec<u8> {
        let completion = Completion {
            id: &self.id,
            object: "chat.completion",
            created: self.created,
            model: &self.model,
            choices: [Choice {
                index: 0,
                message: AnswerMessage { role: "assistant", content: text, refusal: None },
                logprobs: None,
                finish_reason: reason_name(reason),
            }],
            usage,
        };
        let mut json = serde_json::to_vec(&completion).unwrap_or_default();
        json.resize(json.len().saturating_add(missing(json.len())), b' ');
        json
    }
}

/// Writes the events of one streamed answer.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    pub(crate) frame: Frame,
    pub(crate) include_usage: bool,
    pub(crate) pad: bool,
}

impl Events {
    /// The first event: who speaks.
    pub(crate) fn role(&self) -> Vec<u8> {
        self.chunk(Some(Delta { role: Some("assistant"), content: Some("") }), None, None)
    }

    /// A piece of the answer.
    pub(crate) fn text(&self, text: &str) -> Vec<u8> {
        self.chunk(Some(Delta { role: None, content: Some(text) }), None, None)
    }

    /// Why the answer ended and, if asked for, the usage.
    pub(crate) fn end(&self, reason: FinishReason, usage: Usage) -> Vec<u8> {
        let mut events = self.chunk(Some(Delta::default()), Some(reason_name(reason)), None);
        if self.include_usage {
            events.extend(self.chunk(None, None, Some(usage)));
        }
        events
    }

    /// `[DONE]` and the receipt, as a comment: a named event would break clients that know none.
    pub(crate) fn done(&self, receipt: &str) -> Vec<u8> {
        let mut events = format!("data: [DONE]\n\n: {RECEIPT_COMMENT} {receipt}\n\n").into_bytes();
        if self.pad {
            // A comment line ": x…\n\n" needs four bytes beside its filling.
            let length = events.len().saturating_add(4);
            events.extend(format!(": {}\n\n", "x".repeat(missing(length))).bytes());
        }
        events
    }

    /// An error after the head was sent.
    pub(crate) fn error(error_json: &[u8]) -> Vec<u8> {
        [b"data: ".as_slice(), error_json, b"\n\n"].concat()
    }

    fn chunk(&self, delta: Option<Delta<'_>>, reason: Option<&'static str>, usage: Option<Usage>) -> Vec<u8> {
        let mut chunk = Chunk {
            id: &self.frame.id,
            object: "chat.completion.chunk",
            created: self.frame.created,
            model: &self.frame.model,
            choices: delta
                .map(|delta| ChunkChoice { index: 0, delta, logprobs: None, finish_reason: reason })
                .into_iter()
                .collect(),
            usage: self.include_usage.then_some(usage),
            obfuscation: self.pad.then(String::new),
        };
        let event = event(&chunk);
        if !self.pad {
            return event;
        }
        chunk.obfuscation = Some("x".repeat(missing(event.len())));
        self::event(&chunk)
    }
}

fn event(chunk: &Chunk<'_>) -> Vec<u8> {
    let json = serde_json::to_vec(chunk).unwrap_or_default();
    [b"data: ".as_slice(), &json, b"\n\n"].concat()
}

/// Bytes that fill the last bucket.
fn missing(length: usize) -> usize {
    length.next_multiple_of(BUCKET).saturating_sub(length)
}

fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        // A cancelled answer has nobody left to read this.
        FinishReason::Length | FinishReason::Cancelled => "length",
    }
}

/// First word of the comment that carries a receipt, and name of the header that does.
pub(crate) const RECEIPT_COMMENT: &str = "chrysalis-receipt";

/// Sizes of events and answers are multiples of this. An event's fixed part has about 300 bytes.
const BUCKET: usize = 512;

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'a str,
    created: u64,
    model: &'a str,
    choices: [Choice<'a>; 1],
    usage: Usage,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u8,
    message: AnswerMessage<'a>,
    logprobs: Option<()>,
    finish_reason: &'a str,
}

#[derive(Serialize)]
struct AnswerMessage<'a> {
    role: &'a str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'a str,
    created: u64,
    model: &'a str,
    choices: Vec<ChunkChoice<'a>>,
    /// Absent unless asked for; then null in every event but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    obfuscation: Option<String>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u8,
    delta: Delta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'a str>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pad: bool) -> Events {
        let frame = Frame { id: "chatcmpl-1".into(), created: 1_760_000_000, model: "m@1:00".into() };
        Events { frame, include_usage: true, pad }
    }

    /// Attack 66: sizes are multiples of the bucket, whatever the text.
    #[test]
    fn sizes_fall_into_buckets() {
        for length in 0..700 {
            let text = "é\n"[..].repeat(length);
            assert_eq!(events(true).text(&text).len() % BUCKET, 0, "{length}");
            assert_eq!(events(true).done(&"r".repeat(length)).len() % BUCKET, 0, "{length}");
            let whole = events(true).frame.completion(&text, FinishReason::Stop, Usage::new(1, 2));
            assert_eq!(whole.len() % BUCKET, 0, "{length}");
            assert!(serde_json::from_slice::<serde_json::Value>(&whole).is_ok());
        }
        assert_eq!(events(true).text("a").len(), events(true).text("a longer piece").len());
        assert!(events(false).text("a").len() < events(false).text("ab").len());
    }

    #[test]
    fn the_usage_stands_in_the_last_event_only() {
        let end = String::from_utf8(events(true).end(FinishReason::Stop, Usage::new(3, 4))).unwrap();
        let jsons: Vec<serde_json::Value> = end
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: "))
            .map(|json| serde_json::from_str(json).unwrap())
            .collect();
        assert_eq!(jsons.len(), 2);
        assert_eq!(jsons[0]["choices"][0]["finish_reason"], "stop");
        assert!(jsons[0]["usage"].is_null() && jsons[0].get("usage").is_some());
        assert_eq!(jsons[1]["usage"]["total_tokens"], 7);
        assert_eq!(jsons[1]["choices"].as_array().unwrap().len(), 0);
    }
}
