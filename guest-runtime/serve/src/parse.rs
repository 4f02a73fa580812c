// SPDX-License-Identifier: Apache-2.0
//! Values of parameters. Each refusal names the parameter and the rule, never the value.

use engine_protocol::{Bias, MAX_BIASES};
use output_schema::Json;

use crate::error::ApiError;

pub(crate) fn text(name: &str, value: Json) -> Result<String, ApiError> {
    match value {
        Json::String(text) => Ok(text),
        _ => Err(ApiError::invalid_value(name, "a text is expected")),
    }
}

pub(crate) fn boolean(name: &str, value: &Json) -> Result<bool, ApiError> {
    value.as_bool().ok_or_else(|| ApiError::invalid_value(name, "true or false is expected"))
}

#[allow(clippy::cast_possible_truncation, reason = "the engine computes in single precision; the range is checked")]
pub(crate) fn number(name: &str, value: &Json) -> Result<f32, ApiError> {
    let number = value.as_number().and_then(serde_json::Number::as_f64);
    number.map(|number| number as f32).ok_or_else(|| ApiError::invalid_value(name, "a number is expected"))
}

/// An integer of a range.
pub(crate) fn count(name: &str, value: &Json, least: u32, most: u32) -> Result<u32, ApiError> {
    let count = value.as_u64().and_then(|count| u32::try_from(count).ok()).filter(|n| (least..=most).contains(n));
    count.ok_or_else(|| ApiError::invalid_value(name, &format!("an integer from {least} to {most} is expected")))
}

/// Negative seeds are seeds, too.
pub(crate) fn seed(value: &Json) -> Result<u64, ApiError> {
    let signed = || value.as_number().and_then(serde_json::Number::as_i64).map(i64::cast_unsigned);
    value.as_u64().or_else(signed).ok_or_else(|| ApiError::invalid_value("seed", "a 64-bit integer is expected"))
}

pub(crate) fn stop(value: Json) -> Result<Vec<String>, ApiError> {
    match value {
        Json::String(one) => Ok(vec![one]),
        Json::Array(items) if items.len() <= MAX_STOPS => items.into_iter().map(|item| text("stop", item)).collect(),
        _ => Err(ApiError::invalid_value("stop", "a text or an array of at most 4 texts is expected")),
    }
}

/// What is added to the logits of tokens, by their numbers. Whether the model has these tokens is checked elsewhere.
pub(crate) fn logit_bias(value: Json) -> Result<Vec<Bias>, ApiError> {
    let refuse = || {
        let rule = format!(
            "an object of at most {MAX_BIASES} numbers of tokens, each with a number from -100 to 100, is expected"
        );
        ApiError::invalid_value("logit_bias", &rule)
    };
    let Json::Object(fields) = value else { return Err(refuse()) };
    if fields.len() > MAX_BIASES {
        return Err(refuse());
    }
    let mut biases = Vec::with_capacity(fields.len());
    for (name, value) in &fields {
        // One spelling of each number, so that no token is named twice.
        let token = name.parse::<u32>().ok().filter(|token| token.to_string() == *name).ok_or_else(refuse)?;
        let bias = number("logit_bias", value)?;
        if !(-100.0..=100.0).contains(&bias) {
            return Err(refuse());
        }
        biases.push(Bias { token, bias });
    }
    biases.sort_unstable_by_key(|bias| bias.token);
    Ok(biases)
}

/// `include_usage` and whether to pad.
pub(crate) fn stream_options(value: Json) -> Result<(bool, bool), ApiError> {
    let Json::Object(fields) = value else {
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

/// The API's; the engine takes one more, for the end of a tool call.
const MAX_STOPS: usize = 4;
