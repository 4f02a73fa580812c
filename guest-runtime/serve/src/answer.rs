// SPDX-License-Identifier: Apache-2.0
//! The JSON of answers and the server-sent events, padded to buckets so that their sizes do not spell the text.

use attested_channel::receipt::{SaidCall, SaidChoice};
use engine_protocol::{TokenLogprob, TokenLogprobs};
use serde::Serialize;
use std::{borrow::Cow, collections::BTreeMap};

use crate::request::Kind;

/// What all parts of one answer share.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) has_logprobs: bool,
}

/// Tokens as the engine counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

impl Usage {
    pub(crate) fn new(prompt_tokens: u32, cached_tokens: u32, completion_tokens: u32) -> Self {
        let total_tokens = u64::from(prompt_tokens).saturating_add(completion_tokens.into());
        Self { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details: PromptDetails { cached_tokens } }
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
    pub(crate) fn completion(&self, said: &[SaidChoice], logprobs: &[&[TokenLogprobs]], usage: Usage) -> Vec<u8> {
        let choices = said.iter().zip(logprobs).enumerate().map(|(index, (said, logprobs))| {
            let finish_reason = Some(said.finish_reason.as_str());
            let logprobs = self.logprobs(logprobs, &mut 0);
            match self.kind {
                Kind::Chat => {
                    let tool_calls = said.tool_calls.iter().map(|call| ToolCall::of(None, call)).collect();
                    let content = said.content.as_deref();
                    let message = AnswerMessage { role: "assistant", content, refusal: None, tool_calls };
                    Choice { index, part: Part::Message { message }, logprobs, finish_reason }
                }
                Kind::Text => {
                    let text = said.content.as_deref().unwrap_or_default();
                    Choice { index, part: Part::Text { text }, logprobs, finish_reason }
                }
            }
        });
        let object = if self.kind == Kind::Chat { "chat.completion" } else { "text_completion" };
        let body = Body {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices: choices.collect(),
            usage: Some(Some(usage)),
            obfuscation: None,
        };
        let mut json = serde_json::to_vec(&body).unwrap_or_default();
        pad_whole(&mut json);
        json
    }

    /// `offset` counts the characters of the tokens before.
    fn logprobs<'a>(&self, entries: &'a [TokenLogprobs], offset: &mut usize) -> Option<Logprobs<'a>> {
        if !self.has_logprobs {
            return None;
        }
        Some(match self.kind {
            Kind::Chat => Logprobs::Chat {
                content: entries
                    .iter()
                    .map(|entry| ChatLogprob {
                        own: Logprob::of(&entry.token),
                        top_logprobs: entry.top.iter().map(Logprob::of).collect(),
                    })
                    .collect(),
                refusal: None,
            },
            Kind::Text => {
                let text = |entry: &'a TokenLogprob| String::from_utf8_lossy(&entry.bytes);
                let mut text_offset = Vec::with_capacity(entries.len());
                for entry in entries {
                    text_offset.push(*offset);
                    *offset = offset.saturating_add(text(&entry.token).chars().count());
                }
                Logprobs::Text {
                    tokens: entries.iter().map(|entry| text(&entry.token)).collect(),
                    token_logprobs: entries.iter().map(|entry| entry.token.logprob).collect(),
                    top_logprobs: entries
                        .iter()
                        .map(|entry| entry.top.iter().map(|top| (text(top), top.logprob)).collect())
                        .collect(),
                    text_offset,
                }
            }
        })
    }
}

/// Writes the events of one streamed answer.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    pub(crate) frame: Frame,
    pub(crate) include_usage: bool,
    pub(crate) pad: bool,
    /// There may be calls and no content.
    pub(crate) has_tools: bool,
}

impl Events {
    /// The first event of a choice: who speaks.
    pub(crate) fn role(&self, index: usize) -> Option<Vec<u8>> {
        let content = if self.has_tools { None } else { Some("") };
        let delta = Delta { role: Some("assistant"), content, tool_calls: None };
        (self.frame.kind == Kind::Chat).then(|| self.chunk(index, Part::Delta { delta }, None, None))
    }

    /// A piece of a choice.
    pub(crate) fn text(
        &self,
        index: usize,
        text: &str,
        logprobs: &[TokenLogprobs],
        offset: Option<&mut usize>,
    ) -> Vec<u8> {
        let logprobs = if logprobs.is_empty() { None } else { self.frame.logprobs(logprobs, offset.unwrap_or(&mut 0)) };
        let part = match self.frame.kind {
            Kind::Chat => Part::Delta { delta: Delta { content: Some(text), ..Delta::default() } },
            Kind::Text => Part::Text { text },
        };
        self.chunk(index, part, logprobs, None)
    }

    /// All calls of a choice.
    pub(crate) fn calls(&self, index: usize, calls: &[SaidCall]) -> Vec<u8> {
        let calls = calls.iter().enumerate().map(|(number, call)| ToolCall::of(Some(number), call)).collect();
        let delta = Delta { tool_calls: Some(calls), ..Delta::default() };
        self.chunk(index, Part::Delta { delta }, None, None)
    }

    /// Why a choice ended.
    pub(crate) fn finish(&self, index: usize, reason: &str) -> Vec<u8> {
        let part = match self.frame.kind {
            Kind::Chat => Part::Delta { delta: Delta::default() },
            Kind::Text => Part::Text { text: "" },
        };
        self.chunk(index, part, None, Some(reason))
    }

    /// The usage, if asked for, `[DONE]` and the receipt, as a comment: a named event would break clients that know
    /// none.
    pub(crate) fn end(&self, usage: Usage, receipt: &str) -> Vec<u8> {
        let mut events = if self.include_usage { self.event(None, Some(usage)) } else { Vec::new() };
        let done = format!("data: [DONE]\n\n: {RECEIPT_COMMENT} {receipt}\n\n").into_bytes();
        events.extend(done);
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

    fn chunk(&self, index: usize, part: Part<'_>, logprobs: Option<Logprobs<'_>>, reason: Option<&str>) -> Vec<u8> {
        self.event(Some(Choice { index, part, logprobs, finish_reason: reason }), None)
    }

    fn event(&self, choice: Option<Choice<'_>>, usage: Option<Usage>) -> Vec<u8> {
        let object = if self.frame.kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" };
        let mut body = Body {
            id: &self.frame.id,
            object,
            created: self.frame.created,
            model: &self.frame.model,
            choices: choice.into_iter().collect(),
            usage: self.include_usage.then_some(usage),
            obfuscation: self.pad.then(String::new),
        };
        let event = event(&body);
        if !self.pad {
            return event;
        }
        body.obfuscation = Some("x".repeat(missing(event.len())));
        self::event(&body)
    }
}

fn event(body: &Body<'_>) -> Vec<u8> {
    let json = serde_json::to_vec(body).unwrap_or_default();
    [b"data: ".as_slice(), &json, b"\n\n"].concat()
}

/// Fills the bucket of a whole answer with white space.
pub(crate) fn pad_whole(json: &mut Vec<u8>) {
    json.resize(json.len().saturating_add(missing(json.len())), b' ');
}

/// Bytes that fill the last bucket.
fn missing(length: usize) -> usize {
    length.next_multiple_of(BUCKET).saturating_sub(length)
}

/// First word of the comment that carries a receipt, and name of the header that does.
pub(crate) const RECEIPT_COMMENT: &str = "chrysalis-receipt";

/// Sizes of events and answers are multiples of this. An event's fixed part has about 300 bytes.
const BUCKET: usize = 512;

/// A whole answer, or one event of it.
#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    object: &'a str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    /// Absent in events unless asked for; then null in every event but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    obfuscation: Option<String>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    #[serde(flatten)]
    part: Part<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Part<'a> {
    Message { message: AnswerMessage<'a> },
    Delta { delta: Delta<'a> },
    Text { text: &'a str },
}

#[derive(Serialize)]
struct AnswerMessage<'a> {
    role: &'a str,
    content: Option<&'a str>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall<'a>>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<ToolCall<'a>>>,
}

#[derive(Serialize)]
struct ToolCall<'a> {
    /// In events only.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: &'a str,
    r#type: &'a str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    arguments: &'a str,
}

impl<'a> ToolCall<'a> {
    fn of(index: Option<usize>, call: &'a SaidCall) -> Self {
        let function = Function { name: &call.name, arguments: &call.arguments };
        Self { index, id: &call.id, r#type: "function", function }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Logprobs<'a> {
    Chat {
        content: Vec<ChatLogprob<'a>>,
        refusal: Option<()>,
    },
    Text {
        tokens: Vec<Cow<'a, str>>,
        token_logprobs: Vec<f32>,
        top_logprobs: Vec<BTreeMap<Cow<'a, str>, f32>>,
        text_offset: Vec<usize>,
    },
}

#[derive(Serialize)]
struct ChatLogprob<'a> {
    #[serde(flatten)]
    own: Logprob<'a>,
    top_logprobs: Vec<Logprob<'a>>,
}

#[derive(Serialize)]
struct Logprob<'a> {
    token: Cow<'a, str>,
    logprob: f32,
    bytes: &'a [u8],
}

impl<'a> Logprob<'a> {
    fn of(entry: &'a TokenLogprob) -> Self {
        Self { token: String::from_utf8_lossy(&entry.bytes), logprob: entry.logprob, bytes: &entry.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pad: bool) -> Events {
        let frame = Frame {
            kind: Kind::Chat,
            id: "chatcmpl-1".into(),
            created: 1_760_000_000,
            model: "m@1:00".into(),
            has_logprobs: true,
        };
        Events { frame, include_usage: true, pad, has_tools: false }
    }

    fn said(text: &str) -> SaidChoice {
        SaidChoice { content: Some(text.into()), finish_reason: "stop".into(), tool_calls: vec![] }
    }

    /// Attack 66: sizes are multiples of the bucket, whatever the text.
    #[test]
    fn sizes_fall_into_buckets() {
        for length in 0..700 {
            let text = "é\n"[..].repeat(length);
            assert_eq!(events(true).text(0, &text, &[], None).len() % BUCKET, 0, "{length}");
            assert_eq!(events(true).end(Usage::new(1, 0, 2), &"r".repeat(length)).len() % BUCKET, 0, "{length}");
            let whole = events(true).frame.completion(&[said(&text)], &[&[]], Usage::new(1, 0, 2));
            assert_eq!(whole.len() % BUCKET, 0, "{length}");
            assert!(serde_json::from_slice::<serde_json::Value>(&whole).is_ok());
        }
        let length = |text: &str| events(true).text(0, text, &[], None).len();
        assert_eq!(length("a"), length("a longer piece"));
        assert!(events(false).text(0, "a", &[], None).len() < events(false).text(0, "ab", &[], None).len());
    }

    #[test]
    fn the_usage_stands_in_the_last_event_only() {
        let mut end = events(true).finish(0, "stop");
        end.extend(events(true).end(Usage::new(3, 2, 4), "r"));
        let end = String::from_utf8(end).unwrap();
        let jsons: Vec<serde_json::Value> = end
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: "))
            .filter_map(|json| serde_json::from_str(json).ok())
            .collect();
        assert_eq!(jsons.len(), 2);
        assert_eq!(jsons[0]["choices"][0]["finish_reason"], "stop");
        assert!(jsons[0]["usage"].is_null() && jsons[0].get("usage").is_some());
        assert_eq!(jsons[1]["usage"]["total_tokens"], 7);
        assert_eq!(jsons[1]["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
        assert_eq!(jsons[1]["choices"].as_array().unwrap().len(), 0);
    }

    #[test]
    fn logprobs_have_the_form_of_each_api() {
        let token = |bytes: &[u8], logprob| TokenLogprob { bytes: bytes.into(), logprob };
        let entries = [(b"\xe2\x82".as_slice(), -0.5), (b"ab", -1.0)]
            .map(|(bytes, p)| TokenLogprobs { token: token(bytes, p), top: vec![token(b"x", -0.25)] });
        let mut frame = events(true).frame;
        let json = |frame: &Frame| -> serde_json::Value {
            serde_json::from_slice(&frame.completion(&[said("…")], &[&entries], Usage::new(1, 0, 2))).unwrap()
        };
        let chat = &json(&frame)["choices"][0]["logprobs"]["content"];
        assert_eq!(chat[0]["token"], "\u{fffd}");
        assert_eq!(chat[0]["bytes"], serde_json::json!([226, 130]));
        assert_eq!(chat[1]["top_logprobs"][0]["token"], "x");
        frame.kind = Kind::Text;
        let text = json(&frame);
        assert_eq!(
            (text["object"].as_str(), text["choices"][0]["text"].as_str()),
            (Some("text_completion"), Some("…"))
        );
        let text = &text["choices"][0]["logprobs"];
        assert_eq!(text["text_offset"], serde_json::json!([0, 1]));
        assert_eq!(text["top_logprobs"][1], serde_json::json!({"x": -0.25}));
    }
}
