// SPDX-License-Identifier: Apache-2.0
//! From files to a model that is ready.

use crate::{
    Bert, Config, Pooling,
    config::CONFIG,
    text::{TOKENIZER, Text},
    worker::Queue,
};
use candle_core::{Device, safetensors::load_buffer};
use engine_protocol::{ModelFacts, Work};
use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};
use thiserror::Error;

/// A loaded model and the requests that wait for it.
#[derive(Debug)]
pub struct Embedder {
    pub(crate) model: Bert,
    pub(crate) text: Text,
    pub(crate) facts: ModelFacts,
    pub(crate) queue: Queue,
}

impl Embedder {
    /// Loads the files of `directory` and computes the vector of a text as long as any may be, so that everything that is
    /// set up at the first one is, and what memory does not suffice for fails here. A text may have `context` tokens, or
    /// as many as the model has positions, or as its sizes allow, where these are fewer.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(directory: &Path, context: u32) -> Result<Self, LoadError> {
        let config = Config::parse(&read(directory, CONFIG, MAX_JSON)?)?;
        let pooling = Pooling::read(directory)?;
        let vocab = u32::try_from(config.vocab_size).map_err(|_| LoadError::Arithmetic)?;
        let text = Text::parse(&read(directory, TOKENIZER, MAX_TOKENIZER)?, vocab)?;
        let weights = read(directory, WEIGHTS, u64::MAX)?;
        let tensors = load_buffer(&weights, &Device::Cpu).map_err(|_| LoadError::Json { file: WEIGHTS })?;
        drop(weights);
        let model = Bert::new(&config, pooling, tensors)?;
        let dimensions = u32::try_from(config.hidden_size).map_err(|_| LoadError::Arithmetic)?;
        let context = context.min(most_tokens(&config));
        let facts = ModelFacts { context, vocab, work: Work::Embed { dimensions } };
        let embedder = Self { model, text, facts, queue: Queue::default() };
        // Two tokens are the model's own.
        let longest = (0..context.saturating_sub(2).max(1)).map(|at| at.checked_rem(vocab).unwrap_or(0)).collect();
        let tokens = embedder.text.tokens(&engine_protocol::Input::Tokens(longest), context as usize);
        let tokens = tokens.map_err(|_| LoadError::Arithmetic)?;
        embedder.model.vector(&tokens).map_err(|_| LoadError::Arithmetic)?;
        Ok(embedder)
    }
}

/// Why a model could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file is missing or cannot be read.
    #[error("{file}: {source}")]
    Io {
        /// Which.
        file: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A file is longer than is read.
    #[error("{file}: more than {most} bytes")]
    TooLong {
        /// Which.
        file: &'static str,
        /// What is allowed.
        most: u64,
    },
    /// A file has not the form that its name promises.
    #[error("{file}: not of the expected form")]
    Json {
        /// Which.
        file: &'static str,
    },
    /// A file asks for something that is not done here.
    #[error("{file}: {field}: {rule}")]
    Config {
        /// Which.
        file: &'static str,
        /// Where.
        field: &'static str,
        /// The rule.
        rule: &'static str,
    },
    /// A tensor is not as expected.
    #[error("model.safetensors: {name}: {rule}")]
    Tensor {
        /// Its name.
        name: String,
        /// The rule.
        rule: &'static str,
    },
    /// The first vector could not be computed: the weights hold no usable numbers.
    #[error("model.safetensors: the first vector could not be computed")]
    Arithmetic,
}

/// How long a text may be, for what is computed of it.
fn most_tokens(config: &Config) -> u32 {
    let scores = MAX_SCORES.checked_div(config.num_attention_heads).unwrap_or(0).isqrt();
    let states = MAX_STATES.checked_div(config.intermediate_size.max(config.hidden_size)).unwrap_or(0);
    u32::try_from(config.max_position_embeddings.min(scores).min(states))
        .map_or(MAX_CONTEXT, |most| most.min(MAX_CONTEXT))
}

fn read(directory: &Path, file: &'static str, most: u64) -> Result<Vec<u8>, LoadError> {
    let io = |source| LoadError::Io { file, source };
    let opened = File::open(directory.join(file)).map_err(io)?;
    let length = opened.metadata().map_err(io)?.len();
    if length > most {
        return Err(LoadError::TooLong { file, most });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    opened.take(length).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

pub(crate) fn read_optional(directory: &Path, file: &'static str) -> Result<Option<Vec<u8>>, LoadError> {
    match read(directory, file, MAX_JSON) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(LoadError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

const WEIGHTS: &str = "model.safetensors";
const MAX_JSON: u64 = 64 << 10;
const MAX_TOKENIZER: u64 = 64 << 20;
const MAX_CONTEXT: u32 = 2048;
/// Numbers that attention gives: one for each head and two tokens. 192 MiB: `MAX_CONTEXT` tokens and twelve heads.
const MAX_SCORES: usize = 48 << 20;
/// Numbers between the two matrices of a layer. 64 MiB: `MAX_CONTEXT` tokens and 8,192 values.
const MAX_STATES: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_as_long_as_its_computation_has_room() {
        let most = |hidden: usize, heads: usize, wide: usize, positions: usize| {
            let json = format!(
                r#"{{"model_type":"bert","hidden_act":"gelu","hidden_size":{hidden},"num_hidden_layers":1,
                    "num_attention_heads":{heads},"intermediate_size":{wide},"max_position_embeddings":{positions},
                    "type_vocab_size":2,"vocab_size":9,"layer_norm_eps":1e-12}}"#
            );
            most_tokens(&Config::parse(json.as_bytes()).unwrap())
        };
        assert_eq!(most(384, 12, 1536, 512), 512);
        assert_eq!(most(384, 12, 1536, 1 << 16), MAX_CONTEXT);
        assert_eq!(most(1024, 16, 4096, 8192), 1773, "by the heads");
        assert_eq!(most(8192, 8192, 8192, 8192), 78);
        assert_eq!(most(8, 1, 1 << 16, 8192), 256, "by what is between the matrices");
    }
}
