// SPDX-License-Identifier: Apache-2.0
//! A request in work: its answers as they grow.

use crate::{Answer, Held, NoToken, Sampler, Scratch, Token, Vocabulary, sampler::logprobs};
use engine_protocol::{Event, FinishReason, Generate, TokenLogprobs};
use output_schema::Matcher;
use std::sync::Arc;

/// A request that was admitted.
#[derive(Debug)]
pub(crate) struct Request {
    id: u64,
    prompt_tokens: u32,
    pub(crate) cached_tokens: u32,
    completion_tokens: u32,
    logprobs: Option<u8>,
    choices: Vec<Choice>,
}

#[derive(Debug)]
struct Choice {
    sampler: Sampler,
    answer: Answer,
    /// Of tokens whose text is not certain yet.
    held: Held<TokenLogprobs>,
    ended: bool,
}

/// What became of an answer with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It goes on with this token.
    Goes(Token),
    /// It has ended, because of the model or the request.
    Ended,
    /// There is no token that could come.
    Stuck(NoToken),
}

impl Request {
    pub(crate) fn new(request: &Generate, prompt_tokens: u32, form: Option<&Matcher>) -> Self {
        let bias: Arc<[_]> = request.logit_bias.as_slice().into();
        let choice = |number: u16| Choice {
            sampler: Sampler::new(request.sampling, number, form.cloned()).with_bias(Arc::clone(&bias)),
            answer: Answer::new(request.stop.clone()),
            held: Held::default(),
            ended: false,
        };
        Self {
            id: request.id,
            prompt_tokens,
            cached_tokens: 0,
            completion_tokens: 0,
            logprobs: request.logprobs,
            choices: (0..request.choices).map(choice).collect(),
        }
    }

    /// Picks the next token of an answer, and says what is certain by now.
    pub(crate) fn take(
        &mut self,
        number: u16,
        logits: &[f32],
        vocabulary: &Vocabulary,
        scratch: &mut Scratch,
        events: &mut Vec<Event>,
    ) -> Progress {
        let (id, wanted) = (self.id, self.logprobs);
        let Some(choice) = self.choices.get_mut(usize::from(number)) else {
            return Progress::Stuck(NoToken::NotNumbers);
        };
        let token = match choice.sampler.pick(logits, vocabulary, scratch) {
            Ok(token) => token,
            Err(reason) => return Progress::Stuck(reason),
        };
        self.completion_tokens = self.completion_tokens.saturating_add(1);
        if vocabulary.is_end(token) {
            self.end(number, FinishReason::Stop, events);
            return Progress::Ended;
        }
        let bytes = vocabulary.text(token);
        if let Some(top) = wanted {
            choice.held.push(logprobs(logits, token, top, vocabulary), bytes.len());
        }
        let (text, stopped) = choice.answer.push(bytes);
        if stopped {
            // The tokens of the stop text are no part of the answer.
            choice.held.clear();
        }
        let logprobs = choice.held.certain(choice.answer.pending());
        if !(text.is_empty() && logprobs.is_empty()) {
            events.push(Event::Token { id, choice: number, text, logprobs });
        }
        if stopped || choice.sampler.must_end() {
            self.end(number, FinishReason::Stop, events);
            return Progress::Ended;
        }
        Progress::Goes(token)
    }

    /// Ends an answer.
    pub(crate) fn end(&mut self, number: u16, reason: FinishReason, events: &mut Vec<Event>) {
        let id = self.id;
        let Some(choice) = self.choices.get_mut(usize::from(number)) else { return };
        if choice.ended {
            return;
        }
        choice.ended = true;
        let (text, logprobs) = (choice.answer.finish(), choice.held.certain(0));
        if !(text.is_empty() && logprobs.is_empty()) {
            events.push(Event::Token { id, choice: number, text, logprobs });
        }
        events.push(Event::Ended { id, choice: number, reason });
    }

    /// The last event, when all answers have ended.
    pub(crate) fn done(&self) -> Option<Event> {
        let Self { id, prompt_tokens, cached_tokens, completion_tokens, .. } = *self;
        let all = self.choices.iter().all(|choice| choice.ended);
        all.then_some(Event::Done { id, prompt_tokens, cached_tokens, completion_tokens })
    }

    pub(crate) fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }
}
