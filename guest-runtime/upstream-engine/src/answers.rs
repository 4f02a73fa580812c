// SPDX-License-Identifier: Apache-2.0
//! From the server's chunks to events, and what is checked on the way.

use batching::{Answer, Held};
use engine_protocol::{Event, Failure, FinishReason, Generate, TokenLogprob, TokenLogprobs};
use output_schema::Matcher;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The answers to one request, as they grow. Pure: bytes in, events out.
#[derive(Debug)]
pub struct Answers {
    id: u64,
    prompt_tokens: u32,
    max_tokens: u32,
    logprobs: Option<u8>,
    stops: Vec<String>,
    choices: Vec<Choice>,
    usage: Option<Usage>,
    is_done: bool,
}

#[derive(Debug)]
struct Choice {
    text: Answer,
    form: Option<Matcher>,
    /// Of tokens whose text is not certain yet.
    held: Held<TokenLogprobs>,
    /// Tokens that came with logprobs.
    tokens: u32,
    has_text: bool,
    ended: Option<FinishReason>,
}

impl Answers {
    /// Nothing was said yet. `form` holds each answer, `prompt_tokens` and `max_tokens` were sent to the server.
    #[must_use]
    pub fn new(request: &Generate, form: Option<&Matcher>, prompt_tokens: u32, max_tokens: u32) -> Self {
        let choice = |_| Choice {
            text: Answer::new(request.stop.clone()),
            form: form.cloned(),
            held: Held::default(),
            tokens: 0,
            has_text: false,
            ended: None,
        };
        Self {
            id: request.id,
            prompt_tokens,
            max_tokens,
            logprobs: request.logprobs,
            stops: request.stop.clone(),
            choices: (0..request.choices).map(choice).collect(),
            usage: None,
            is_done: false,
        }
    }

    /// Takes the data of one of the server's events, and adds what is certain by it to `events`.
    ///
    /// # Errors
    /// [`Failure::FormStuck`]: an answer has not the form that was asked for. [`Failure::EngineFailed`]: anything else that
    /// cannot be. Then nothing more of the request is to be believed.
    pub fn take(&mut self, data: &[u8], events: &mut Vec<Event>) -> Result<(), Failure> {
        if self.is_done {
            return Err(Failure::EngineFailed);
        }
        if data == DONE {
            self.is_done = true;
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(data).map_err(|_| Failure::EngineFailed)?;
        if let Some(usage) = chunk.usage {
            self.count(usage)?;
        }
        chunk.choices.into_iter().try_for_each(|piece| self.piece(piece, events))
    }

    /// Whether the server said that nothing more comes.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// The last event.
    ///
    /// # Errors
    /// [`Failure::EngineFailed`]: an answer has no end, or the counts cannot be.
    pub fn finish(self) -> Result<Event, Failure> {
        let Self { id, prompt_tokens, max_tokens, logprobs, choices, usage, is_done, .. } = self;
        let usage = usage.filter(|_| is_done).ok_or(Failure::EngineFailed)?;
        let count = u32::try_from(choices.len()).unwrap_or(u32::MAX);
        let ended = |reason| choices.iter().all(|choice| choice.ended == Some(reason));
        let all_ended = choices.iter().all(|choice| choice.ended.is_some());
        // Used up is what was allowed, and all of it.
        let is_short = ended(FinishReason::Length) && usage.completion_tokens != max_tokens.saturating_mul(count);
        let said = choices.iter().filter(|choice| choice.has_text).count();
        let too_few = usize::try_from(usage.completion_tokens).is_ok_and(|tokens| tokens < said);
        let is_silent = logprobs.is_some() && choices.iter().any(|choice| choice.has_text && choice.tokens == 0);
        if !all_ended || is_short || too_few || is_silent {
            return Err(Failure::EngineFailed);
        }
        let cached_tokens = usage.cached();
        Ok(Event::Done { id, prompt_tokens, cached_tokens, completion_tokens: usage.completion_tokens })
    }

    fn count(&mut self, usage: Usage) -> Result<(), Failure> {
        let choices = u32::try_from(self.choices.len()).unwrap_or(u32::MAX);
        let most = self.max_tokens.saturating_mul(choices);
        let so_far = self.usage.as_ref().map_or(0, |usage| usage.completion_tokens);
        let is_possible = usage.prompt_tokens == self.prompt_tokens
            && usage.cached() <= self.prompt_tokens
            && (so_far..=most).contains(&usage.completion_tokens);
        self.usage = Some(usage);
        if is_possible { Ok(()) } else { Err(Failure::EngineFailed) }
    }

    fn piece(&mut self, piece: Piece, events: &mut Vec<Event>) -> Result<(), Failure> {
        let (id, max_tokens, wanted) = (self.id, self.max_tokens, self.logprobs);
        let choice = self.choices.get_mut(usize::from(piece.index)).filter(|choice| choice.ended.is_none());
        let choice = choice.ok_or(Failure::EngineFailed)?;
        if let (Some(logprobs), Some(most)) = (piece.logprobs, wanted) {
            let entries = logprobs.entries(most.into()).ok_or(Failure::EngineFailed)?;
            choice.tokens = choice.tokens.saturating_add(u32::try_from(entries.len()).unwrap_or(u32::MAX));
            if choice.tokens > max_tokens {
                return Err(Failure::EngineFailed);
            }
            for entry in entries {
                let bytes = entry.token.bytes.len();
                choice.held.push(entry, bytes);
            }
        }
        let (mut text, stopped) = choice.text.push(piece.text.as_bytes());
        if stopped {
            // It was told to end before it.
            return Err(Failure::EngineFailed);
        }
        let reason = match piece.finish_reason.as_deref() {
            None => None,
            Some("stop") => Some(FinishReason::Stop),
            Some("length") => Some(FinishReason::Length),
            Some(_) => return Err(Failure::EngineFailed),
        };
        if reason.is_some() {
            text.push_str(&choice.text.finish());
        }
        choice.follow(&text)?;
        let logprobs = choice.held.certain(choice.text.pending());
        if !(text.is_empty() && logprobs.is_empty()) {
            choice.has_text |= !text.is_empty();
            events.push(Event::Token { id, choice: piece.index, text, logprobs });
        }
        if let Some(reason) = reason {
            if reason == FinishReason::Stop {
                choice.may_stop(&self.stops)?;
            }
            choice.ended = Some(reason);
            events.push(Event::Ended { id, choice: piece.index, reason });
        }
        Ok(())
    }
}

impl Choice {
    /// Follows its form. Byte by byte: what may be computed for one is then a piece's own.
    fn follow(&mut self, text: &str) -> Result<(), Failure> {
        let Some(form) = &mut self.form else { return Ok(()) };
        if text.bytes().all(|byte| form.take(&[byte])) { Ok(()) } else { Err(Failure::FormStuck) }
    }

    /// Whether its form is complete, or one of the texts that end an answer comes next in it.
    fn may_stop(&mut self, stops: &[String]) -> Result<(), Failure> {
        let Some(form) = &mut self.form else { return Ok(()) };
        let may_stop = form.may_end() || stops.iter().any(|stop| form.allows(stop.as_bytes()));
        if may_stop { Ok(()) } else { Err(Failure::FormStuck) }
    }
}

// The server's objects have more fields than are of use here, and may get others.

#[derive(Deserialize)]
struct Chunk {
    choices: Vec<Piece>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Piece {
    index: u16,
    text: String,
    logprobs: Option<Logprobs>,
    finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Usage {
    prompt_tokens: u32,
    /// Absent where only the prompt was computed.
    #[serde(default)]
    completion_tokens: u32,
    prompt_tokens_details: Option<Details>,
}

#[derive(Debug, Deserialize)]
struct Details {
    cached_tokens: Option<u32>,
}

impl Usage {
    fn cached(&self) -> u32 {
        self.prompt_tokens_details.as_ref().and_then(|details| details.cached_tokens).unwrap_or(0)
    }
}

#[derive(Deserialize)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Option<Vec<Option<BTreeMap<String, f64>>>>,
}

impl Logprobs {
    /// Each token with its `most` likeliest. `None` where numbers are missing or no logarithms of probabilities.
    fn entries(self, most: usize) -> Option<Vec<TokenLogprobs>> {
        let mut top = self.top_logprobs.unwrap_or_default().into_iter();
        if self.tokens.len() != self.token_logprobs.len() {
            return None;
        }
        let pairs = self.tokens.into_iter().zip(self.token_logprobs);
        pairs
            .map(|(token, own)| {
                let mut likeliest = Vec::new();
                for (token, logprob) in top.next().flatten().unwrap_or_default() {
                    likeliest.push(logprob_of(token, logprob)?);
                }
                likeliest.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
                likeliest.truncate(most);
                Some(TokenLogprobs { token: logprob_of(token, own?)?, top: likeliest })
            })
            .collect()
    }
}

fn logprob_of(token: String, logprob: f64) -> Option<TokenLogprob> {
    // JSON has no other numbers than finite ones.
    let is_logarithm = logprob <= ROUNDING;
    let logprob = logprob.clamp(LEAST, 0.0) as f32;
    is_logarithm.then(|| TokenLogprob { bytes: token.into_bytes(), logprob })
}

const DONE: &[u8] = b"[DONE]";
/// Stands for less.
const LEAST: f64 = -9999.0;
/// By so much a sum of probabilities may be above 1.
const ROUNDING: f64 = 0.001;

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;
