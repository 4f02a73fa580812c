// SPDX-License-Identifier: Apache-2.0
//! What a model says of itself. The files are those of Hugging Face, whose other fields say nothing of the arithmetic.

use crate::LoadError;
use serde::Deserialize;
use std::path::Path;

/// The fields of `config.json` that shape the arithmetic. Sizes are checked by [`Config::parse`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Config {
    model_type: String,
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
    /// Values of a vector.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of attention; they share the values of a vector equally.
    pub num_attention_heads: usize,
    /// Values between the two matrices of a layer.
    pub intermediate_size: usize,
    /// Most tokens of a text, with the two at its ends.
    pub max_position_embeddings: usize,
    /// Kinds of segments; only the first is used.
    pub type_vocab_size: usize,
    /// Tokens that the model knows.
    pub vocab_size: usize,
    /// Added to a variance before its root is taken.
    pub layer_norm_eps: f64,
}

impl Config {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// It is no JSON of this form, or another kind of model than is computed here.
    pub fn parse(json: &[u8]) -> Result<Self, LoadError> {
        let config: Self = serde_json::from_slice(json).map_err(|_| LoadError::Json { file: CONFIG })?;
        let refuse = |field, rule| Err(LoadError::Config { file: CONFIG, field, rule });
        if config.model_type != "bert" {
            return refuse("model_type", "bert is expected");
        }
        if config.hidden_act != "gelu" {
            return refuse("hidden_act", "gelu is expected");
        }
        if config.position_embedding_type.as_deref().is_some_and(|kind| kind != "absolute") {
            return refuse("position_embedding_type", "absolute is expected");
        }
        let sizes = [
            ("hidden_size", config.hidden_size, engine_protocol::MAX_DIMENSIONS as usize),
            ("num_hidden_layers", config.num_hidden_layers, 256),
            ("num_attention_heads", config.num_attention_heads, config.hidden_size),
            ("intermediate_size", config.intermediate_size, 1 << 16),
            ("max_position_embeddings", config.max_position_embeddings, 1 << 16),
            ("type_vocab_size", config.type_vocab_size, 1 << 16),
            ("vocab_size", config.vocab_size, 1 << 24),
        ];
        if let Some((field, ..)) = sizes.into_iter().find(|(_, size, most)| !(1..=*most).contains(size)) {
            return refuse(field, "out of range");
        }
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return refuse("num_attention_heads", "must divide hidden_size");
        }
        if !(config.layer_norm_eps > 0.0 && config.layer_norm_eps < 1.0) {
            return refuse("layer_norm_eps", "must be between 0 and 1");
        }
        Ok(config)
    }
}

/// How the vectors of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the first token.
    First,
}

impl Pooling {
    /// Reads `modules.json` and `1_Pooling/config.json` of sentence-transformers, where a model has them; without them
    /// it is the mean.
    ///
    /// # Errors
    /// They ask for something that is not computed here.
    pub(crate) fn read(directory: &Path) -> Result<Self, LoadError> {
        if let Some(json) = crate::load::read_optional(directory, MODULES)? {
            check_modules(&json)?;
        }
        crate::load::read_optional(directory, POOLING)?.map_or(Ok(Self::Mean), |json| Self::parse(&json))
    }

    fn parse(json: &[u8]) -> Result<Self, LoadError> {
        let modes: Modes = serde_json::from_slice(json).map_err(|_| LoadError::Json { file: POOLING })?;
        let Modes { mean, first, max, root, weighted, last } = modes;
        match (mean, first, max || root || weighted || last) {
            (true, false, false) => Ok(Self::Mean),
            (false, true, false) => Ok(Self::First),
            _ => Err(LoadError::Config { file: POOLING, field: "pooling_mode", rule: "mean or cls alone is expected" }),
        }
    }
}

/// Vectors are always brought to length 1, with or without the module that says so.
fn check_modules(json: &[u8]) -> Result<(), LoadError> {
    let modules: Vec<Module> = serde_json::from_slice(json).map_err(|_| LoadError::Json { file: MODULES })?;
    let known = ["Transformer", "Pooling", "Normalize"];
    let kinds = modules.iter().map(|module| module.kind.rsplit('.').next().unwrap_or_default());
    if kinds.eq(known.into_iter().take(modules.len())) && modules.len() >= 2 {
        Ok(())
    } else {
        Err(LoadError::Config { file: MODULES, field: "type", rule: "Transformer, Pooling, Normalize are expected" })
    }
}

#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Modes {
    #[serde(rename = "pooling_mode_mean_tokens")]
    mean: bool,
    #[serde(rename = "pooling_mode_cls_token")]
    first: bool,
    #[serde(default, rename = "pooling_mode_max_tokens")]
    max: bool,
    #[serde(default, rename = "pooling_mode_mean_sqrt_len_tokens")]
    root: bool,
    #[serde(default, rename = "pooling_mode_weightedmean_tokens")]
    weighted: bool,
    #[serde(default, rename = "pooling_mode_lasttoken")]
    last: bool,
}

pub(crate) const CONFIG: &str = "config.json";
const MODULES: &str = "modules.json";
const POOLING: &str = "1_Pooling/config.json";

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: &str) -> Result<Config, LoadError> {
        let mut json: serde_json::Value = serde_json::from_str(
            r#"{"model_type":"bert","hidden_act":"gelu","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,
                "intermediate_size":16,"max_position_embeddings":32,"type_vocab_size":2,"vocab_size":9,
                "layer_norm_eps":1e-12,"transformers_version":"4"}"#,
        )
        .unwrap();
        let changes: serde_json::Map<String, serde_json::Value> = serde_json::from_str(changes).unwrap();
        json.as_object_mut().unwrap().extend(changes);
        Config::parse(json.to_string().as_bytes())
    }

    #[test]
    fn other_models_are_refused_by_field() {
        assert_eq!(config("{}").unwrap().hidden_size, 8);
        for (changes, expected) in [
            (r#"{"model_type":"roberta"}"#, "model_type"),
            (r#"{"hidden_act":"relu"}"#, "hidden_act"),
            (r#"{"position_embedding_type":"relative_key"}"#, "position_embedding_type"),
            (r#"{"hidden_size":0}"#, "hidden_size"),
            (r#"{"hidden_size":8193}"#, "hidden_size"),
            (r#"{"num_hidden_layers":4000}"#, "num_hidden_layers"),
            (r#"{"num_attention_heads":3}"#, "num_attention_heads"),
            (r#"{"vocab_size":99999999}"#, "vocab_size"),
            (r#"{"layer_norm_eps":0.0}"#, "layer_norm_eps"),
        ] {
            let error = config(changes).unwrap_err();
            assert!(matches!(error, LoadError::Config { field, .. } if field == expected), "{changes}: {error}");
        }
        assert!(matches!(config(r#"{"hidden_size":-1}"#), Err(LoadError::Json { .. })));
        assert!(matches!(Config::parse(b"{"), Err(LoadError::Json { .. })));
    }

    #[test]
    fn pooling_is_the_mean_or_the_first() {
        let of = |mean: bool, first: bool, more: &str| {
            let json = format!(r#"{{"pooling_mode_mean_tokens":{mean},"pooling_mode_cls_token":{first}{more}}}"#);
            Pooling::parse(json.as_bytes()).ok()
        };
        assert_eq!(of(true, false, ""), Some(Pooling::Mean));
        assert_eq!(of(false, true, r#","word_embedding_dimension":8"#), Some(Pooling::First));
        assert_eq!(of(true, true, ""), None);
        assert_eq!(of(false, false, ""), None);
        assert_eq!(of(true, false, r#","pooling_mode_max_tokens":true"#), None);
        let modules = |kinds: &[&str]| {
            let all: Vec<String> = kinds.iter().map(|kind| format!(r#"{{"type":"models.{kind}"}}"#)).collect();
            check_modules(format!("[{}]", all.join(",")).as_bytes()).is_ok()
        };
        assert!(modules(&["Transformer", "Pooling", "Normalize"]) && modules(&["Transformer", "Pooling"]));
        assert!(!modules(&["Transformer", "Pooling", "Dense", "Normalize"]) && !modules(&["Transformer"]));
    }
}
