// SPDX-License-Identifier: Apache-2.0
//! Reads the body of a completion request. Everything that is not supported is refused by name, so that no client
//! believes that it was heard.

use engine_protocol::{Bias, Form, Generate, Message, Prompt, Sampling, Tenant};
use output_schema::{Grammar, Json, Matcher};

use crate::{
    error::ApiError,
    limits::Limits,
    messages::messages,
    parse::{boolean, count, logit_bias, number, seed, stop, stream_options, text},
    tools::{self, Choice, Reading, Tools},
};

/// A request that can be answered, as far as can be told without the engine.
#[derive(Debug)]
pub(crate) struct ApiRequest {
    /// The model as the client names it.
    pub(crate) model: String,
    /// What the engine shall do; `id`, `tenant` and, where none was given, the seed are still 0.
    pub(crate) generate: Generate,
    pub(crate) has_seed: bool,
    /// Whether the client said how many tokens it wants at most.
    pub(crate) names_max_tokens: bool,
    pub(crate) kind: Kind,
    /// How the text of an answer is read.
    pub(crate) reading: Reading,
    /// Answer as server-sent events.
    pub(crate) stream: bool,
    /// With an event that holds the usage.
    pub(crate) include_usage: bool,
    /// With events padded to buckets.
    pub(crate) pad: bool,
}

/// Which of the API's two forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
}

impl ApiRequest {
    /// Reads and checks a body.
    pub(crate) fn parse(kind: Kind, body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let json = Json::parse(body).map_err(|error| ApiError::malformed_json(error.line, error.column))?;
        let Json::Object(fields) = json else { return Err(ApiError::malformed_json(1, 1)) };
        let mut draft = Draft::default();
        for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_null()) {
            if let Some(value) = draft.take_common(&name, value)? {
                match kind {
                    Kind::Chat => draft.take_chat(&name, value, limits)?,
                    Kind::Text => draft.take_text(&name, value)?,
                }
            }
        }
        draft.finish(kind)
    }

    /// Holds the answer to so many tokens: refused where more are asked for by name.
    pub(crate) fn hold_to(&mut self, most: Option<u32>) -> Result<(), ApiError> {
        let Some(most) = most else { return Ok(()) };
        match &mut self.generate.max_tokens {
            Some(asked) if *asked > most && self.names_max_tokens => {
                Err(ApiError::invalid_value("max_tokens", &format!("at most {most} are allowed for this API key")))
            }
            Some(asked) => {
                *asked = most.min(*asked);
                Ok(())
            }
            None => {
                self.generate.most_tokens = Some(most);
                Ok(())
            }
        }
    }
}

#[derive(Default)]
struct Draft {
    model: Option<String>,
    messages: Option<Vec<Message>>,
    prompt: Option<String>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    seed: Option<u64>,
    stop: Vec<String>,
    n: Option<u32>,
    best_of: Option<u32>,
    logit_bias: Vec<Bias>,
    stream: bool,
    options: Option<(bool, bool)>,
    wants_logprobs: bool,
    top_logprobs: Option<u32>,
    form: Option<Form>,
    tools: Tools,
    tool_choice: Option<Json>,
    several_calls: Option<bool>,
}

impl Draft {
    /// What both forms have. Gives the value back where it is not one of these.
    fn take_common(&mut self, name: &str, value: Json) -> Result<Option<Json>, ApiError> {
        match name {
            "model" => self.model = Some(text(name, value)?),
            "max_tokens" => self.max_tokens = Some(count(name, &value, 1, MAX_TOKENS)?),
            "temperature" => self.temperature = Some(number(name, &value)?),
            "top_p" => self.top_p = Some(number(name, &value)?),
            "frequency_penalty" => self.frequency_penalty = Some(number(name, &value)?),
            "presence_penalty" => self.presence_penalty = Some(number(name, &value)?),
            "seed" => self.seed = Some(seed(&value)?),
            "stop" => self.stop = stop(value)?,
            "logit_bias" => self.logit_bias = logit_bias(value)?,
            "n" => self.n = Some(count(name, &value, 1, engine_protocol::MAX_CHOICES.into())?),
            "stream" => self.stream = boolean(name, &value)?,
            "stream_options" => self.options = Some(stream_options(value)?),
            // They name somebody; nothing here depends on who it is.
            "user" | "safety_identifier" | "prompt_cache_key" => drop(text(name, value)?),
            _ => return Ok(Some(value)),
        }
        Ok(None)
    }

    fn take_chat(&mut self, name: &str, value: Json, limits: &Limits) -> Result<(), ApiError> {
        match name {
            "messages" => self.messages = Some(messages(value, limits)?),
            "max_completion_tokens" => self.max_completion_tokens = Some(count(name, &value, 1, MAX_TOKENS)?),
            "logprobs" => self.wants_logprobs = boolean(name, &value)?,
            "top_logprobs" => {
                self.top_logprobs = Some(count(name, &value, 0, engine_protocol::MAX_TOP_LOGPROBS.into())?)
            }
            "response_format" => self.form = Some(response_format(value)?),
            "tools" => self.tools = Tools::parse(value)?,
            "tool_choice" => self.tool_choice = Some(value),
            "parallel_tool_calls" => self.several_calls = Some(boolean(name, &value)?),
            "store" if !boolean(name, &value)? => {}
            "store" => return Err(ApiError::invalid_value(name, "nothing is stored here: false is expected")),
            "service_tier" if matches!(value.as_str(), Some("auto" | "default")) => {}
            "service_tier" => return Err(ApiError::invalid_value(name, "auto or default is expected")),
            other => return Err(ApiError::unsupported_parameter(other)),
        }
        Ok(())
    }

    fn take_text(&mut self, name: &str, value: Json) -> Result<(), ApiError> {
        match name {
            "prompt" => {
                let one = match value {
                    Json::Array(items) if items.len() == 1 => items.into_iter().next(),
                    other => Some(other),
                };
                let prompt = one.and_then(|one| if let Json::String(text) = one { Some(text) } else { None });
                self.prompt = Some(prompt.ok_or_else(|| ApiError::invalid_value(name, "one text is expected"))?);
            }
            "logprobs" => {
                self.wants_logprobs = true;
                self.top_logprobs = Some(count(name, &value, 0, engine_protocol::MAX_TOP_LOGPROBS.into())?);
            }
            "best_of" => self.best_of = Some(count(name, &value, 1, engine_protocol::MAX_CHOICES.into())?),
            "echo" if !boolean(name, &value)? => {}
            "echo" => return Err(ApiError::invalid_value(name, "only false is supported")),
            other => return Err(ApiError::unsupported_parameter(other)),
        }
        Ok(())
    }

    fn finish(mut self, kind: Kind) -> Result<ApiRequest, ApiError> {
        let model = self.model.take().ok_or_else(|| ApiError::missing_parameter("model"))?;
        let n = self.n.unwrap_or(1);
        if self.best_of.is_some_and(|best_of| best_of != n) {
            return Err(ApiError::invalid_value("best_of", "it must equal n"));
        }
        if self.top_logprobs.is_some() && !self.wants_logprobs {
            return Err(ApiError::invalid_value("top_logprobs", "it needs logprobs = true"));
        }
        if self.options.is_some() && !self.stream {
            return Err(ApiError::invalid_value("stream_options", "it needs stream = true"));
        }
        let max_tokens = match (self.max_tokens, self.max_completion_tokens) {
            (Some(a), Some(b)) if a != b => {
                return Err(ApiError::invalid_value("max_tokens", "it must equal max_completion_tokens"));
            }
            (a, b) => a.or(b),
        };
        let names_max_tokens = max_tokens.is_some();
        let (form, reading) = self.form()?;
        let (include_usage, pad) = self.options.unwrap_or((false, true));
        let (prompt, max_tokens) = match kind {
            Kind::Chat => {
                let mut messages = self.messages.take().ok_or_else(|| ApiError::missing_parameter("messages"))?;
                self.tools.describe(&mut messages, reading);
                (Prompt::Chat(messages), max_tokens)
            }
            Kind::Text => {
                let prompt = self.prompt.take().ok_or_else(|| ApiError::missing_parameter("prompt"))?;
                (Prompt::Text(prompt), Some(max_tokens.unwrap_or(TEXT_TOKENS)))
            }
        };
        if self.several_calls == Some(false) && reading == Reading::Marked {
            self.stop.push(tools::CLOSE.to_owned());
        }
        let generate = Generate {
            id: 0,
            tenant: Tenant([0; 32]),
            prompt,
            choices: u16::try_from(n).unwrap_or(u16::MAX),
            max_tokens,
            most_tokens: None,
            sampling: Sampling {
                temperature: self.temperature.unwrap_or(1.0),
                top_p: self.top_p.unwrap_or(1.0),
                frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
                presence_penalty: self.presence_penalty.unwrap_or(0.0),
                seed: self.seed.unwrap_or(0),
            },
            logit_bias: self.logit_bias,
            stop: self.stop,
            logprobs: self.wants_logprobs.then(|| u8::try_from(self.top_logprobs.unwrap_or(0)).unwrap_or(u8::MAX)),
            form,
        };
        generate.check().map_err(ApiError::of_rule)?;
        let (has_seed, stream) = (self.seed.is_some(), self.stream);
        Ok(ApiRequest { model, generate, has_seed, names_max_tokens, kind, reading, stream, include_usage, pad })
    }

    fn form(&mut self) -> Result<(Form, Reading), ApiError> {
        let choice = self.tools.choice(self.tool_choice.take())?;
        match (self.form.take(), &choice) {
            (None | Some(Form::Free), _) => self.tools.form(&choice, self.several_calls == Some(true)),
            (Some(form), Choice::None) => Ok((form, Reading::Content)),
            (Some(_), _) => Err(ApiError::invalid_value("response_format", "it cannot be joined with tools")),
        }
    }
}

fn response_format(value: Json) -> Result<Form, ApiError> {
    let refuse =
        || ApiError::invalid_value("response_format", "{\"type\": text, json_object or json_schema} is expected");
    let Json::Object(fields) = &value else { return Err(refuse()) };
    let kind = value.field("type").and_then(Json::as_str).ok_or_else(refuse)?;
    let known = |name: &str| name == "type" || (name == "json_schema" && kind == "json_schema");
    if let Some((name, _)) = fields.iter().find(|(name, _)| !known(name)) {
        return Err(ApiError::unsupported_parameter(&format!("response_format.{name}")));
    }
    match kind {
        "text" => Ok(Form::Free),
        "json_object" => Ok(Form::JsonObject),
        "json_schema" => {
            let at = |name: &str| format!("response_format.json_schema{name}");
            let Some(Json::Object(fields)) = value.field("json_schema") else {
                return Err(ApiError::missing_parameter(&at("")));
            };
            let known = ["name", "description", "schema", "strict"];
            if let Some((name, _)) = fields.iter().find(|(name, _)| !known.contains(&name.as_str())) {
                return Err(ApiError::unsupported_parameter(&at(&format!(".{name}"))));
            }
            let schema = fields.iter().find(|(name, _)| name == "schema").map(|(_, schema)| schema);
            let schema = schema.ok_or_else(|| ApiError::missing_parameter(&at(".schema")))?;
            let text = tools::short_text(schema).ok_or_else(|| ApiError::schema_too_long("response_format"))?;
            let form = Grammar::of_schema(schema).and_then(Matcher::new);
            form.map_err(|error| ApiError::schema(&at(".schema"), &error))?;
            Ok(Form::JsonSchema(text))
        }
        _ => Err(refuse()),
    }
}

/// As large as the largest context of a configuration.
const MAX_TOKENS: u32 = 1 << 20;
/// What `/v1/completions` generates where nothing is said, as OpenAI's does.
const TEXT_TOKENS: u32 = 16;

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
