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
    /// Loads the files of `directory` and computes one vector, so that everything that is set up at the first one is.
    /// A text may have `context` tokens, or as many as the model has positions where these are fewer.
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
        let positions = u32::try_from(config.max_position_embeddings).unwrap_or(u32::MAX);
        let dimensions = u32::try_from(config.hidden_size).map_err(|_| LoadError::Arithmetic)?;
        let context = context.min(positions).min(MAX_CONTEXT);
        let facts = ModelFacts { context, vocab, work: Work::Embed { dimensions } };
        let embedder = Self { model, text, facts, queue: Queue::default() };
        let tokens = embedder.text.tokens(&engine_protocol::Input::Text("ready".into()), context as usize);
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
/// Attention takes memory by the square of a text's tokens: 192 MiB for this many and twelve heads.
const MAX_CONTEXT: u32 = 2048;
