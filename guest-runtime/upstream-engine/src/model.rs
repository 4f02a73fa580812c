// SPDX-License-Identifier: Apache-2.0
//! What must be known of the model without its weights: from the files that lie beside them.

use serde::Deserialize;
use std::{collections::HashSet, fs::File, io::Read as _, path::Path};
use thiserror::Error;

/// Size of the vocabulary, and which tokens are control tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Tokens are numbers below it.
    pub vocab: u32,
    /// Tokens that no text of a user may become.
    pub controls: HashSet<u32>,
}

/// Why a model was refused.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum ModelError {
    /// A file is missing or cannot be read.
    #[error("{file}: {kind}")]
    Io {
        /// Which.
        file: &'static str,
        /// Why.
        kind: std::io::ErrorKind,
    },
    /// It is too long.
    #[error("{file}: more than {most} bytes")]
    TooLong {
        /// Which.
        file: &'static str,
        /// The cap.
        most: u64,
    },
    /// It has not the form that its name promises.
    #[error("{file}: not of the expected form: line {line}, column {column}")]
    Malformed {
        /// Which.
        file: &'static str,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// The vocabulary is empty, or a control token lies outside of it.
    #[error("vocab_size: a number above all control tokens is expected")]
    Vocabulary,
    /// The tokenizer names no control token: then none could be told from text.
    #[error("tokenizer.json: added_tokens: no special one")]
    NoControls,
}

impl Model {
    /// Reads `config.json` and `tokenizer.json` of `directory`, as Hugging Face's libraries write them.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn read(directory: &Path) -> Result<Self, ModelError> {
        let config: Config = parse(directory, CONFIG, MAX_CONFIG)?;
        let tokenizer: Tokenizer = parse(directory, TOKENIZER, MAX_TOKENIZER)?;
        let vocab = config.vocab_size.or(config.text_config.and_then(|text| text.vocab_size)).unwrap_or(0);
        let controls: HashSet<u32> =
            tokenizer.added_tokens.iter().filter(|token| token.special).map(|token| token.id).collect();
        if controls.is_empty() {
            return Err(ModelError::NoControls);
        }
        if vocab == 0 || controls.iter().any(|control| *control >= vocab) {
            return Err(ModelError::Vocabulary);
        }
        Ok(Self { vocab, controls })
    }

    /// How many control tokens are among these.
    pub(crate) fn count_controls(&self, tokens: &[u32]) -> usize {
        tokens.iter().filter(|token| self.controls.contains(token)).count()
    }
}

// Both files have many more fields than are of use here.
#[derive(Deserialize)]
struct Config {
    vocab_size: Option<u32>,
    /// Where models of several kinds of input have it.
    text_config: Option<TextConfig>,
}

#[derive(Deserialize)]
struct TextConfig {
    vocab_size: Option<u32>,
}

#[derive(Deserialize)]
struct Tokenizer {
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    special: bool,
}

fn parse<T: for<'de> Deserialize<'de>>(directory: &Path, file: &'static str, most: u64) -> Result<T, ModelError> {
    let io = |error: std::io::Error| ModelError::Io { file, kind: error.kind() };
    let mut bytes = Vec::new();
    let opened = File::open(directory.join(file)).map_err(io)?;
    opened.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if u64::try_from(bytes.len()).map_or(true, |length| length > most) {
        return Err(ModelError::TooLong { file, most });
    }
    serde_json::from_slice(&bytes).map_err(|error| ModelError::Malformed {
        file,
        line: error.line(),
        column: error.column(),
    })
}

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const MAX_CONFIG: u64 = 1 << 20;
const MAX_TOKENIZER: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &str, tokenizer: &str) -> Result<Model, ModelError> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(CONFIG), config).unwrap();
        std::fs::write(directory.path().join(TOKENIZER), tokenizer).unwrap();
        Model::read(directory.path())
    }

    #[test]
    fn control_tokens_are_the_special_ones() {
        let tokenizer = r#"{"version":"1.0","added_tokens":[{"id":3,"content":"<a>","special":true},
            {"id":4,"content":"<b>","special":false}],"model":{"vocab":{"x":0}}}"#;
        let model = read(r#"{"vocab_size":9,"other":{}}"#, tokenizer).unwrap();
        assert_eq!((model.vocab, &model.controls), (9, &HashSet::from([3])));
        assert_eq!(model.count_controls(&[1, 3, 3, 4]), 2);
        assert_eq!(read(r#"{"text_config":{"vocab_size":9}}"#, tokenizer), Ok(model));
        for config in ["{}", r#"{"vocab_size":3}"#] {
            assert_eq!(read(config, tokenizer), Err(ModelError::Vocabulary));
        }
        assert_eq!(read(r#"{"vocab_size":9}"#, r#"{"added_tokens":[]}"#), Err(ModelError::NoControls));
        assert!(matches!(read("{}", "{}"), Err(ModelError::Malformed { file: TOKENIZER, .. })));
        assert!(matches!(read("", tokenizer), Err(ModelError::Malformed { file: CONFIG, .. })));
        assert!(matches!(Model::read(Path::new("/absent")), Err(ModelError::Io { file: CONFIG, .. })));
        let long = " ".repeat(usize::try_from(MAX_CONFIG).unwrap() + 1);
        assert_eq!(read(&long, tokenizer), Err(ModelError::TooLong { file: CONFIG, most: MAX_CONFIG }));
    }
}
