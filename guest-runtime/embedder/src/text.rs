// SPDX-License-Identifier: Apache-2.0
//! From texts to tokens.

use crate::LoadError;
use engine_protocol::{Failure, Input};
use tokenizers::{Tokenizer, models::ModelWrapper};
use zeroize::Zeroizing;

/// A WordPiece tokenizer. It keeps nothing of a text.
#[derive(Debug)]
pub(crate) struct Text {
    tokenizer: Tokenizer,
    /// What the model wants before each text.
    first: u32,
    /// What it wants behind.
    last: u32,
    vocabulary: u32,
}

impl Text {
    /// Reads `tokenizer.json`. What it says of filling and cutting off is not done here.
    pub(crate) fn parse(json: &[u8], vocabulary: u32) -> Result<Self, LoadError> {
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|_| LoadError::Json { file: TOKENIZER })?;
        let refuse = |field, rule| LoadError::Config { file: TOKENIZER, field, rule };
        // Other kinds keep the texts they saw.
        if !matches!(tokenizer.get_model(), ModelWrapper::WordPiece(_)) {
            return Err(refuse("model", "WordPiece is expected"));
        }
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|_| refuse("truncation", "cannot be turned off"))?;
        // Text never becomes a control token.
        tokenizer.set_encode_special_tokens(true);
        let empty = tokenizer.encode_fast("", true).map_err(|_| refuse("post_processor", "fails"))?;
        let (first, last) = match empty.get_ids() {
            [first, last] if *first < vocabulary && *last < vocabulary => (*first, *last),
            _ => return Err(refuse("post_processor", "one token of the model before and one behind are expected")),
        };
        if u32::try_from(tokenizer.get_vocab_size(true)).map_or(true, |size| size > vocabulary) {
            return Err(refuse("model.vocab", "has more tokens than the model"));
        }
        Ok(Self { tokenizer, first, last, vocabulary })
    }

    /// All tokens of a text, `most` at most.
    pub(crate) fn tokens(&self, input: &Input, most: usize) -> Result<Zeroizing<Vec<u32>>, Failure> {
        let encoded;
        let inner = match input {
            Input::Text(text) => {
                encoded = self.tokenizer.encode_fast(text.as_str(), false).map_err(|_| Failure::EngineFailed)?;
                encoded.get_ids()
            }
            Input::Tokens(tokens) => tokens.as_slice(),
        };
        if inner.len().saturating_add(2) > most {
            return Err(Failure::ContextOverflow);
        }
        if inner.iter().any(|token| *token >= self.vocabulary) {
            return Err(Failure::UnknownToken);
        }
        let mut tokens = Zeroizing::new(Vec::with_capacity(inner.len().saturating_add(2)));
        tokens.push(self.first);
        tokens.extend_from_slice(inner);
        tokens.push(self.last);
        Ok(tokens)
    }
}

pub(crate) const TOKENIZER: &str = "tokenizer.json";
