// SPDX-License-Identifier: Apache-2.0
//! The parts of OpenAI's JSON that a client must understand.

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
    delta: Delta,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    message: Message,
}

#[derive(Debug, Deserialize)]
struct Message {
    content: String,
}

/// An error object.
#[derive(Debug, Deserialize)]
pub(crate) struct ErrorObject {
    #[serde(default)]
    code: Option<String>,
}

impl Chunk {
    /// Whether there is a further choice, of which no receipt would speak.
    pub(crate) fn has_more_than_one_choice(&self) -> bool {
        self.choices.len() > 1
    }

    /// The piece of text.
    pub(crate) fn text(&self) -> &str {
        let first = self.choices.first();
        first.and_then(|choice| choice.delta.content.as_deref()).unwrap_or_default()
    }

    /// Why the answer ended, in the event that says so.
    pub(crate) fn finish_reason(&self) -> Option<&str> {
        self.choices.first().and_then(|choice| choice.finish_reason.as_deref())
    }
}

impl Completion {
    /// The text of an answer with exactly one choice: no receipt would speak of a second.
    pub(crate) fn text(self) -> Option<String> {
        let [choice] = <[Choice; 1]>::try_from(self.choices).ok()?;
        Some(choice.message.content)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_exactly_one_choice() {
        let text =
            |choices: &str| serde_json::from_str::<Completion>(&format!("{{\"choices\":[{choices}]}}")).unwrap().text();
        let choice = r#"{"message":{"content":"a"}}"#;
        assert_eq!(text(choice).as_deref(), Some("a"));
        assert_eq!(text(&format!("{choice},{choice}")), None);
        assert_eq!(text(""), None);
    }

    #[test]
    fn codes_of_strangers_are_codes_or_unknown() {
        assert_eq!(error_code(br#"{"error":{"code":"server_busy"}}"#), "server_busy");
        for body in ["", "{}", r#"{"error":{"code":"<b>"}}"#, r#"{"error":{"code":null}}"#, r#"{"error":{"code":7}}"#] {
            assert_eq!(error_code(body.as_bytes()), "unknown");
        }
    }
}
