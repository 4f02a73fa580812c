// SPDX-License-Identifier: Apache-2.0
//! The messages.

use crate::Embed;
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// From `serve` to the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Command {
    /// Answer a conversation.
    Generate(Generate),
    /// Turn texts into vectors.
    Embed(Embed),
    /// Stop working on a request. The engine answers [`Event::Failed`] with [`Failure::Cancelled`]; an unknown `id`
    /// (already done) is ignored.
    Cancel {
        /// The request to stop.
        id: u64,
    },
    /// Nothing more will come from a tenant: what is kept of its prompts is dropped.
    Forget {
        /// The tenant.
        tenant: Tenant,
    },
}

/// Whose request it is: 32 bytes that `serve` chooses, at random for each connection, or for each tenant that has an API key.
/// What one tenant's prompts left in
/// the cache never makes another tenant's request faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tenant(pub [u8; 32]);

/// A request for an answer. Check it with [`Generate::check`] on both sides.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// Chosen by `serve`, unique among the requests in flight.
    pub id: u64,
    /// Whose request it is.
    pub tenant: Tenant,
    /// What to continue.
    pub prompt: Prompt,
    /// How many answers, 1 to [`MAX_CHOICES`]. The prompt is computed once.
    pub choices: u16,
    /// Most tokens to generate for each answer, at least 1; without it, as many as the context leaves room for.
    pub max_tokens: Option<u32>,
    /// Without `max_tokens`, no more than this for each answer, at least 1, though the context may leave room for more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_tokens: Option<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What is added to the logits of tokens before anything else; at most [`MAX_BIASES`], in the order of the tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logit_bias: Vec<Bias>,
    /// Each answer ends before the first of these texts; it is not part of the answer.
    pub stop: Vec<String>,
    /// With it, each token comes with its logarithmic probability and that of this many likeliest ones, at most
    /// [`MAX_TOP_LOGPROBS`].
    pub logprobs: Option<u8>,
    /// What an answer must look like.
    pub form: Form,
}

/// What makes a token likelier or less likely.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bias {
    /// The token, less than the model's vocabulary has.
    pub token: u32,
    /// Added to its logit. -100 to 100.
    pub bias: f32,
}

/// What to continue. Text in it never becomes a control token of the model.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Prompt {
    /// A conversation, oldest message first; the model's chat template writes it.
    Chat(Vec<Message>),
    /// A text as it is.
    Text(String),
}

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// 0 picks the likeliest token each time (greedy); else the logits are divided by it. 0 to 2.
    pub temperature: f32,
    /// Sample among the likeliest tokens whose probabilities sum up to this. Above 0, up to 1.
    pub top_p: f32,
    /// Taken from a token's logit for each time that it stands in the answer so far. -2 to 2.
    pub frequency_penalty: f32,
    /// Taken from the logit of each token that stands in the answer so far. -2 to 2.
    pub presence_penalty: f32,
    /// The same seed, request and engine give the same answer, as far as other requests do not change rounding.
    pub seed: u64,
}

/// What an answer must look like. Schemas are texts of JSON Schema, as crate `output-schema` takes them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Form {
    /// Anything.
    Free,
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema(String),
    /// Anything, but what stands between `<tool_call>` and `</tool_call>` is JSON of this schema.
    ToolCalls(String),
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
    /// A piece of an answer.
    Token {
        /// The request.
        id: u64,
        /// Which answer, from 0.
        choice: u16,
        /// Whole UTF-8 characters; may hold the text of several tokens. Empty only beside logprobs.
        text: String,
        /// The tokens behind the piece, where logprobs were asked for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        logprobs: Vec<TokenLogprobs>,
    },
    /// One answer is complete.
    Ended {
        /// The request.
        id: u64,
        /// Which answer, from 0.
        choice: u16,
        /// Why it ended.
        reason: FinishReason,
    },
    /// The vector of one text, of [`Work::Embed`]'s length. Texts come in the order of the request.
    Vector {
        /// The request.
        id: u64,
        /// Which text, from 0.
        index: u32,
        /// Its vector; all values are finite.
        values: Vec<f32>,
    },
    /// All answers are complete.
    Done {
        /// The request.
        id: u64,
        /// Tokens of the rendered conversation, or of all texts.
        prompt_tokens: u32,
        /// Those of them that had not to be computed again.
        cached_tokens: u32,
        /// Tokens generated for all answers, with those that made a stop text or the end of the turn.
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

impl Event {
    /// The request that it belongs to.
    #[must_use]
    pub fn id(&self) -> Option<u64> {
        match *self {
            Self::Hello { .. } => None,
            Self::Started { id, .. }
            | Self::Token { id, .. }
            | Self::Vector { id, .. }
            | Self::Ended { id, .. }
            | Self::Done { id, .. }
            | Self::Failed { id, .. } => Some(id),
        }
    }

    /// Whether nothing more comes of its request.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Failed { .. })
    }
}

/// What the loaded model can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFacts {
    /// Most tokens of conversation and answer together.
    pub context: u32,
    /// Size of the vocabulary, in tokens.
    pub vocab: u32,
    /// What it is for.
    pub work: Work,
}

/// What a model is for. Requests for the other end with [`Failure::OtherWork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Work {
    /// It continues texts: [`Command::Generate`].
    Generate,
    /// It makes vectors of texts: [`Command::Embed`].
    Embed {
        /// Values of a vector, 1 to [`crate::MAX_DIMENSIONS`].
        dimensions: u32,
    },
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn, or a stop text came.
    Stop,
    /// `max_tokens` or the context is used up.
    Length,
}

/// A token and those that might have come instead.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLogprobs {
    /// The token.
    pub token: TokenLogprob,
    /// The likeliest ones, likeliest first.
    pub top: Vec<TokenLogprob>,
}

/// A token's bytes and the natural logarithm of its probability, before temperature, penalties and form.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLogprob {
    /// Not always whole characters; empty for tokens that are no text.
    pub bytes: Vec<u8>,
    /// At most 0. -9999 stands for less.
    pub logprob: f32,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The request breaks a rule of [`Generate::check`] or [`Embed::check`].
    InvalidRequest,
    /// The model's chat template refuses the conversation.
    TemplateFailed,
    /// Conversation and `max_tokens` do not fit into the context, or one of the texts does not.
    ContextOverflow,
    /// The texts have more than [`crate::MAX_EMBED_TOKENS`] tokens together.
    TooManyTokens,
    /// A token is none of the model's.
    UnknownToken,
    /// The model is not for this work.
    OtherWork,
    /// Too many requests wait.
    QueueFull,
    /// The id belongs to a request in flight.
    DuplicateId,
    /// The computation failed.
    EngineFailed,
    /// `serve` cancelled it.
    Cancelled,
    /// No token can follow within the form, or finding one would take too long.
    FormStuck,
    /// A text has a longer run without white space, or of it, than the model's tokenizer can read.
    UnbrokenText,
    /// A text spells out a control token of the model, and this engine cannot have it taken for ordinary text.
    ControlToken,
}

impl Generate {
    /// Checks every rule that needs no model, but the schema's own.
    ///
    /// # Errors
    /// The first rule broken, in the order of the fields.
    pub fn check(&self) -> Result<(), InvalidRequest> {
        self.prompt.check()?;
        if !(1..=MAX_CHOICES).contains(&self.choices) {
            return Err(InvalidRequest::Choices);
        }
        if self.max_tokens == Some(0) || self.most_tokens == Some(0) {
            return Err(InvalidRequest::MaxTokensZero);
        }
        self.sampling.check()?;
        let in_order = self.logit_bias.windows(2).all(|pair| matches!(pair, [a, b] if a.token < b.token));
        let biases_fit = self.logit_bias.iter().all(|bias| (-100.0..=100.0).contains(&bias.bias));
        if self.logit_bias.len() > MAX_BIASES || !in_order || !biases_fit {
            return Err(InvalidRequest::LogitBias);
        }
        let stops_fit = self.stop.iter().all(|stop| !stop.is_empty() && stop.len() <= MAX_STOP_BYTES);
        if self.stop.len() > MAX_STOPS || !stops_fit {
            return Err(InvalidRequest::Stop);
        }
        if self.logprobs.is_some_and(|top| top > MAX_TOP_LOGPROBS) {
            return Err(InvalidRequest::TopLogprobs);
        }
        match &self.form {
            Form::JsonSchema(schema) | Form::ToolCalls(schema) if schema.len() > MAX_SCHEMA_BYTES => {
                Err(InvalidRequest::SchemaTooLong { bytes: schema.len() })
            }
            _ => Ok(()),
        }
    }
}

impl Prompt {
    /// The texts in it.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let (messages, text) = match self {
            Self::Chat(messages) => (messages.as_slice(), None),
            Self::Text(text) => (&[][..], Some(text.as_str())),
        };
        messages.iter().map(|message| message.content.as_str()).chain(text)
    }

    /// Bytes of all texts in it.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        self.texts().fold(0, |sum, text| sum.saturating_add(text.len()))
    }

    fn check(&self) -> Result<(), InvalidRequest> {
        match self {
            Self::Chat(messages) if messages.is_empty() => return Err(InvalidRequest::NoMessages),
            Self::Chat(messages) if messages.len() > MAX_MESSAGES => {
                return Err(InvalidRequest::TooManyMessages { count: messages.len() });
            }
            Self::Chat(_) | Self::Text(_) => {}
        }
        let bytes = self.text_bytes();
        let nul = self.texts().any(|text| text.contains('\0'));
        match self {
            Self::Chat(_) if bytes > MAX_TEXT_BYTES => Err(InvalidRequest::TextTooLong { bytes }),
            Self::Text(_) if bytes > MAX_TEXT_BYTES => Err(InvalidRequest::PromptTooLong { bytes }),
            Self::Chat(_) if nul => Err(InvalidRequest::NulCharacter),
            Self::Text(_) if nul => Err(InvalidRequest::NulInPrompt),
            Self::Chat(_) | Self::Text(_) => Ok(()),
        }
    }
}

impl Sampling {
    fn check(&self) -> Result<(), InvalidRequest> {
        let penalty = |value: f32| (-2.0..=2.0).contains(&value);
        if !(0.0..=2.0).contains(&self.temperature) {
            return Err(InvalidRequest::Temperature);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(InvalidRequest::TopP);
        }
        if !penalty(self.frequency_penalty) {
            return Err(InvalidRequest::FrequencyPenalty);
        }
        if penalty(self.presence_penalty) { Ok(()) } else { Err(InvalidRequest::PresencePenalty) }
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
    /// The text to continue is too long.
    #[error("prompt: {bytes} bytes of text given, at most {MAX_TEXT_BYTES} allowed")]
    PromptTooLong {
        /// How many bytes were given.
        bytes: usize,
    },
    /// The text to continue holds U+0000.
    #[error("prompt: the character U+0000 is not allowed")]
    NulInPrompt,
    /// `choices` is out of range.
    #[error("n: must be between 1 and {MAX_CHOICES}")]
    Choices,
    /// `max_tokens` is 0.
    #[error("max_tokens: must be at least 1")]
    MaxTokensZero,
    /// `temperature` is out of range.
    #[error("temperature: must be between 0 and 2")]
    Temperature,
    /// `top_p` is out of range.
    #[error("top_p: must be above 0 and at most 1")]
    TopP,
    /// `frequency_penalty` is out of range.
    #[error("frequency_penalty: must be between -2 and 2")]
    FrequencyPenalty,
    /// `presence_penalty` is out of range.
    #[error("presence_penalty: must be between -2 and 2")]
    PresencePenalty,
    /// `logit_bias` has too many, out of range, or not in order.
    #[error("logit_bias: at most {MAX_BIASES} tokens, each once, with numbers between -100 and 100 are allowed")]
    LogitBias,
    /// `stop` has too many, too long or empty texts.
    #[error("stop: at most {MAX_STOPS} texts of 1 to {MAX_STOP_BYTES} bytes are allowed")]
    Stop,
    /// `logprobs` asks for too many.
    #[error("top_logprobs: at most {MAX_TOP_LOGPROBS} are allowed")]
    TopLogprobs,
    /// There is no text, or there are too many.
    #[error("input: 1 to {} texts are expected", crate::MAX_INPUTS)]
    Inputs,
    /// A text or a list of tokens is empty.
    #[error("input: an empty text is not allowed")]
    EmptyInput,
    /// The texts are too long together.
    #[error("input: {bytes} bytes given, at most {MAX_TEXT_BYTES} allowed")]
    InputTooLong {
        /// How many bytes were given.
        bytes: usize,
    },
    /// The schema's text is too long.
    #[error("response_format: {bytes} bytes of schema given, at most {MAX_SCHEMA_BYTES} allowed")]
    SchemaTooLong {
        /// How many bytes were given.
        bytes: usize,
    },
}

impl fmt::Debug for Generate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generate")
            .field("id", &self.id)
            .field("prompt", &self.prompt)
            .field("choices", &self.choices)
            .field("max_tokens", &self.max_tokens)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chat(messages) => write!(f, "Chat({} messages)", messages.len()),
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
        }
    }
}

impl fmt::Debug for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("Free"),
            Self::JsonObject => f.write_str("JsonObject"),
            Self::JsonSchema(schema) => write!(f, "JsonSchema({} bytes)", schema.len()),
            Self::ToolCalls(schema) => write!(f, "ToolCalls({} bytes)", schema.len()),
        }
    }
}

impl fmt::Debug for TokenLogprobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenLogprobs({} likeliest)", self.top.len())
    }
}

impl fmt::Debug for TokenLogprob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenLogprob")
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
            Self::Token { id, choice, .. } => write!(f, "Token({id}, {choice})"),
            Self::Ended { id, choice, reason } => write!(f, "Ended({id}, {choice}, {reason:?})"),
            Self::Vector { id, index, values } => write!(f, "Vector({id}, {index}, {} values)", values.len()),
            Self::Done { id, prompt_tokens, cached_tokens, completion_tokens } => {
                write!(f, "Done({id}, {prompt_tokens} ({cached_tokens} cached) + {completion_tokens} tokens)")
            }
            Self::Failed { id, code, .. } => write!(f, "Failed({id}, {code:?})"),
        }
    }
}

/// Version of this protocol, in [`Event::Hello`].
pub const PROTOCOL_VERSION: u32 = 5;
/// Most messages of a conversation.
pub const MAX_MESSAGES: usize = 1024;
/// Most bytes of all contents of a conversation together.
pub const MAX_TEXT_BYTES: usize = 2 << 20;
/// Most stop texts of a request: four of the client and one of `serve`.
pub const MAX_STOPS: usize = 5;
/// Longest stop text, in bytes.
pub const MAX_STOP_BYTES: usize = 256;
/// Most tokens whose logits are changed.
pub const MAX_BIASES: usize = 300;
/// Most answers of a request.
pub const MAX_CHOICES: u16 = 8;
/// Most likeliest tokens beside each token.
pub const MAX_TOP_LOGPROBS: u8 = 20;
/// Longest text of a schema, in bytes.
pub const MAX_SCHEMA_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Generate {
        Generate {
            id: 1,
            tenant: Tenant([1; 32]),
            prompt: Prompt::Chat(vec![message("hello")]),
            choices: 1,
            max_tokens: None,
            most_tokens: None,
            sampling: Sampling {
                temperature: 1.0,
                top_p: 0.9,
                frequency_penalty: 0.0,
                presence_penalty: 0.0,
                seed: u64::MAX,
            },
            logit_bias: vec![Bias { token: 1, bias: -100.0 }, Bias { token: 2, bias: 100.0 }],
            stop: vec!["\n".into()],
            logprobs: None,
            form: Form::Free,
        }
    }

    fn message(content: &str) -> Message {
        Message { role: Role::User, content: content.into() }
    }

    /// A rule, and what breaks it.
    type Case = (InvalidRequest, fn(&mut Generate));

    #[test]
    fn each_rule_is_checked() {
        assert_eq!(request().check(), Ok(()));
        let cases: Vec<Case> = vec![
            (InvalidRequest::NoMessages, |r| r.prompt = Prompt::Chat(vec![])),
            (InvalidRequest::TooManyMessages { count: MAX_MESSAGES + 1 }, |r| {
                r.prompt = Prompt::Chat(vec![message(""); MAX_MESSAGES + 1]);
            }),
            (InvalidRequest::TextTooLong { bytes: MAX_TEXT_BYTES + 1 }, |r| {
                r.prompt = Prompt::Chat(vec![message("x"), message(&"x".repeat(MAX_TEXT_BYTES))]);
            }),
            (InvalidRequest::NulCharacter, |r| r.prompt = Prompt::Chat(vec![message("\0")])),
            (InvalidRequest::PromptTooLong { bytes: MAX_TEXT_BYTES + 1 }, |r| {
                r.prompt = Prompt::Text("x".repeat(MAX_TEXT_BYTES + 1));
            }),
            (InvalidRequest::NulInPrompt, |r| r.prompt = Prompt::Text("\0".into())),
            (InvalidRequest::Choices, |r| r.choices = 0),
            (InvalidRequest::Choices, |r| r.choices = 1000),
            (InvalidRequest::MaxTokensZero, |r| r.max_tokens = Some(0)),
            (InvalidRequest::MaxTokensZero, |r| r.most_tokens = Some(0)),
            (InvalidRequest::LogitBias, |r| r.logit_bias[0].bias = -100.1),
            (InvalidRequest::LogitBias, |r| r.logit_bias[0].bias = f32::NAN),
            (InvalidRequest::LogitBias, |r| r.logit_bias[0].token = 2),
            (InvalidRequest::LogitBias, |r| {
                r.logit_bias = (0..=300).map(|token| Bias { token, bias: 1.0 }).collect();
            }),
            (InvalidRequest::Temperature, |r| r.sampling.temperature = -0.1),
            (InvalidRequest::Temperature, |r| r.sampling.temperature = 2.1),
            (InvalidRequest::Temperature, |r| r.sampling.temperature = f32::NAN),
            (InvalidRequest::TopP, |r| r.sampling.top_p = 0.0),
            (InvalidRequest::TopP, |r| r.sampling.top_p = f32::NAN),
            (InvalidRequest::TopP, |r| r.sampling.top_p = 1.1),
            (InvalidRequest::Stop, |r| r.stop = vec![String::new()]),
            (InvalidRequest::Stop, |r| r.stop = vec!["x".into(); MAX_STOPS + 1]),
            (InvalidRequest::Stop, |r| r.stop = vec!["x".repeat(MAX_STOP_BYTES + 1)]),
            (InvalidRequest::FrequencyPenalty, |r| r.sampling.frequency_penalty = 2.1),
            (InvalidRequest::PresencePenalty, |r| r.sampling.presence_penalty = f32::NAN),
            (InvalidRequest::TopLogprobs, |r| r.logprobs = Some(21)),
            (InvalidRequest::SchemaTooLong { bytes: MAX_SCHEMA_BYTES + 1 }, |r| {
                r.form = Form::ToolCalls("x".repeat(MAX_SCHEMA_BYTES + 1));
            }),
        ];
        for (expected, break_it) in cases {
            let mut broken = request();
            break_it(&mut broken);
            assert_eq!(broken.check(), Err(expected));
        }
    }
}
