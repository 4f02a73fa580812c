// SPDX-License-Identifier: Apache-2.0
//! `/v1/embeddings`: texts become vectors, with a receipt like any other answer.

use std::sync::Arc;

use attested_channel::receipt::embedding_bytes;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use engine_protocol::{Embed, Input, MAX_INPUTS};
use http::Response;
use output_schema::Json;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    answer::pad_whole,
    api::{AnswerBody, Proof, State, names},
    completion::{Ticket, aside, estimate, not_taken, random, receipt, with_receipt},
    engine::{Asker, Generation, Step},
    error::ApiError,
    parse::{count, text},
};

/// A request that can be answered, as far as can be told without the engine.
#[derive(Debug)]
pub(crate) struct EmbeddingRequest {
    /// The model as the client names it.
    pub(crate) model: String,
    inputs: Vec<Input>,
    encoding: Encoding,
    dimensions: Option<u32>,
}

/// How a vector is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    /// An array of numbers.
    Float,
    /// Base64 of 32-bit numbers, least significant byte first.
    Base64,
}

impl EmbeddingRequest {
    /// Reads and checks a body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let json = Json::parse(body).map_err(|error| ApiError::malformed_json(error.line, error.column))?;
        let Json::Object(fields) = json else { return Err(ApiError::malformed_json(1, 1)) };
        let (mut model, mut given, mut encoding, mut dimensions) = (None, None, Encoding::Float, None);
        for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_null()) {
            match name.as_str() {
                "model" => model = Some(text(&name, value)?),
                "input" => given = Some(inputs(value)?),
                "encoding_format" => {
                    encoding = match value.as_str() {
                        Some("float") => Encoding::Float,
                        Some("base64") => Encoding::Base64,
                        _ => return Err(ApiError::invalid_value(&name, "float or base64 is expected")),
                    };
                }
                "dimensions" => dimensions = Some(count(&name, &value, 1, u32::MAX)?),
                // It names somebody; nothing here depends on who it is.
                "user" => drop(text(&name, value)?),
                other => return Err(ApiError::unsupported_parameter(other)),
            }
        }
        let model = model.ok_or_else(|| ApiError::missing_parameter("model"))?;
        let inputs = given.ok_or_else(|| ApiError::missing_parameter("input"))?;
        // The engine's own rules; the id is given later.
        let embed = Embed { id: 0, inputs };
        embed.check().map_err(ApiError::of_rule)?;
        Ok(Self { model, inputs: embed.inputs, encoding, dimensions })
    }

    /// What the engine is asked, with its id still 0.
    pub(crate) fn into_embed(self) -> Embed {
        Embed { id: 0, inputs: self.inputs }
    }

    /// What depends on the model's vectors.
    fn check(&self, dimensions: u32, answer_bytes: usize) -> Result<(), ApiError> {
        if self.dimensions.is_some_and(|asked| asked != dimensions) {
            let rule = format!("this model's vectors have {dimensions} values and are not shortened");
            return Err(ApiError::invalid_value("dimensions", &rule));
        }
        let vector = usize::try_from(dimensions).unwrap_or(usize::MAX).saturating_mul(self.encoding.most_bytes());
        let most = answer_bytes.checked_div(vector.saturating_add(ENTRY_BYTES)).unwrap_or(0);
        if self.inputs.len() > most {
            let rule = format!("at most {most} texts are expected in this encoding_format");
            return Err(ApiError::invalid_value("input", &rule));
        }
        Ok(())
    }
}

impl Encoding {
    /// Most bytes that a value takes.
    fn most_bytes(self) -> usize {
        match self {
            // "-1.1754944e-38,"
            Self::Float => 16,
            Self::Base64 => 6,
        }
    }
}

/// One text, several, one list of tokens, or several.
fn inputs(value: Json) -> Result<Vec<Input>, ApiError> {
    let refuse = || {
        let rule = format!("a text, a list of tokens, or an array of 1 to {MAX_INPUTS} of the same is expected");
        ApiError::invalid_value("input", &rule)
    };
    let items = match value {
        Json::String(text) => return Ok(vec![Input::Text(text)]),
        Json::Array(items) => items,
        _ => return Err(refuse()),
    };
    let all = match items.first().ok_or_else(refuse)? {
        Json::String(_) => items
            .into_iter()
            .map(|item| if let Json::String(text) = item { Some(Input::Text(text)) } else { None })
            .collect(),
        Json::Number(_) => tokens(&items).map(|tokens| vec![tokens]),
        Json::Array(_) => {
            items.iter().map(|item| if let Json::Array(items) = item { tokens(items) } else { None }).collect()
        }
        _ => None,
    };
    all.ok_or_else(refuse)
}

fn tokens(items: &[Json]) -> Option<Input> {
    let token = |item: &Json| item.as_u64().and_then(|token| u32::try_from(token).ok());
    items.iter().map(token).collect::<Option<_>>().map(Input::Tokens)
}

/// Answers a request that came on a connection with this proof, by a model whose vectors have `dimensions` values.
pub(crate) async fn answer(
    state: &Arc<State>,
    dimensions: u32,
    mut asker: Asker,
    proof: Proof,
    body: &[u8],
) -> Result<Response<AnswerBody>, ApiError> {
    let request = aside(body.len(), || EmbeddingRequest::parse(body))?;
    if !names(&state.model, &request.model) {
        return Err(ApiError::model_not_found());
    }
    request.check(dimensions, state.limits.answer_bytes)?;
    if let Some(charge) = &mut asker.charge {
        let tokens = request.inputs.iter().map(|input| match input {
            Input::Text(text) => estimate(text.len()),
            Input::Tokens(tokens) => u64::try_from(tokens.len()).unwrap_or(u64::MAX),
        });
        charge.reserve(tokens.fold(0, u64::saturating_add), 0)?;
    }
    let ticket = Ticket::new(&proof, &asker, body)?;
    let id = format!("embd-{}", hex::encode(random::<16>()?));
    let EmbeddingRequest { inputs, encoding, .. } = request;
    let expected = inputs.len();
    let mut generation = state.engine.embed(inputs, asker).map_err(not_taken)?;
    let (vectors, prompt_tokens) = collect(&mut generation, expected, dimensions).await?;
    let length = vectors.iter().fold(0_usize, |sum, values| sum.saturating_add(size_of_val(values.as_slice())));
    let signed = aside(length, || embedding_bytes(&vectors)).ok_or_else(ApiError::engine_failed)?;
    let signed = Zeroizing::new(signed);
    let receipt = receipt(state, &ticket, &id, &signed, prompt_tokens.into(), 0).await?;
    let json = aside(length, || write(&id, &state.model.to_string(), &vectors, encoding, prompt_tokens))?;
    with_receipt(json, &receipt)
}

/// The body of an answer.
fn write(
    id: &str,
    model: &str,
    vectors: &[Zeroizing<Vec<f32>>],
    encoding: Encoding,
    prompt_tokens: u32,
) -> Result<Vec<u8>, ApiError> {
    let data = vectors.iter().enumerate().map(|(index, values)| Entry {
        object: "embedding",
        index,
        embedding: match encoding {
            Encoding::Float => Values::Float(values),
            Encoding::Base64 => {
                Values::Base64(STANDARD.encode(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>()))
            }
        },
    });
    let usage = Usage { prompt_tokens, total_tokens: prompt_tokens };
    let list = List { id, object: "list", data: data.collect(), model, usage };
    let mut json = serde_json::to_vec(&list).map_err(|_| ApiError::internal())?;
    pad_whole(&mut json);
    Ok(json)
}

type Vectors = Vec<Zeroizing<Vec<f32>>>;

/// All vectors in their order, and the tokens of all texts.
async fn collect(generation: &mut Generation, expected: usize, dimensions: u32) -> Result<(Vectors, u32), ApiError> {
    let mut vectors = Vec::with_capacity(expected);
    let mut started = false;
    loop {
        match generation.next().await {
            Step::Started if !started => started = true,
            Step::Vector { index, values } => {
                let fits = started
                    && usize::try_from(index) == Ok(vectors.len())
                    && vectors.len() < expected
                    && u32::try_from(values.len()) == Ok(dimensions)
                    && values.iter().all(|value| value.is_finite());
                if !fits {
                    return Err(ApiError::engine_failed());
                }
                vectors.push(values);
            }
            Step::Done { prompt_tokens, .. } if vectors.len() == expected => return Ok((vectors, prompt_tokens)),
            Step::Failed(failure) => return Err(ApiError::of_embedder(failure)),
            Step::Started | Step::Text { .. } | Step::Ended { .. } | Step::Done { .. } | Step::Lost => {
                return Err(ApiError::engine_failed());
            }
        }
    }
}

#[derive(Serialize)]
struct List<'a> {
    /// Names the receipt; OpenAI's answer has none.
    id: &'a str,
    object: &'a str,
    data: Vec<Entry<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Entry<'a> {
    object: &'a str,
    index: usize,
    embedding: Values<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Values<'a> {
    Float(&'a [f32]),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u32,
    total_tokens: u32,
}

/// What an entry takes beside its vector.
const ENTRY_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<EmbeddingRequest, ApiError> {
        EmbeddingRequest::parse(body.as_bytes())
    }

    fn inputs_of(input: &str) -> Result<Vec<Input>, ApiError> {
        parse(&format!(r#"{{"model":"m","input":{input}}}"#)).map(|request| request.inputs)
    }

    #[test]
    fn an_input_has_four_forms() {
        let text = |text: &str| Input::Text(text.into());
        assert_eq!(inputs_of(r#""a""#).unwrap(), [text("a")]);
        assert_eq!(inputs_of(r#"["a","b"]"#).unwrap(), [text("a"), text("b")]);
        assert_eq!(inputs_of("[1,2]").unwrap(), [Input::Tokens(vec![1, 2])]);
        assert_eq!(inputs_of("[[1],[2,3]]").unwrap(), [Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])]);
        for bad in [
            r#""""#,
            "[]",
            "[[]]",
            r#"["a",1]"#,
            r#"[1,"a"]"#,
            "[[1],2]",
            "[-1]",
            "[1.5]",
            "[4294967296]",
            "{}",
            "7",
            r#"["a",""]"#,
        ] {
            let error = inputs_of(bad).unwrap_err();
            assert_eq!((error.code, error.param.as_deref()), ("invalid_value", Some("input")), "{bad}");
        }
        assert!(inputs_of(&format!("[{}\"a\"]", "\"a\",".repeat(MAX_INPUTS - 1))).is_ok());
        assert!(inputs_of(&format!("[{}\"a\"]", "\"a\",".repeat(MAX_INPUTS))).is_err());
    }

    #[test]
    fn each_parameter_is_read_or_refused_by_name() {
        let request =
            parse(r#"{"model":"m","input":"a","encoding_format":"base64","dimensions":3,"user":"u"}"#).unwrap();
        assert_eq!((request.encoding, request.dimensions), (Encoding::Base64, Some(3)));
        assert_eq!(parse(r#"{"model":"m","input":"a","user":null}"#).unwrap().encoding, Encoding::Float);
        for (body, code, param) in [
            (r#"{"input":"a"}"#, "missing_required_parameter", "model"),
            (r#"{"model":"m"}"#, "missing_required_parameter", "input"),
            (r#"{"model":"m","input":"a","encoding_format":"int8"}"#, "invalid_value", "encoding_format"),
            (r#"{"model":"m","input":"a","dimensions":0}"#, "invalid_value", "dimensions"),
            (r#"{"model":"m","input":"a","user":1}"#, "invalid_value", "user"),
            (r#"{"model":"m","input":"a","stream":true}"#, "unsupported_parameter", "stream"),
        ] {
            let error = parse(body).unwrap_err();
            assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{body}");
        }
    }

    #[test]
    fn an_answer_that_would_be_too_long_is_refused_before_it_is_computed() {
        let request = |encoding: &str| {
            let texts = "\"a\",".repeat(99);
            parse(&format!(r#"{{"model":"m","input":[{texts}"a"],"encoding_format":"{encoding}"}}"#)).unwrap()
        };
        assert_eq!(request("float").check(4, 100 * (4 * 16 + 64)), Ok(()));
        assert_eq!(request("float").check(4, 100 * (4 * 16 + 64) - 1).unwrap_err().param.as_deref(), Some("input"));
        assert_eq!(request("base64").check(4, 100 * (4 * 6 + 64)), Ok(()));
        let mut shorter = request("float");
        shorter.dimensions = Some(3);
        assert_eq!(shorter.check(4, usize::MAX).unwrap_err().param.as_deref(), Some("dimensions"));
    }

    /// The longest text that a value may have.
    #[test]
    fn values_fit_what_is_reckoned_for_them() {
        for value in [f32::MIN, -f32::MIN_POSITIVE, -1.234_567_9e-38, -1e-45, -0.123_456_79, -1.234_567_9e-5] {
            assert!(serde_json::to_string(&value).unwrap().len() < Encoding::Float.most_bytes(), "{value}");
        }
    }
}
