// SPDX-License-Identifier: Apache-2.0
//! One choice of an answer as it grows: what of it is certain, and what it turns out to be.

use attested_channel::receipt::{SaidCall, SaidChoice};
use engine_protocol::{FinishReason, TokenLogprobs};
use zeroize::Zeroizing;

use crate::{
    error::ApiError,
    tools::{Reading, certain_content, split},
};

/// A choice in work.
#[derive(Debug)]
pub(crate) struct Choice {
    reading: Reading,
    text: Zeroizing<String>,
    /// Bytes of the text that were given out as content.
    given: usize,
    /// Kept where the answer is given as a whole.
    pub(crate) logprobs: Vec<TokenLogprobs>,
    /// What it is, once it is complete.
    pub(crate) said: Option<SaidChoice>,
}

impl Choice {
    pub(crate) fn new(reading: Reading) -> Self {
        Self { reading, text: Zeroizing::new(String::new()), given: 0, logprobs: Vec::new(), said: None }
    }

    /// Adds a piece. Gives the content that is now certain.
    pub(crate) fn push(&mut self, piece: &str) -> Zeroizing<String> {
        self.text.push_str(piece);
        let certain = match self.reading {
            Reading::Content => self.text.len(),
            Reading::Marked => certain_content(&self.text),
            Reading::Calls { .. } => 0,
        };
        let content = self.text.get(self.given..certain).unwrap_or_default().to_owned();
        self.given = self.given.max(certain);
        Zeroizing::new(content)
    }

    /// The choice is complete. Gives the content that was not given out yet.
    pub(crate) fn end(&mut self, reason: FinishReason) -> Result<Zeroizing<String>, ApiError> {
        // What was cut off is given as it is.
        let (content, calls) = split(&self.text, self.reading).unwrap_or_else(|| (self.text.to_string(), Vec::new()));
        let content = Zeroizing::new(content);
        let rest = content.get(self.given..).unwrap_or_default().to_owned();
        let mut tool_calls = Vec::with_capacity(calls.len());
        for call in calls {
            let mut id = [0; 12];
            getrandom::fill(&mut id).map_err(|_| ApiError::internal())?;
            tool_calls.push(SaidCall {
                arguments: call.arguments,
                id: format!("call_{}", hex::encode(id)),
                name: call.name,
            });
        }
        let finish_reason = match reason {
            FinishReason::Length => "length",
            // Nobody needs to be told what they asked for by name: OpenAI's answer says so, too.
            FinishReason::Stop if tool_calls.is_empty() || self.reading == (Reading::Calls { named: true }) => "stop",
            FinishReason::Stop => "tool_calls",
        };
        let calls_alone = content.is_empty() && !tool_calls.is_empty();
        let content = (!calls_alone).then(|| content.to_string());
        self.said = Some(SaidChoice { content, finish_reason: finish_reason.to_owned(), tool_calls });
        Ok(Zeroizing::new(rest))
    }
}
