// SPDX-License-Identifier: Apache-2.0
//! The conversation of a request, as messages that every chat template knows.
//!
//! Calls and results of tools are written into the texts, as models of the Hermes and Qwen families were trained with:
//! the template needs no support for tools.

use engine_protocol::{Message, Role};
use output_schema::Json;

use crate::{error::ApiError, limits::Limits, tools::call_text};

/// Reads `messages`.
pub(crate) fn messages(value: Json, limits: &Limits) -> Result<Vec<Message>, ApiError> {
    let Json::Array(items) = value else {
        return Err(ApiError::invalid_value("messages", "an array is expected"));
    };
    if items.is_empty() || items.len() > limits.messages {
        return Err(ApiError::invalid_value("messages", &format!("1 to {} messages are expected", limits.messages)));
    }
    let mut messages: Vec<Message> = Vec::with_capacity(items.len());
    let mut after_tool = false;
    for (index, item) in items.into_iter().enumerate() {
        let (message, is_tool) = message(index, item)?;
        match messages.last_mut().filter(|_| is_tool && after_tool) {
            // Results of calls that were made together are one turn.
            Some(last) => {
                last.content.push('\n');
                last.content.push_str(&message.content);
            }
            None => messages.push(message),
        }
        after_tool = is_tool;
    }
    Ok(messages)
}

/// A message, and whether it is a tool's result.
fn message(index: usize, item: Json) -> Result<(Message, bool), ApiError> {
    let at = |field: &str| format!("messages[{index}].{field}");
    let Json::Object(fields) = item else {
        return Err(ApiError::invalid_value(&format!("messages[{index}]"), "an object is expected"));
    };
    let (mut role, mut content, mut calls, mut call_id) = (None, None, None, false);
    for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_null()) {
        match name.as_str() {
            "role" => role = Some(message_role(&value).ok_or_else(|| ApiError::invalid_value(&at("role"), ROLES))?),
            "content" => content = Some(message_content(&at("content"), value)?),
            "tool_calls" => calls = Some(tool_calls(&at("tool_calls"), value)?),
            "tool_call_id" => call_id = value.as_str().is_some(),
            other => return Err(ApiError::unsupported_parameter(&at(other))),
        }
    }
    let role = role.ok_or_else(|| ApiError::missing_parameter(&at("role")))?;
    if calls.is_some() && role != Speaker::Of(Role::Assistant) {
        return Err(ApiError::invalid_value(&at("tool_calls"), "only the assistant calls tools"));
    }
    if call_id != (role == Speaker::Tool) {
        return Err(ApiError::invalid_value(
            &at("tool_call_id"),
            "a text is expected in a tool's message, and only there",
        ));
    }
    let content = match (content, calls) {
        (Some(content), None) => content,
        (None, None) => return Err(ApiError::missing_parameter(&at("content"))),
        (content, Some(calls)) => {
            let mut content = content.unwrap_or_default();
            if !content.is_empty() {
                content.push('\n');
            }
            content + &calls
        }
    };
    Ok(match role {
        Speaker::Of(role) => (Message { role, content }, false),
        Speaker::Tool => {
            (Message { role: Role::User, content: format!("<tool_response>\n{content}\n</tool_response>") }, true)
        }
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaker {
    Of(Role),
    Tool,
}

fn message_role(value: &Json) -> Option<Speaker> {
    match value.as_str()? {
        "system" | "developer" => Some(Speaker::Of(Role::System)),
        "user" => Some(Speaker::Of(Role::User)),
        "assistant" => Some(Speaker::Of(Role::Assistant)),
        "tool" => Some(Speaker::Tool),
        _ => None,
    }
}

/// A text, or parts of type `text`, which are joined.
fn message_content(at: &str, value: Json) -> Result<String, ApiError> {
    match value {
        Json::String(text) => Ok(text),
        Json::Array(parts) => parts.into_iter().map(|part| text_part(at, part)).collect(),
        _ => Err(ApiError::invalid_value(at, "a text or an array of text parts is expected")),
    }
}

fn text_part(at: &str, part: Json) -> Result<String, ApiError> {
    let refuse = || ApiError::invalid_value(at, "only parts {\"type\":\"text\",\"text\":\"...\"} are supported");
    let Json::Object(fields) = part else { return Err(refuse()) };
    let mut text = None;
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("type", Json::String(kind)) if kind == "text" => {}
            ("text", Json::String(value)) => text = Some(value),
            _ => return Err(refuse()),
        }
    }
    text.ok_or_else(refuse)
}

/// Earlier calls, as the model wrote them.
fn tool_calls(at: &str, value: Json) -> Result<String, ApiError> {
    let refuse = || {
        ApiError::invalid_value(
            at,
            "calls {\"id\",\"type\":\"function\",\"function\":{\"name\",\"arguments\"}} are expected",
        )
    };
    let Json::Array(calls) = value else { return Err(refuse()) };
    let mut texts = Vec::new();
    for call in &calls {
        let function = call.field("function").ok_or_else(refuse)?;
        let name = function.field("name").and_then(Json::as_str).ok_or_else(refuse)?;
        let arguments = function.field("arguments").and_then(Json::as_str).ok_or_else(refuse)?;
        let is_call = call.field("id").and_then(Json::as_str).is_some()
            && call.field("type").and_then(Json::as_str) == Some("function");
        if !is_call {
            return Err(refuse());
        }
        texts.push(call_text(name, arguments));
    }
    Ok(texts.join("\n"))
}

const ROLES: &str = "one of system, developer, user, assistant, tool is expected";
