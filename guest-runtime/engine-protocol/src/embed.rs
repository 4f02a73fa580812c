// SPDX-License-Identifier: Apache-2.0
//! Texts that become vectors.

use crate::{InvalidRequest, MAX_TEXT_BYTES};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A request for vectors. Check it with [`Embed::check`] on both sides.
///
/// It names no tenant: nothing of it is kept once it is answered.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embed {
    /// Chosen by `serve`, unique among the requests in flight.
    pub id: u64,
    /// The texts, 1 to [`MAX_INPUTS`].
    pub inputs: Vec<Input>,
}

/// One text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Input {
    /// A text as it is, not empty. Text in it never becomes a control token of the model.
    Text(String),
    /// Tokens of the model's own tokenizer, at least one, without those that the model wants at both ends.
    Tokens(Vec<u32>),
}

impl Embed {
    /// Checks every rule that needs no model.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check(&self) -> Result<(), InvalidRequest> {
        if !(1..=MAX_INPUTS).contains(&self.inputs.len()) {
            return Err(InvalidRequest::Inputs);
        }
        if self.inputs.iter().any(|input| input.length() == 0) {
            return Err(InvalidRequest::EmptyInput);
        }
        let bytes = self.inputs.iter().fold(0_usize, |sum, input| sum.saturating_add(input.length()));
        if bytes > MAX_TEXT_BYTES { Err(InvalidRequest::InputTooLong { bytes }) } else { Ok(()) }
    }
}

impl Input {
    /// Bytes of text, or of tokens at four each.
    fn length(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(tokens) => tokens.len().saturating_mul(4),
        }
    }
}

impl fmt::Debug for Embed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Embed({}, {} inputs)", self.id, self.inputs.len())
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Tokens(tokens) => write!(f, "Tokens({})", tokens.len()),
        }
    }
}

/// Most texts of a request, as OpenAI's.
pub const MAX_INPUTS: usize = 2048;
/// Most tokens of all texts of a request together, as OpenAI's.
pub const MAX_EMBED_TOKENS: u32 = 300_000;
/// Most values of a vector.
pub const MAX_DIMENSIONS: u32 = 8192;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Command;

    fn check(inputs: Vec<Input>) -> Result<(), InvalidRequest> {
        Embed { id: 1, inputs }.check()
    }

    #[test]
    fn each_rule_is_checked() {
        let text = |text: &str| Input::Text(text.into());
        assert_eq!(check(vec![text("a"), Input::Tokens(vec![0])]), Ok(()));
        assert_eq!(check(vec![text("a"); MAX_INPUTS]), Ok(()));
        assert_eq!(check(vec![]), Err(InvalidRequest::Inputs));
        assert_eq!(check(vec![text("a"); MAX_INPUTS + 1]), Err(InvalidRequest::Inputs));
        assert_eq!(check(vec![text("a"), text("")]), Err(InvalidRequest::EmptyInput));
        assert_eq!(check(vec![Input::Tokens(vec![])]), Err(InvalidRequest::EmptyInput));
        let bytes = MAX_TEXT_BYTES + 1;
        assert_eq!(check(vec![text(&"x".repeat(bytes))]), Err(InvalidRequest::InputTooLong { bytes }));
    }

    #[test]
    fn debug_output_holds_no_text() {
        let embed = Embed { id: 1, inputs: vec![Input::Text("secret".into()), Input::Tokens(vec![4711])] };
        let shown = format!("{:?} {:?}", embed.inputs, Command::Embed(embed.clone()));
        assert!(!shown.contains("secret") && !shown.contains("4711"), "{shown}");
    }
}
