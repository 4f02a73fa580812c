// SPDX-License-Identifier: Apache-2.0
//! Reads the body of a chat completion request. Everything that is not supported is refused by name, so that no
//! client believes that it was heard.

use engine_protocol::{Generate, Message, Role};
use serde_json::{Map, Value};

use crate::{error::ApiError, limits::Limits};

/// A request that can be answered, as far as can be told without the engine.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    /// The model as the client names it.
    pub(crate) model: String,
    /// What the engine shall do; `id` is still 0.
    pub(crate) generate: Generate,
    /// Answer as server-sent events.
    pub(crate) stream: bool,
    /// With an event that holds the usage.
    pub(crate) include_usage: bool,
    /// With events padded to buckets.
    pub(crate) pad: bool,
}

impl ChatRequest {
    /// Reads and checks a body.
    pub(crate) fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let fields = serde_json::from_slice::<Map<String, Value>>(body)
            .map_err(|error| ApiError::malformed_json(error.line(), error.column()))?;
        let mut draft = Draft::default();
        for (name, value) in fields {
            if !value.is_null() {
                draft.take(&name, value, limits)?;
            }
        }
        draft.finish()
    }
}

#[derive(Default)]
struct Draft {
    model: Option<String>,
    messages: Option<Vec<Message>>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<u64>,
    stop: Vec<String>,
    stream: bool,
    options: Option<(bool, bool)>,
}

impl Draft {
    fn take(&mut self, name: &str, value: Value, limits: &Limits) -> Result<(), ApiError> {
        match name {
            "model" => self.model = Some(text(name, value)?),
            "messages" => self.messages = Some(messages(value, limits)?),
            "max_tokens" => self.max_tokens = Some(tokens(name, &value)?),
            "max_completion_tokens" => self.max_completion_tokens = Some(tokens(name, &value)?),
            "temperature" => self.temperature = Some(number(name, &value)?),
            "top_p" => self.top_p = Some(number(name, &value)?),
            "seed" => self.seed = Some(seed(&value)?),
            "stop" => self.stop = stop(value)?,
            "stream" => self.stream = boolean(name, &value)?,
            "stream_options" => self.options = Some(stream_options(value)?),
            "n" if value.as_u64() == Some(1) => {}
            "n" => return Err(ApiError::invalid_value("n", "only 1 is supported")),
            "user" => drop(text(name, value)?),
            other => return Err(ApiError::unsupported_parameter(other)),
        }
        Ok(())
    }

    fn finish(self) -> Result<ChatRequest, ApiError> {
        let model = self.model.ok_or_else(|| ApiError::missing_parameter("model"))?;
        let messages = self.messages.ok_or_else(|| ApiError::missing_parameter("messages"))?;
        let max_tokens = match (self.max_tokens, self.max_completion_tokens) {
            (Some(a), Some(b)) if a != b => {
                return Err(ApiError::invalid_value("max_tokens", "it must equal max_completion_tokens"));
            }
            (a, b) => a.or(b),
        };
        if self.options.is_some() && !self.stream {
            return Err(ApiError::invalid_value("stream_options", "it needs stream = true"));
        }
        let (include_usage, pad) = self.options.unwrap_or((false, true));
        let generate = Generate {
            id: 0,
            messages,
            max_tokens,
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(1.0),
            seed: self.seed,
            stop: self.stop,
        };
        generate.check().map_err(ApiError::of_rule)?;
        Ok(ChatRequest { model, generate, stream: self.stream, include_usage, pad })
    }
}

fn messages(value: Value, limits: &Limits) -> Result<Vec<Message>, ApiError> {
    let Value::Array(items) = value else {
        return Err(ApiError::invalid_value("messages", "an array is expected"));
    };
    if items.is_empty() || items.len() > limits.messages {
        return Err(ApiError::invalid_value("messages", &format!("1 to {} messages are expected", limits.messages)));
    }
    items.into_iter().enumerate().map(|(index, item)| message(index, item)).collect()
}

fn message(index: usize, item: Value) -> Result<Message, ApiError> {
    let at = |field: &str| format!("messages[{index}].{field}");
    let Value::Object(fields) = item else {
        return Err(ApiError::invalid_value(&format!("messages[{index}]"), "an object is expected"));
    };
    let (mut role, mut content) = (None, None);
    for (name, value) in fields {
        match name.as_str() {
            "role" => role = Some(message_role(&value).ok_or_else(|| ApiError::invalid_value(&at("role"), ROLES))?),
            "content" => content = Some(message_content(&at("content"), value)?),
            _ if value.is_null() => {}
            other => return Err(ApiError::unsupported_parameter(&at(other))),
        }
    }
    Ok(Message {
        role: role.ok_or_else(|| ApiError::missing_parameter(&at("role")))?,
        content: content.ok_or_else(|| ApiError::missing_parameter(&at("content")))?,
    })
}

fn message_role(value: &Value) -> Option<Role> {
    match value.as_str()? {
        "system" | "developer" => Some(Role::System),
        "user" => Some(Role::User),
        "assistant" => Some(Role::Assistant),
        _ => None,
    }
}

/// A text, or parts of type `text`, which are joined.
fn message_content(at: &str, value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        Value::Array(parts) => parts.into_iter().map(|part| text_part(at, part)).collect(),
        _ => Err(ApiError::invalid_value(at, "a text or an array of text parts is expected")),
    }
}

fn text_part(at: &str, part: Value) -> Result<String, ApiError> {
    let refuse = || ApiError::invalid_value(at, "only parts {\"type\":\"text\",\"text\":…} are supported");
    let Value::Object(mut fields) = part else { return Err(refuse()) };
    let kind = fields.remove("type");
    match (kind.as_ref().and_then(Value::as_str), fields.remove("text")) {
        (Some("text"), Some(Value::String(text))) if fields.is_empty() => Ok(text),
        _ => Err(refuse()),
    }
}

fn stop(value: Value) -> Result<Vec<String>, ApiError> {
    match value {
        Value::String(one) => Ok(vec![one]),
        Value::Array(items) if items.len() <= engine_protocol::MAX_STOPS => {
            items.into_iter().map(|item| text("stop", item)).collect()
        }
        _ => Err(ApiError::invalid_value("stop", "a text or an array of at most 4 texts is expected")),
    }
}

/// `include_usage` and whether to pad.
fn stream_options(value: Value) -> Result<(bool, bool), ApiError> {
    let Value::Object(fields) = value else {
        return Err(ApiError::invalid_value("stream_options", "an object is expected"));
    };
    let (mut usage, mut pad) = (false, true);
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        match name.as_str() {
            "include_usage" => usage = boolean("stream_options.include_usage", value)?,
            "include_obfuscation" => pad = boolean("stream_options.include_obfuscation", value)?,
            other => return Err(ApiError::unsupported_parameter(&format!("stream_options.{other}"))),
        }
    }
    Ok((usage, pad))
}

fn text(name: &str, value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err(ApiError::invalid_value(name, "a text is expected")),
    }
}

fn boolean(name: &str, value: &Value) -> Result<bool, ApiError> {
    value.as_bool().ok_or_else(|| ApiError::invalid_value(name, "true or false is expected"))
}

#[allow(clippy::cast_possible_truncation, reason = "the engine computes in single precision; the range is checked")]
fn number(name: &str, value: &Value) -> Result<f32, ApiError> {
    value.as_f64().map(|number| number as f32).ok_or_else(|| ApiError::invalid_value(name, "a number is expected"))
}

fn tokens(name: &str, value: &Value) -> Result<u32, ApiError> {
    let count = value.as_u64().filter(|count| (1..=MAX_TOKENS).contains(count));
    count
        .and_then(|count| u32::try_from(count).ok())
        .ok_or_else(|| ApiError::invalid_value(name, &format!("an integer from 1 to {MAX_TOKENS} is expected")))
}

/// Negative seeds are seeds, too.
fn seed(value: &Value) -> Result<u64, ApiError> {
    let signed = || value.as_i64().map(i64::cast_unsigned);
    value.as_u64().or_else(signed).ok_or_else(|| ApiError::invalid_value("seed", "a 64-bit integer is expected"))
}

const ROLES: &str = "one of system, developer, user, assistant is expected";
/// As large as the largest context of a configuration.
const MAX_TOKENS: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<ChatRequest, ApiError> {
        ChatRequest::parse(json.as_bytes(), &Limits::default())
    }

    fn with(extra: &str) -> Result<ChatRequest, ApiError> {
        parse(&format!(r#"{{"model":"m","messages":[{{"role":"user","content":"secret"}}]{extra}}}"#))
    }

    #[test]
    fn what_clients_send_is_understood() {
        let request = parse(
            r#"{"model":"m","messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
            {"role":"user","content":"c","name":null}],"max_completion_tokens":7,"temperature":0,"top_p":0.5,"seed":-1,
            "stop":"x","stream":true,"stream_options":{"include_usage":true},"n":1,"user":"u","tools":null}"#,
        )
        .unwrap();
        assert_eq!(request.generate.messages[0].role, Role::System);
        assert_eq!(request.generate.messages[0].content, "ab");
        assert_eq!(request.generate.max_tokens, Some(7));
        assert_eq!(request.generate.seed, Some(u64::MAX));
        assert_eq!(request.generate.stop, ["x"]);
        assert!(request.stream && request.include_usage && request.pad);
        let plain = with("").unwrap();
        assert!(!plain.stream && plain.generate.max_tokens.is_none());
        assert!((plain.generate.temperature - 1.0).abs() < f32::EPSILON);
    }

    #[test]
    fn refusals_name_the_parameter_and_never_a_value() {
        let long = format!(r#","stop":["{}"]"#, "y".repeat(300));
        for (extra, code, param) in [
            (r#","tools":[{"secret":1}]"#, "unsupported_parameter", "tools"),
            (r#","logprobs":true"#, "unsupported_parameter", "logprobs"),
            (r#","sec ret":1"#, "unsupported_parameter", "(not shown)"),
            (r#","n":1000"#, "invalid_value", "n"),
            (r#","max_tokens":0"#, "invalid_value", "max_tokens"),
            (r#","max_tokens":1,"max_completion_tokens":2"#, "invalid_value", "max_tokens"),
            (r#","max_tokens":4294967297"#, "invalid_value", "max_tokens"),
            (r#","temperature":3"#, "invalid_value", "temperature"),
            (r#","temperature":"secret""#, "invalid_value", "temperature"),
            (r#","top_p":0"#, "invalid_value", "top_p"),
            (r#","seed":1.5"#, "invalid_value", "seed"),
            (long.as_str(), "invalid_value", "stop"),
            (r#","stream":"secret""#, "invalid_value", "stream"),
            (r#","stream_options":{"include_usage":true}"#, "invalid_value", "stream_options"),
            (r#","stream":true,"stream_options":{"x":1}"#, "unsupported_parameter", "stream_options.x"),
        ] {
            let error = with(extra).unwrap_err();
            assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{extra}");
            let json = String::from_utf8(error.to_json()).unwrap();
            assert!(!json.contains("secret"), "{json}");
        }
    }

    #[test]
    fn broken_conversations_are_refused() {
        let many = vec![r#"{"role":"user","content":"x"}"#; 257].join(",");
        let bomb = "[".repeat(100_000);
        for (messages, param) in [
            ("[]", "messages"),
            ("7", "messages"),
            ("[7]", "messages[0]"),
            (r#"[{"role":"tool","content":"x"}]"#, "messages[0].role"),
            (r#"[{"role":"user"}]"#, "messages[0].content"),
            (r#"[{"role":"user","content":7}]"#, "messages[0].content"),
            (r#"[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]"#, "messages[0].content"),
            (r#"[{"role":"user","content":"x","tool_calls":[]}]"#, "messages[0].tool_calls"),
            (r#"[{"role":"user","content":"\u0000"}]"#, "messages"),
            (&format!("[{many}]"), "messages"),
        ] {
            let error = parse(&format!(r#"{{"model":"m","messages":{messages}}}"#)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{messages}");
        }
        for json in [bomb.as_str(), "", "[]", "{", r#"{"model":"m"} x"#, "\u{feff}{}"] {
            assert_eq!(parse(json).unwrap_err().code, "invalid_json");
        }
        assert_eq!(parse("{}").unwrap_err().code, "missing_required_parameter");
    }
}
