// SPDX-License-Identifier: Apache-2.0
//! What batching needs of a model.

use crate::{Change, Entry, Token};
use engine_protocol::{Failure, ModelFacts, Prompt};

/// A model with its cache.
pub trait Model {
    /// What it can do.
    fn facts(&self) -> ModelFacts;

    /// Its tokens.
    fn vocabulary(&self) -> &Vocabulary;

    /// The tokens of a prompt. `most` is how many could be answered at all: a longer prompt may be refused without
    /// counting.
    ///
    /// # Errors
    /// Why the prompt is refused.
    fn tokens(&self, prompt: &Prompt, most: usize) -> Result<Vec<Token>, Failure>;

    /// Changes the cache.
    fn change(&mut self, change: Change);

    /// Computes the entries at once.
    ///
    /// # Errors
    /// Nothing of them can be relied on, then.
    fn compute(&mut self, entries: &[Entry]) -> Result<(), Failure>;

    /// The logits after an entry of the last computation that had a `sample`; as many as the vocabulary has tokens.
    fn logits(&self, entry: usize) -> Option<&[f32]>;

    /// Overwrites the whole cache: no slot holds anything.
    fn wipe(&mut self);
}

/// The texts of all tokens.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// Where each token's text ends.
    ends: Vec<u32>,
    starts: Vec<Start>,
}

/// What a token's text begins with: all that is looked at of most tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// It ends an answer.
    End,
    /// It has a text.
    Byte(u8),
    /// It has none.
    Nothing,
}

impl Vocabulary {
    /// Tokens in order: the text of each, and whether it ends an answer.
    #[must_use]
    pub fn new(tokens: impl Iterator<Item = (Vec<u8>, bool)>) -> Self {
        let mut vocabulary = Self::default();
        for (text, is_end) in tokens {
            let byte = text.first().copied().map_or(Start::Nothing, Start::Byte);
            vocabulary.starts.push(if is_end { Start::End } else { byte });
            vocabulary.bytes.extend(text);
            vocabulary.ends.push(u32::try_from(vocabulary.bytes.len()).unwrap_or(u32::MAX));
        }
        vocabulary
    }

    /// How many tokens there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The text of a token; empty for those that are no text.
    #[must_use]
    pub fn text(&self, token: Token) -> &[u8] {
        let end = |index: usize| self.ends.get(index).and_then(|end| usize::try_from(*end).ok());
        let Ok(index) = usize::try_from(token) else { return &[] };
        let from = index.checked_sub(1).and_then(end).unwrap_or(0);
        end(index).and_then(|to| self.bytes.get(from..to)).unwrap_or_default()
    }

    /// Whether a token ends an answer.
    #[must_use]
    pub fn is_end(&self, token: Token) -> bool {
        self.start(token) == Start::End
    }

    pub(crate) fn start(&self, token: Token) -> Start {
        let start = usize::try_from(token).ok().and_then(|index| self.starts.get(index));
        start.copied().unwrap_or(Start::Nothing)
    }
}
