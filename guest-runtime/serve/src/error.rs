// SPDX-License-Identifier: Apache-2.0
//! Error answers in OpenAI's form. None holds a value of the request: names of parameters and limits only.

use engine_protocol::{Failure, InvalidRequest, MAX_EMBED_TOKENS};
use http::StatusCode;
use output_schema::SchemaError;
use serde::Serialize;

/// An error answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) param: Option<String>,
    pub(crate) message: String,
    /// Seconds after which the same request may be answered, where that is known.
    pub(crate) retry: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, param: None, message: message.into(), retry: None }
    }

    fn with_param(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    pub(crate) fn attestation_required() -> Self {
        let message = "This connection has no proof yet. Send POST /v1/attestation with a random challenge on it and \
                       verify the proof, or use attested-proxy, which does both.";
        Self::new(StatusCode::PRECONDITION_REQUIRED, "attestation_required", message)
    }

    pub(crate) fn invalid_api_key() -> Self {
        let message = "This model is answered to its tenants alone. Send a valid API key: 'Authorization: Bearer KEY'.";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
    }

    /// `limit` is one of the API key's.
    pub(crate) fn rate_limit_exceeded(limit: &str, seconds: u64) -> Self {
        let message = format!("The limit of this API key is reached: {limit}. Try again in {seconds} s.");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
        Self { retry: Some(seconds), ..error }
    }

    pub(crate) fn malformed_json(line: usize, column: usize) -> Self {
        let message = format!("The body is not the expected JSON (line {line}, column {column}).");
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", message)
    }

    pub(crate) fn unsupported_parameter(name: &str) -> Self {
        let shown = shown(name);
        Self::new(StatusCode::BAD_REQUEST, "unsupported_parameter", format!("Unsupported parameter: '{shown}'."))
            .with_param(shown)
    }

    pub(crate) fn missing_parameter(name: &str) -> Self {
        let message = format!("Missing required parameter: '{name}'.");
        Self::new(StatusCode::BAD_REQUEST, "missing_required_parameter", message).with_param(name)
    }

    pub(crate) fn invalid_value(param: &str, rule: &str) -> Self {
        let message = format!("Invalid value for '{param}': {rule}.");
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", message).with_param(param)
    }

    pub(crate) fn schema(param: &str, error: &SchemaError) -> Self {
        let rule = match error {
            SchemaError::Keyword { keyword, at } => {
                format!("the schema's keyword '{}' at {at} is not supported", shown(keyword))
            }
            other => other.to_string(),
        };
        Self::invalid_value(param, &rule)
    }

    pub(crate) fn schema_too_long(param: &str) -> Self {
        let rule = format!("at most {} bytes of schema are allowed", engine_protocol::MAX_SCHEMA_BYTES);
        Self::invalid_value(param, &rule)
    }

    pub(crate) fn model_not_found() -> Self {
        let message = "The model does not exist here. GET /v1/models names the one that does.";
        Self::new(StatusCode::NOT_FOUND, "model_not_found", message).with_param("model")
    }

    pub(crate) fn not_found(what: &'static str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("There is no such {what}."))
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "This path has another method.")
    }

    pub(crate) fn body_too_large(max: usize) -> Self {
        let message = format!("The body is longer than {max} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
    }

    pub(crate) fn body_timeout() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "The body did not arrive in time.")
    }

    pub(crate) fn body_broken() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "request_broken", "The body ended early.")
    }

    pub(crate) fn busy() -> Self {
        let message = "Too many requests wait already. Try again in a moment.";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "server_busy", message)
    }

    pub(crate) fn engine_failed() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "engine_failed", "The engine could not answer.")
    }

    pub(crate) fn too_slow() -> Self {
        let message = "The answer was not read fast enough and was cancelled.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "reader_too_slow", message)
    }

    pub(crate) fn answer_too_long() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "answer_too_long", "The answer is longer than is allowed.")
    }

    pub(crate) fn attester_failed() -> Self {
        let message = "The attester did not sign. Try again in a moment.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "attester_failed", message)
    }

    pub(crate) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "Something inside the guest failed.")
    }

    pub(crate) fn of_engine(failure: Failure) -> Self {
        match failure {
            Failure::ContextOverflow => Self::new(
                StatusCode::BAD_REQUEST,
                "context_length_exceeded",
                "Conversation and max_tokens together are longer than the model's context.",
            )
            .with_param("messages"),
            Failure::TemplateFailed => Self::invalid_value(
                "messages",
                "the model's chat template cannot write this conversation, for example this order of roles",
            ),
            Failure::UnbrokenText => {
                let message = "A text has thousands of characters without white space, or of it, which this model's \
                               tokenizer cannot read. Break it up.";
                Self::new(StatusCode::BAD_REQUEST, "text_unbroken", message).with_param("messages")
            }
            Failure::ControlToken => {
                let message = "A text spells out one of this model's control tokens, which would be taken for one. \
                               Write it otherwise.";
                Self::new(StatusCode::BAD_REQUEST, "control_token", message).with_param("messages")
            }
            Failure::QueueFull => Self::busy(),
            Failure::FormStuck => {
                let message = "The answer cannot go on within the schema, or finding out how takes too long. Use a \
                               schema with fewer alternatives that begin alike.";
                Self::new(StatusCode::BAD_REQUEST, "form_stuck", message).with_param("response_format")
            }
            Failure::OtherWork => Self::wrong_endpoint(),
            Failure::InvalidRequest
            | Failure::DuplicateId
            | Failure::EngineFailed
            | Failure::Cancelled
            | Failure::TooManyTokens
            | Failure::UnknownToken => Self::engine_failed(),
        }
    }

    pub(crate) fn of_embedder(failure: Failure) -> Self {
        let refuse = |code, message: String| Self::new(StatusCode::BAD_REQUEST, code, message).with_param("input");
        match failure {
            Failure::ContextOverflow => refuse(
                "context_length_exceeded",
                "One of the texts is longer than the model's context, which GET /v1/models names.".to_owned(),
            ),
            Failure::TooManyTokens => refuse(
                "max_tokens_per_request",
                format!("The texts have more than {MAX_EMBED_TOKENS} tokens together."),
            ),
            Failure::UnknownToken => Self::invalid_value("input", "tokens of this model's own tokenizer are expected"),
            other => Self::of_engine(other),
        }
    }

    pub(crate) fn wrong_endpoint() -> Self {
        let message = "This model is not for this endpoint. GET /v1/models names those that it is for.";
        Self::new(StatusCode::BAD_REQUEST, "wrong_endpoint", message).with_param("model")
    }

    pub(crate) fn of_rule(rule: InvalidRequest) -> Self {
        // The texts of `InvalidRequest` are `parameter: rule` and hold counts at most.
        let text = rule.to_string();
        let (param, rule) = text.split_once(": ").unwrap_or(("messages", text.as_str()));
        Self::invalid_value(param, rule)
    }

    /// The JSON of the answer.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let kind = match self.status.as_u16() {
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let body = Outer {
            error: Inner { message: &self.message, r#type: kind, param: self.param.as_deref(), code: self.code },
        };
        serde_json::to_vec(&body).unwrap_or_default()
    }
}

/// A parameter's name as far as it is one.
fn shown(name: &str) -> &str {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'[' | b']');
    if (1..=64).contains(&name.len()) && name.bytes().all(plain) { name } else { "(not shown)" }
}

#[derive(Serialize)]
struct Outer<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}
