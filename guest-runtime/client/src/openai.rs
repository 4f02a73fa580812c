// SPDX-License-Identifier: Apache-2.0
//! The parts of OpenAI's JSON that a client must understand.

use attested_channel::receipt::{SaidCall, SaidChoice, embedding_bytes, response_bytes};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};
use types::Refusal;

/// One event of a streamed answer, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Chunk {
    #[serde(default)]
    pub(crate) id: Option<String>,
    #[serde(default)]
    choices: Vec<ChunkChoice>,
    #[serde(default)]
    pub(crate) usage: Option<Usage>,
    #[serde(default)]
    pub(crate) error: Option<ErrorObject>,
}

/// A whole answer, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(crate) struct Completion {
    choices: Vec<Choice>,
}

/// Tokens as the guest counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Tokens of the rendered conversation.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
}

#[derive(Debug, Deserialize)]
struct ChunkChoice {
    #[serde(default)]
    index: usize,
    #[serde(default)]
    delta: Delta,
    /// Of `/v1/completions`.
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Debug, Deserialize)]
struct CallDelta {
    index: usize,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    function: FunctionDelta,
}

#[derive(Debug, Default, Deserialize)]
struct FunctionDelta {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    arguments: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    index: usize,
    #[serde(default)]
    message: Option<Message>,
    /// Of `/v1/completions`.
    #[serde(default)]
    text: Option<String>,
    finish_reason: String,
}

#[derive(Debug, Deserialize)]
struct Message {
    content: Option<String>,
    #[serde(default)]
    tool_calls: Vec<Call>,
}

#[derive(Debug, Deserialize)]
struct Call {
    id: String,
    function: Function,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    arguments: String,
}

/// An error object.
#[derive(Debug, Deserialize)]
pub(crate) struct ErrorObject {
    #[serde(default)]
    code: Option<String>,
}

impl Chunk {
    /// Whether there is more than one choice: a guest sends each in an event of its own.
    pub(crate) fn has_more_than_one_choice(&self) -> bool {
        self.choices.len() > 1
    }

    /// Adds what the event says to what was said before. Gives the piece of text of the first choice, and how many bytes
    /// were added.
    ///
    /// `None` when it does not fit: a number out of range, or a call that does not begin with its name.
    pub(crate) fn add_to(&self, said: &mut Vec<SaidChoice>) -> Option<(String, usize)> {
        let (mut first, mut added) = (String::new(), 0_usize);
        for choice in &self.choices {
            let text = choice.delta.content.as_deref().or(choice.text.as_deref()).unwrap_or_default();
            if choice.index > said.len() || choice.index >= MAX_CHOICES {
                return None;
            }
            if choice.index == said.len() {
                said.push(SaidChoice { content: None, finish_reason: String::new(), tool_calls: Vec::new() });
            }
            let slot = said.get_mut(choice.index)?;
            slot.content.get_or_insert_default().push_str(text);
            added = added.saturating_add(text.len());
            for call in choice.delta.tool_calls.iter().flatten() {
                added = added.saturating_add(call.add_to(&mut slot.tool_calls)?);
            }
            if let Some(reason) = &choice.finish_reason {
                slot.finish_reason.clone_from(reason);
            }
            if choice.index == 0 {
                first.push_str(text);
            }
        }
        Some((first, added))
    }
}

impl CallDelta {
    fn add_to(&self, calls: &mut Vec<SaidCall>) -> Option<usize> {
        if self.index == calls.len() && calls.len() < MAX_CALLS {
            let (id, name) = (self.id.clone()?, self.function.name.clone()?);
            calls.push(SaidCall { arguments: String::new(), id, name });
        } else if self.id.is_some() || self.function.name.is_some() {
            return None;
        }
        let arguments = self.function.arguments.as_deref().unwrap_or_default();
        calls.get_mut(self.index)?.arguments.push_str(arguments);
        Some(arguments.len())
    }
}

/// The form that a guest signs: no content where there are calls alone.
pub(crate) fn as_signed(mut said: Vec<SaidChoice>) -> Vec<SaidChoice> {
    for choice in &mut said {
        let is_empty = choice.content.as_deref().unwrap_or_default().is_empty();
        choice.content = if is_empty && !choice.tool_calls.is_empty() {
            None
        } else {
            Some(choice.content.take().unwrap_or_default())
        };
    }
    said
}

impl Completion {
    /// What the choices say. `None` when they are not numbered as they stand, or are none.
    pub(crate) fn said(self) -> Option<Vec<SaidChoice>> {
        let in_order = self.choices.iter().enumerate().all(|(index, choice)| choice.index == index);
        if !in_order || self.choices.is_empty() || self.choices.len() > MAX_CHOICES {
            return None;
        }
        let said = self.choices.into_iter().map(|choice| {
            let (content, calls) = match (choice.message, choice.text) {
                (Some(message), None) => (message.content, message.tool_calls),
                (None, Some(text)) => (Some(text), Vec::new()),
                _ => return None,
            };
            let call = |Call { id, function: Function { name, arguments } }| SaidCall { arguments, id, name };
            let tool_calls = calls.into_iter().map(call).collect();
            Some(SaidChoice { content, finish_reason: choice.finish_reason, tool_calls })
        });
        said.collect::<Option<Vec<_>>>().map(as_signed)
    }
}

impl ErrorObject {
    /// The code, if it is one.
    pub(crate) fn code(&self) -> String {
        let plain = |code: &&String| {
            (1..=64).contains(&code.len())
                && code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        self.code.as_ref().filter(plain).map_or_else(|| "unknown".to_owned(), Clone::clone)
    }
}

/// What a receipt's hash covers of a whole answer, as it came in JSON. `None` when it is no answer.
#[must_use]
pub fn response_of(answer: &[u8]) -> Option<Vec<u8>> {
    match serde_json::from_slice::<Completion>(answer) {
        Ok(completion) => response_bytes(&completion.said()?).ok(),
        Err(_) => serde_json::from_slice::<Embeddings>(answer).ok()?.signed(),
    }
}

/// Vectors, as far as they matter here.
#[derive(Debug, Deserialize)]
struct Embeddings {
    data: Vec<Embedding>,
}

#[derive(Debug, Deserialize)]
struct Embedding {
    index: usize,
    embedding: Values,
}

/// In either `encoding_format`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Values {
    Float(Vec<f32>),
    Base64(String),
}

impl Embeddings {
    /// `None` when they are not numbered as they stand, or are no vectors.
    fn signed(self) -> Option<Vec<u8>> {
        let vectors = self.data.into_iter().enumerate().map(|(place, embedding)| {
            (embedding.index == place).then_some(())?;
            match embedding.embedding {
                Values::Float(values) => Some(values),
                Values::Base64(text) => {
                    let bytes = STANDARD.decode(text).ok()?;
                    let (values, rest) = bytes.as_chunks::<4>();
                    rest.is_empty().then(|| values.iter().map(|value| f32::from_le_bytes(*value)).collect())
                }
            }
        });
        embedding_bytes(&vectors.collect::<Option<Vec<_>>>()?)
    }
}

/// The code of an error answer, or `unknown`.
pub(crate) fn error_code(body: &[u8]) -> String {
    let chunk: Chunk = serde_json::from_slice(body).unwrap_or_default();
    chunk.error.map_or_else(|| "unknown".to_owned(), |error| error.code())
}

/// An error object that says why the proxy does not pass an answer on. `reasons` is an addition to OpenAI's form.
pub(crate) fn error_json(reasons: &[Refusal]) -> Value {
    let first = reasons.first();
    json!({"error": {
        "message": first.map_or_else(String::new, ToString::to_string),
        "type": "attestation_error",
        "param": null,
        "code": first.map(|reason| reason.code.clone()),
        "reasons": reasons,
    }})
}

/// A guest gives no more.
const MAX_CHOICES: usize = 8;
const MAX_CALLS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_numbered_and_say_text_or_calls() {
        let said =
            |choices: &str| serde_json::from_str::<Completion>(&format!("{{\"choices\":[{choices}]}}")).unwrap().said();
        let choice = |index: u32| format!(r#"{{"index":{index},"message":{{"content":"a"}},"finish_reason":"stop"}}"#);
        assert_eq!(said(&choice(0)).unwrap()[0].content.as_deref(), Some("a"));
        assert_eq!(said(&format!("{},{}", choice(0), choice(1))).unwrap().len(), 2);
        for bad in [
            String::new(),
            choice(1),
            format!("{},{}", choice(0), choice(0)),
            r#"{"index":0,"finish_reason":"stop"}"#.into(),
        ] {
            assert!(said(&bad).is_none(), "{bad}");
        }
        let text = said(r#"{"index":0,"text":"b","finish_reason":"length"}"#).unwrap();
        assert_eq!(text[0].content.as_deref(), Some("b"));
        let call = r#"{"index":0,"message":{"content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},"finish_reason":"tool_calls"}"#;
        let calls = said(call).unwrap();
        assert_eq!((calls[0].content.as_deref(), calls[0].tool_calls[0].name.as_str()), (None, "f"));
    }

    /// A stream and a whole answer that say the same are covered by the same bytes.
    #[test]
    fn events_add_up_to_the_answer() {
        let mut said = Vec::new();
        for event in [
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"index":1,"delta":{"content":"b"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"1","function":{"name":"f","arguments":"{"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
            r#"{"choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}"#,
        ] {
            let chunk: Chunk = serde_json::from_str(event).unwrap();
            assert!(chunk.add_to(&mut said).is_some());
        }
        let whole = r#"{"choices":[{"index":0,"message":{"content":null,"tool_calls":[{"id":"1","function":{"name":"f","arguments":"{}"}}]},
            "finish_reason":"tool_calls"},{"index":1,"message":{"content":"b"},"finish_reason":"stop"}]}"#;
        assert_eq!(as_signed(said.clone()), serde_json::from_str::<Completion>(whole).unwrap().said().unwrap());
        for bad in [
            r#"{"choices":[{"index":3,"delta":{}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"2"}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":5,"id":"2","function":{"name":"g"}}]}}]}"#,
            r#"{"choices":[{"index":1,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"x"}}]}}]}"#,
        ] {
            let chunk: Chunk = serde_json::from_str(bad).unwrap();
            assert!(chunk.add_to(&mut said.clone()).is_none(), "{bad}");
        }
    }

    #[test]
    fn vectors_are_covered_alike_in_either_encoding() {
        let values = [0.1_f32, -1.5e-7, 3.0];
        let signed = embedding_bytes(&[values, values]).unwrap();
        assert_eq!(&signed[..9], [0xFE, 0, 0, 0, 2, 0, 0, 0, 3]);
        let base64 = STANDARD.encode(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
        let float = serde_json::to_string(&values).unwrap();
        let answer = |first: &str, index: usize| {
            let text = format!(
                r#"{{"object":"list","data":[{{"index":0,"embedding":{first}}},{{"index":{index},"embedding":{float}}}]}}"#
            );
            response_of(text.as_bytes())
        };
        assert_eq!(answer(&float, 1), Some(signed.clone()));
        assert_eq!(answer(&format!("\"{base64}\""), 1), Some(signed));
        assert_eq!(answer(&float, 0), None);
        assert_eq!(answer("[0.1]", 1), None);
        assert_eq!(answer("[]", 1), None);
        assert_eq!(answer("\"AAAA\"", 1), None);
        assert_eq!(response_of(br#"{"data":[]}"#), None);
        assert_ne!(answer("[0.1,-1.5e-7,3.0000003]", 1), answer(&float, 1));
    }

    #[test]
    fn codes_of_strangers_are_codes_or_unknown() {
        assert_eq!(error_code(br#"{"error":{"code":"server_busy"}}"#), "server_busy");
        for body in ["", "{}", r#"{"error":{"code":"<b>"}}"#, r#"{"error":{"code":null}}"#, r#"{"error":{"code":7}}"#] {
            assert_eq!(error_code(body.as_bytes()), "unknown");
        }
    }
}
