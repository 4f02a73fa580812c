// SPDX-License-Identifier: Apache-2.0
//! What the server is asked.

use engine_protocol::{Form, Generate, Message, Prompt};
use serde::Serialize;
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// The body of `/tokenize` for a prompt.
pub(crate) fn tokenize(model: &str, prompt: &Prompt) -> Option<Zeroizing<Vec<u8>>> {
    body(&match prompt {
        Prompt::Chat(messages) => Tokenize {
            model,
            messages: Some(messages.iter().map(ChatMessage::of).collect()),
            prompt: None,
            // The template writes them, up to where the assistant speaks.
            add_special_tokens: false,
            add_generation_prompt: Some(true),
        },
        Prompt::Text(text) => Tokenize {
            model,
            messages: None,
            prompt: Some(text),
            add_special_tokens: true,
            add_generation_prompt: None,
        },
    })
}

/// A prompt of the same shape that spells out no control token.
pub(crate) fn plain(prompt: &Prompt) -> Prompt {
    let short = |text: &str| if text.is_empty() { String::new() } else { "x".to_owned() };
    match prompt {
        Prompt::Chat(messages) => Prompt::Chat(
            messages.iter().map(|message| Message { role: message.role, content: short(&message.content) }).collect(),
        ),
        Prompt::Text(text) => Prompt::Text(short(text)),
    }
}

/// The body of `/v1/completions` for the tokens of a prompt, with room for `max_tokens`.
pub(crate) fn complete(model: &str, request: &Generate, tokens: &[u32], max_tokens: u32) -> Option<Zeroizing<Vec<u8>>> {
    let sampling = request.sampling;
    body(&Complete {
        model,
        prompt: tokens,
        n: request.choices,
        max_tokens,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        // What the model's own file would set otherwise.
        top_k: -1,
        min_p: 0,
        repetition_penalty: 1,
        frequency_penalty: sampling.frequency_penalty,
        presence_penalty: sampling.presence_penalty,
        // The server's numbers have a sign.
        seed: sampling.seed & i64::MAX.cast_unsigned(),
        stop: &request.stop,
        logprobs: request.logprobs,
        logit_bias: request.logit_bias.iter().map(|bias| (bias.token, bias.bias)).collect(),
        stream: true,
        stream_options: StreamOptions { include_usage: true },
        cache_salt: hex::encode(request.tenant.0),
        structured_outputs: Structured::of(&request.form),
    })
}

fn body(body: &impl Serialize) -> Option<Zeroizing<Vec<u8>>> {
    serde_json::to_vec(body).ok().map(Zeroizing::new)
}

#[derive(Serialize)]
struct Tokenize<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<Vec<ChatMessage<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    add_special_tokens: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    add_generation_prompt: Option<bool>,
}

#[derive(Serialize)]
struct ChatMessage<'a> {
    role: &'static str,
    content: &'a str,
}

impl<'a> ChatMessage<'a> {
    fn of(message: &'a Message) -> Self {
        Self { role: message.role.name(), content: &message.content }
    }
}

#[derive(Serialize)]
struct Complete<'a> {
    model: &'a str,
    prompt: &'a [u32],
    n: u16,
    max_tokens: u32,
    temperature: f32,
    top_p: f32,
    top_k: i32,
    min_p: u8,
    repetition_penalty: u8,
    frequency_penalty: f32,
    presence_penalty: f32,
    seed: u64,
    stop: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<u8>,
    /// By the tokens' numbers, written as texts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    logit_bias: BTreeMap<u32, f32>,
    stream: bool,
    stream_options: StreamOptions,
    cache_salt: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    structured_outputs: Option<Structured>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// The form, as a text: an object would lose the order of its fields on the way.
#[derive(Default, Serialize)]
struct Structured {
    #[serde(skip_serializing_if = "Option::is_none")]
    json: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    json_object: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    structural_tag: Option<String>,
    disable_any_whitespace: bool,
    disable_additional_properties: bool,
}

impl Structured {
    fn of(form: &Form) -> Option<Self> {
        let this = Self { disable_any_whitespace: true, disable_additional_properties: true, ..Self::default() };
        match form {
            Form::Free => None,
            Form::JsonObject => Some(Self { json_object: Some(true), ..this }),
            Form::JsonSchema(schema) => Some(Self { json: Some(schema.clone()), ..this }),
            Form::ToolCalls(schema) => Some(Self { structural_tag: Some(calls(schema)), ..this }),
        }
    }
}

/// Free text in which each mark opens a value of the schema. The schema is put in as it is, for the order of its fields; `serve`
/// has written it, and the form was read from it before.
fn calls(schema: &str) -> String {
    format!(
        "{{\"type\":\"structural_tag\",\"structures\":[{{\"begin\":\"<tool_call>\\n\",\"schema\":{schema},\
         \"end\":\"\\n</tool_call>\"}}],\"triggers\":[\"<tool_call>\"]}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_protocol::{Bias, Role, Sampling, Tenant};
    use serde_json::{Value, json};

    fn request(form: Form) -> Generate {
        Generate {
            id: 1,
            tenant: Tenant([0xab; 32]),
            prompt: Prompt::Text("hi".into()),
            choices: 2,
            max_tokens: None,
            most_tokens: None,
            logit_bias: vec![],
            sampling: Sampling {
                temperature: 0.5,
                top_p: 0.25,
                frequency_penalty: 1.0,
                presence_penalty: -1.0,
                seed: u64::MAX,
            },
            stop: vec!["END".into()],
            logprobs: Some(3),
            form,
        }
    }

    fn asked(form: Form) -> Value {
        serde_json::from_slice(&complete("m", &request(form), &[1, 2], 9).unwrap()).unwrap()
    }

    #[test]
    fn everything_that_was_asked_for_is_asked_for() {
        assert_eq!(
            asked(Form::Free),
            json!({"model": "m", "prompt": [1, 2], "n": 2, "max_tokens": 9, "temperature": 0.5, "top_p": 0.25,
                "top_k": -1, "min_p": 0, "repetition_penalty": 1, "frequency_penalty": 1.0, "presence_penalty": -1.0,
                "seed": i64::MAX, "stop": ["END"], "logprobs": 3, "stream": true,
                "stream_options": {"include_usage": true}, "cache_salt": "ab".repeat(32)})
        );
    }

    #[test]
    fn what_is_added_to_logits_is_named_by_token() {
        let logit_bias = vec![Bias { token: 2, bias: -100.0 }, Bias { token: 10, bias: 0.5 }];
        let request = Generate { logit_bias, ..request(Form::Free) };
        let asked: Value = serde_json::from_slice(&complete("m", &request, &[1], 9).unwrap()).unwrap();
        assert_eq!(asked["logit_bias"], json!({"2": -100.0, "10": 0.5}));
    }

    #[test]
    fn forms_keep_the_order_of_their_fields() {
        let schema = r#"{"z":1,"a":2}"#;
        let form = |form| asked(form)["structured_outputs"].clone();
        let others = json!({"disable_any_whitespace": true, "disable_additional_properties": true});
        let with = |name: &str, value: Value| {
            let mut all = others.clone();
            all[name] = value;
            all
        };
        assert_eq!(form(Form::JsonObject), with("json_object", json!(true)));
        assert_eq!(form(Form::JsonSchema(schema.into())), with("json", json!(schema)));
        let tag = form(Form::ToolCalls(schema.into()))["structural_tag"].as_str().unwrap().to_owned();
        assert!(tag.contains(schema), "{tag}");
        let tag: Value = serde_json::from_str(&tag).unwrap();
        assert_eq!(tag["structures"][0]["begin"], "<tool_call>\n");
        assert_eq!(tag["triggers"], json!(["<tool_call>"]));
    }

    #[test]
    fn prompts_are_tokenized_by_their_kind() {
        let chat = Prompt::Chat(vec![
            Message { role: Role::System, content: String::new() },
            Message { role: Role::User, content: "<|im_end|>".into() },
        ]);
        let body = |prompt: &Prompt| serde_json::from_slice::<Value>(&tokenize("m", prompt).unwrap()).unwrap();
        let messages = json!([{"role": "system", "content": ""}, {"role": "user", "content": "<|im_end|>"}]);
        assert_eq!(
            body(&chat),
            json!({"model": "m", "messages": messages, "add_special_tokens": false, "add_generation_prompt": true})
        );
        assert_eq!(body(&plain(&chat))["messages"][1]["content"], "x");
        assert_eq!(body(&plain(&chat))["messages"][0]["content"], "");
        let text = Prompt::Text("a".into());
        assert_eq!(body(&text), json!({"model": "m", "prompt": "a", "add_special_tokens": true}));
    }
}
