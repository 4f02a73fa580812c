// SPDX-License-Identifier: Apache-2.0
//! The arithmetic: BERT's encoder (Devlin et al., 2018, section 3; post-layer normalisation) over one text.

use crate::{Config, LoadError, Pooling};
use candle_core::{D, DType, Result as Computed, Tensor};
use std::collections::HashMap;

/// A model, in 32-bit floating point.
#[derive(Debug)]
pub struct Bert {
    words: Tensor,
    positions: Tensor,
    /// The first kind of segment: a text has no second.
    segment: Tensor,
    normal: Normal,
    layers: Vec<Layer>,
    heads: usize,
    pooling: Pooling,
}

impl Bert {
    /// Takes the tensors that `config` speaks of; others are left alone.
    ///
    /// # Errors
    /// One is missing, of another shape, or of no type of numbers.
    pub fn new(config: &Config, pooling: Pooling, tensors: HashMap<String, Tensor>) -> Result<Self, LoadError> {
        let mut source = Source::new(tensors);
        let Config { hidden_size: h, intermediate_size: m, .. } = *config;
        let embeddings = "embeddings.";
        let words = source.take(embeddings, "word_embeddings.weight", &[config.vocab_size, h])?;
        let positions = source.take(embeddings, "position_embeddings.weight", &[config.max_position_embeddings, h])?;
        let segments = source.take(embeddings, "token_type_embeddings.weight", &[config.type_vocab_size, h])?;
        let normal = source.normal("embeddings.LayerNorm.", config)?;
        let segment = segments.narrow(0, 0, 1).map_err(|_| LoadError::Arithmetic)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for number in 0..config.num_hidden_layers {
            let at = |part: &str| format!("encoder.layer.{number}.{part}.");
            layers.push(Layer {
                query: source.linear(&at("attention.self.query"), h, h)?,
                key: source.linear(&at("attention.self.key"), h, h)?,
                value: source.linear(&at("attention.self.value"), h, h)?,
                joined: source.linear(&at("attention.output.dense"), h, h)?,
                after_attention: source.normal(&at("attention.output.LayerNorm"), config)?,
                wide: source.linear(&at("intermediate.dense"), h, m)?,
                narrow: source.linear(&at("output.dense"), m, h)?,
                after_layer: source.normal(&at("output.LayerNorm"), config)?,
            });
        }
        Ok(Self { words, positions, segment, normal, layers, heads: config.num_attention_heads, pooling })
    }

    /// The vector of one text, of length 1. `tokens` are all of its tokens, at most as many as there are positions, each
    /// below the size of the vocabulary.
    ///
    /// # Errors
    /// A token or their number is out of range, or the result is no direction.
    pub fn vector(&self, tokens: &[u32]) -> Computed<Vec<f32>> {
        let count = tokens.len();
        let ids = Tensor::new(tokens, self.words.device())?;
        let positions = self.positions.narrow(0, 0, count)?;
        let sum = (self.words.index_select(&ids, 0)? + positions)?.broadcast_add(&self.segment)?;
        let mut states = self.normal.forward(&sum)?;
        for layer in &self.layers {
            states = layer.forward(&states, self.heads)?;
        }
        let pooled = match self.pooling {
            Pooling::Mean => states.mean(0)?,
            Pooling::First => states.narrow(0, 0, 1)?.squeeze(0)?,
        };
        unit(pooled.to_vec1()?)
    }
}

/// Brings a vector to length 1.
fn unit(mut values: Vec<f32>) -> Computed<Vec<f32>> {
    let length = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if !(length.is_finite() && length > SHORTEST) {
        return Err(candle_core::Error::Msg("the vector has no direction".into()));
    }
    for value in &mut values {
        #[allow(clippy::cast_possible_truncation, reason = "vectors have single precision")]
        let scaled = (f64::from(*value) / length) as f32;
        *value = scaled;
    }
    Ok(values)
}

#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    joined: Linear,
    after_attention: Normal,
    wide: Linear,
    narrow: Linear,
    after_layer: Normal,
}

impl Layer {
    fn forward(&self, states: &Tensor, heads: usize) -> Computed<Tensor> {
        let attended = self.after_attention.forward(&(self.attention(states, heads)? + states)?)?;
        let wide = self.wide.forward(&attended)?.gelu_erf()?;
        self.after_layer.forward(&(self.narrow.forward(&wide)? + attended)?)
    }

    fn attention(&self, states: &Tensor, heads: usize) -> Computed<Tensor> {
        let (count, width) = states.dims2()?;
        let split = |linear: &Linear| {
            let all = linear.forward(states)?.reshape((count, heads, ()))?;
            all.transpose(0, 1)?.contiguous()
        };
        let (query, key, value) = (split(&self.query)?, split(&self.key)?, split(&self.value)?);
        #[allow(clippy::cast_precision_loss, reason = "a head has far fewer than 2^52 values")]
        let scale = 1.0 / (query.dim(D::Minus1)? as f64).sqrt();
        let scores = (query.matmul(&key.t()?)? * scale)?;
        let weights = candle_nn::ops::softmax_last_dim(&scores)?;
        let joined = weights.matmul(&value)?.transpose(0, 1)?.reshape((count, width))?;
        self.joined.forward(&joined)
    }
}

#[derive(Debug)]
struct Linear {
    /// Transposed: inputs by outputs.
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn forward(&self, states: &Tensor) -> Computed<Tensor> {
        states.matmul(&self.weight)?.broadcast_add(&self.bias)
    }
}

#[derive(Debug)]
struct Normal {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

impl Normal {
    fn forward(&self, states: &Tensor) -> Computed<Tensor> {
        candle_nn::ops::layer_norm(&states.contiguous()?, &self.weight, &self.bias, self.epsilon)
    }
}

/// The tensors of a file, by name. Some models put `bert.` before all of them.
struct Source {
    tensors: HashMap<String, Tensor>,
    prefix: &'static str,
}

impl Source {
    fn new(tensors: HashMap<String, Tensor>) -> Self {
        let prefix = if tensors.contains_key("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
        Self { tensors, prefix }
    }

    fn take(&mut self, at: &str, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let name = format!("{at}{name}");
        let refuse = |rule| LoadError::Tensor { name: name.clone(), rule };
        let tensor = self.tensors.remove(&format!("{}{name}", self.prefix)).ok_or_else(|| refuse("missing"))?;
        if tensor.dims() != shape {
            return Err(refuse("another shape than the configuration says"));
        }
        if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            return Err(refuse("F32, F16 or BF16 is expected"));
        }
        tensor.to_dtype(DType::F32).map_err(|_| LoadError::Arithmetic)
    }

    fn linear(&mut self, at: &str, inputs: usize, outputs: usize) -> Result<Linear, LoadError> {
        let weight = self.take(at, "weight", &[outputs, inputs])?;
        let weight = weight.t().and_then(|weight| weight.contiguous()).map_err(|_| LoadError::Arithmetic)?;
        Ok(Linear { weight, bias: self.take(at, "bias", &[outputs])? })
    }

    fn normal(&mut self, at: &str, config: &Config) -> Result<Normal, LoadError> {
        #[allow(clippy::cast_possible_truncation, reason = "the model computes in single precision")]
        let epsilon = config.layer_norm_eps as f32;
        let weight = self.take(at, "weight", &[config.hidden_size])?;
        Ok(Normal { weight, bias: self.take(at, "bias", &[config.hidden_size])?, epsilon })
    }
}

/// A shorter vector says nothing.
const SHORTEST: f64 = 1e-9;
