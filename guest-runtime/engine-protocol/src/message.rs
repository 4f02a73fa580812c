// SPDX-License-Identifier: Apache-2.0
//! The messages.

use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// From `serve` to the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Command {
    /// Answer a conversation.
    Generate(Generate),
    /// Stop working on a request. The engine answers [`Event::Done`] with [`FinishReason::Cancelled`]; an unknown
    /// `id` (already done) is ignored.
    Cancel {
        /// The request to stop.
        id: u64,
    },
}

/// A request for an answer. Check it with [`Generate::check`] on both sides.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// Chosen by `serve`, unique among the requests in flight.
    pub id: u64,
    /// The conversation, oldest message first. Text in it never becomes a control token of the model.
    pub messages: Vec<Message>,
    /// Most tokens to generate, at least 1; without it, as many as the context leaves room for.
    pub max_tokens: Option<u32>,
    /// 0 picks the likeliest token each time (greedy); else the logits are divided by it. 0 to 2.
    pub temperature: f32,
    /// Sample among the likeliest tokens whose probabilities sum up to this. Above 0, up to 1.
    pub top_p: f32,
    /// The same seed, request and engine give the same answer. Without it, a random one.
    pub seed: Option<u64>,
    /// Generation ends before the first of these texts; it is not part of the answer.
    pub stop: Vec<String>,
}

/// One message of a conversation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The application's instructions.
    System,
    /// The user.
    User,
    /// The model's earlier answers.
    Assistant,
}

impl Role {
    /// The name in a chat template.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// From the engine to `serve`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Event {
    /// First message of a connection.
    Hello {
        /// [`PROTOCOL_VERSION`].
        version: u32,
        /// What the loaded model can do.
        model: ModelFacts,
    },
    /// The request is admitted. Its cost is known, none has been paid.
    Started {
        /// The request.
        id: u64,
        /// Tokens of the rendered conversation.
        prompt_tokens: u32,
    },
    /// A piece of the answer: whole UTF-8 characters, never empty, may hold the text of several tokens.
    Token {
        /// The request.
        id: u64,
        /// The piece.
        text: String,
    },
    /// The answer is complete.
    Done {
        /// The request.
        id: u64,
        /// Why it ended.
        finish_reason: FinishReason,
        /// Tokens of the rendered conversation.
        prompt_tokens: u32,
        /// Tokens generated, with those that made a stop text or the end of the turn.
        completion_tokens: u32,
    },
    /// There is no (further) answer.
    Failed {
        /// The request.
        id: u64,
        /// Why.
        code: Failure,
        /// Tokens of the rendered conversation, where they were counted.
        prompt_tokens: Option<u32>,
    },
}

/// What the loaded model can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFacts {
    /// Most tokens of conversation and answer together.
    pub context: u32,
    /// Size of the vocabulary, in tokens.
    pub vocab: u32,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn, or a stop text came.
    Stop,
    /// `max_tokens` or the context is used up.
    Length,
    /// `serve` cancelled it.
    Cancelled,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The request breaks a rule of [`Generate::check`].
    InvalidRequest,
    /// The model's chat template refuses the conversation.
    TemplateFailed,
    /// Conversation and `max_tokens` do not fit into the context.
    ContextOverflow,
    /// Too many requests wait.
    QueueFull,
    /// The id belongs to a request in flight.
    DuplicateId,
    /// The computation failed.
    EngineFailed,
}

impl Generate {
    /// Checks every rule that needs no model.
    ///
    /// # Errors
    /// The first rule broken, in the order of the fields.
    pub fn check(&self) -> Result<(), InvalidRequest> {
        if self.messages.is_empty() {
            return Err(InvalidRequest::NoMessages);
        }
        if self.messages.len() > MAX_MESSAGES {
            return Err(InvalidRequest::TooManyMessages { count: self.messages.len() });
        }
        let bytes = self.messages.iter().fold(0_usize, |sum, message| sum.saturating_add(message.content.len()));
        if bytes > MAX_TEXT_BYTES {
            return Err(InvalidRequest::TextTooLong { bytes });
        }
        if self.messages.iter().any(|message| message.content.contains('\0')) {
            return Err(InvalidRequest::NulCharacter);
        }
        if self.max_tokens == Some(0) {
            return Err(InvalidRequest::MaxTokensZero);
        }
        if !(0.0..=2.0).contains(&self.temperature) {
            return Err(InvalidRequest::Temperature);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(InvalidRequest::TopP);
        }
        let stops_fit = self.stop.iter().all(|stop| !stop.is_empty() && stop.len() <= MAX_STOP_BYTES);
        if self.stop.len() > MAX_STOPS || !stops_fit {
            return Err(InvalidRequest::Stop);
        }
        Ok(())
    }
}

/// The rule that a [`Generate`] breaks.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum InvalidRequest {
    /// `messages` is empty.
    #[error("messages: at least one is needed")]
    NoMessages,
    /// `messages` is too long.
    #[error("messages: {count} given, at most {MAX_MESSAGES} allowed")]
    TooManyMessages {
        /// How many were given.
        count: usize,
    },
    /// The contents are too long together.
    #[error("messages: {bytes} bytes of text given, at most {MAX_TEXT_BYTES} allowed")]
    TextTooLong {
        /// How many bytes were given.
        bytes: usize,
    },
    /// A content holds U+0000.
    #[error("messages: the character U+0000 is not allowed")]
    NulCharacter,
    /// `max_tokens` is 0.
    #[error("max_tokens: must be at least 1")]
    MaxTokensZero,
    /// `temperature` is out of range.
    #[error("temperature: must be between 0 and 2")]
    Temperature,
    /// `top_p` is out of range.
    #[error("top_p: must be above 0 and at most 1")]
    TopP,
    /// `stop` has too many, too long or empty texts.
    #[error("stop: at most {MAX_STOPS} texts of 1 to {MAX_STOP_BYTES} bytes are allowed")]
    Stop,
}

impl fmt::Debug for Generate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generate")
            .field("id", &self.id)
            .field("messages", &self.messages.len())
            .field("max_tokens", &self.max_tokens)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message").field("role", &self.role).finish_non_exhaustive()
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello { version, model } => write!(f, "Hello(version {version}, {model:?})"),
            Self::Started { id, prompt_tokens } => write!(f, "Started({id}, {prompt_tokens} tokens)"),
            Self::Token { id, .. } => write!(f, "Token({id})"),
            Self::Done { id, finish_reason, prompt_tokens, completion_tokens } => {
                write!(f, "Done({id}, {finish_reason:?}, {prompt_tokens} + {completion_tokens} tokens)")
            }
            Self::Failed { id, code, .. } => write!(f, "Failed({id}, {code:?})"),
        }
    }
}

/// Version of this protocol, in [`Event::Hello`].
pub const PROTOCOL_VERSION: u32 = 1;
/// Most messages of a conversation.
pub const MAX_MESSAGES: usize = 1024;
/// Most bytes of all contents of a conversation together.
pub const MAX_TEXT_BYTES: usize = 2 << 20;
/// Most stop texts of a request.
pub const MAX_STOPS: usize = 4;
/// Longest stop text, in bytes.
pub const MAX_STOP_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Generate {
        Generate {
            id: 1,
            messages: vec![Message { role: Role::User, content: "hello".into() }],
            max_tokens: None,
            temperature: 1.0,
            top_p: 0.9,
            seed: Some(u64::MAX),
            stop: vec!["\n".into()],
        }
    }

    /// A rule, and what breaks it.
    type Case = (InvalidRequest, fn(&mut Generate));

    #[test]
    fn each_rule_is_checked() {
        assert_eq!(request().check(), Ok(()));
        let cases: Vec<Case> = vec![
            (InvalidRequest::NoMessages, |r| r.messages.clear()),
            (InvalidRequest::TooManyMessages { count: MAX_MESSAGES + 1 }, |r| {
                let message = Message { role: Role::User, content: String::new() };
                r.messages = vec![message; MAX_MESSAGES + 1];
            }),
            (InvalidRequest::TextTooLong { bytes: MAX_TEXT_BYTES + 5 }, |r| {
                r.messages.push(Message { role: Role::User, content: "x".repeat(MAX_TEXT_BYTES) });
            }),
            (InvalidRequest::NulCharacter, |r| r.messages[0].content.push('\0')),
            (InvalidRequest::MaxTokensZero, |r| r.max_tokens = Some(0)),
            (InvalidRequest::Temperature, |r| r.temperature = -0.1),
            (InvalidRequest::Temperature, |r| r.temperature = 2.1),
            (InvalidRequest::Temperature, |r| r.temperature = f32::NAN),
            (InvalidRequest::TopP, |r| r.top_p = 0.0),
            (InvalidRequest::TopP, |r| r.top_p = f32::NAN),
            (InvalidRequest::TopP, |r| r.top_p = 1.1),
            (InvalidRequest::Stop, |r| r.stop = vec![String::new()]),
            (InvalidRequest::Stop, |r| r.stop = vec!["x".into(); MAX_STOPS + 1]),
            (InvalidRequest::Stop, |r| r.stop = vec!["x".repeat(MAX_STOP_BYTES + 1)]),
        ];
        for (expected, break_it) in cases {
            let mut broken = request();
            break_it(&mut broken);
            assert_eq!(broken.check(), Err(expected));
        }
    }
}
