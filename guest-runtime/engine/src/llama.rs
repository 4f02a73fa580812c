// SPDX-License-Identifier: Apache-2.0
//! llama.cpp behind [`Engine`]: one sequence at a time, the others wait.

use crate::{Answer, Engine, Refused};
use engine_protocol::{Event, Failure, FinishReason, Generate, Message, ModelFacts};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::model::{LlamaChatMessage, LlamaChatTemplate, LlamaModel};
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use std::collections::VecDeque;
use std::ffi::CStr;
use std::num::NonZeroU32;
use std::path::Path;
use thiserror::Error;

/// A loaded model: weights, vocabulary and chat template.
pub struct Model {
    backend: LlamaBackend,
    weights: LlamaModel,
    template: LlamaChatTemplate,
    /// The texts of all control tokens.
    controls: Vec<String>,
    /// Bytes of the longest token: with it, a text that cannot fit is known without tokenising it.
    longest_token: usize,
}

/// How to run a model.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Most tokens of conversation and answer together.
    pub context: NonZeroU32,
    /// Threads for one token at a time.
    pub threads_decode: u16,
    /// Threads for prompts.
    pub threads_prefill: u16,
}

/// Why a model could not be loaded.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum LoadError {
    /// llama.cpp could not start; it starts once in a process.
    #[error("llama.cpp could not be started")]
    Backend,
    /// The file is missing or no GGUF that llama.cpp can run.
    #[error("the model file cannot be read or is no model that this engine can run")]
    Weights,
    /// The model has no chat template, or none that llama.cpp knows.
    #[error("the model has no chat template that this engine knows")]
    Template,
    /// Not enough memory for this context, or the model refuses it.
    #[error("a context of this size cannot be made")]
    Context,
}

impl Model {
    /// Loads a GGUF file. Its pages stay those of the file (mapped), so a file in guest memory costs nothing twice.
    /// llama.cpp's log is switched off: some of its lines hold text of a prompt.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let mut backend = LlamaBackend::init().map_err(|_| LoadError::Backend)?;
        backend.void_logs();
        if !path.is_file() {
            return Err(LoadError::Weights);
        }
        let weights =
            LlamaModel::load_from_file(&backend, path, &LlamaModelParams::default()).map_err(|_| LoadError::Weights)?;
        let template = weights.chat_template(None).map_err(|_| LoadError::Template)?;
        let vocab = weights.vocab();
        let lengths = vocab.tokens().filter_map(|token| vocab.text(token)).map(CStr::count_bytes);
        let longest_token = lengths.max().unwrap_or(1).max(1);
        let controls = vocab.tokens().filter(|token| vocab.is_control(*token)).filter_map(|token| vocab.text(token));
        let controls =
            controls.map(|text| text.to_string_lossy().into_owned()).filter(|text| !text.is_empty()).collect();
        let model = Self { backend, weights, template, controls, longest_token };
        // Proves that the template works, and fills llama.cpp's tables before the first request pays for it.
        let probe = Message { role: engine_protocol::Role::User, content: "x".into() };
        model.tokens(std::slice::from_ref(&probe)).map_err(|_| LoadError::Template)?;
        Ok(model)
    }

    /// The conversation as the model's chat template writes it, up to where the assistant speaks.
    fn render(&self, messages: &[Message]) -> Result<String, Failure> {
        let chat = messages
            .iter()
            .map(|message| LlamaChatMessage::new(message.role.name().into(), message.content.clone()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Failure::InvalidRequest)?;
        self.weights.apply_chat_template(&self.template, &chat, true).map_err(|_| Failure::TemplateFailed)
    }

    /// The tokens of a conversation. A control token comes from the template only: where a message spells one out,
    /// it is taken as ordinary text, so that nobody can close their message and speak in another role.
    fn tokens(&self, messages: &[Message]) -> Result<Vec<LlamaToken>, Failure> {
        let vocab = self.weights.vocab();
        let rendered = self.render(messages)?;
        let skeleton = self.render(&placeholders(messages))?;
        if self.count_controls(&rendered) == self.count_controls(&skeleton) {
            return Ok(vocab.tokenize(rendered.as_bytes(), true, true));
        }
        let mut tokens = Vec::new();
        for (position, part) in parts(&skeleton, messages).into_iter().enumerate() {
            let (text, is_template) = match part {
                Part::Template(text) => (text, true),
                Part::Content(text) => (text, false),
            };
            vocab.tokenize_into(text.as_bytes(), &mut tokens, position == 0, is_template);
        }
        Ok(tokens)
    }

    fn count_controls(&self, text: &str) -> usize {
        self.controls.iter().map(|control| text.matches(control.as_str()).count()).sum()
    }
}

/// [`Engine`] on llama.cpp.
pub struct LlamaEngine<'m> {
    model: &'m Model,
    context: LlamaContext<'m>,
    batch: LlamaBatch<'static>,
    facts: ModelFacts,
    waiting: VecDeque<Sequence>,
    running: Option<Sequence>,
}

/// A request in flight.
struct Sequence {
    id: u64,
    prompt: Vec<LlamaToken>,
    prompt_tokens: u32,
    /// Tokens that the context has seen.
    position: usize,
    /// The token to compute next, once the prompt is done.
    next: Option<LlamaToken>,
    completion_tokens: u32,
    max_tokens: u32,
    sampler: LlamaSampler,
    answer: Answer,
}

impl<'m> LlamaEngine<'m> {
    /// Makes the context (key-value cache and work buffers) for a model.
    ///
    /// # Errors
    /// [`LoadError::Context`].
    pub fn new(model: &'m Model, settings: Settings) -> Result<Self, LoadError> {
        let params = LlamaContextParams::default()
            .with_n_ctx(Some(settings.context))
            .with_n_batch(PREFILL_TOKENS)
            .with_n_ubatch(PREFILL_TOKENS)
            .with_n_threads(settings.threads_decode.into())
            .with_n_threads_batch(settings.threads_prefill.into())
            .with_no_perf(true);
        let context = model.weights.new_context(&model.backend, params).map_err(|_| LoadError::Context)?;
        let facts = ModelFacts {
            context: settings.context.get(),
            vocab: u32::try_from(model.weights.n_vocab()).map_err(|_| LoadError::Weights)?,
        };
        let batch = LlamaBatch::new(PREFILL_LENGTH, 1);
        Ok(Self { model, context, batch, facts, waiting: VecDeque::new(), running: None })
    }

    fn sequence(&self, request: Generate) -> Result<Sequence, Refused> {
        request.check().map_err(|_| Failure::InvalidRequest)?;
        let limit = self.facts.context;
        let bytes = request.messages.iter().fold(0, |sum: usize, message| sum.saturating_add(message.content.len()));
        if bytes / self.model.longest_token > usize::try_from(limit).unwrap_or(usize::MAX) {
            return Err(Failure::ContextOverflow.into());
        }
        let prompt = self.model.tokens(&request.messages)?;
        let overflow = |prompt_tokens| Refused { code: Failure::ContextOverflow, prompt_tokens };
        let prompt_tokens = u32::try_from(prompt.len()).map_err(|_| overflow(None))?;
        let room = limit.checked_sub(prompt_tokens).filter(|room| *room > 0).ok_or(overflow(Some(prompt_tokens)))?;
        let max_tokens = request.max_tokens.unwrap_or(room);
        if max_tokens > room {
            return Err(overflow(Some(prompt_tokens)));
        }
        let sampler = sampler(&request)?;
        let answer = Answer::new(request.stop);
        let id = request.id;
        Ok(Sequence {
            id,
            prompt,
            prompt_tokens,
            position: 0,
            next: None,
            completion_tokens: 0,
            max_tokens,
            sampler,
            answer,
        })
    }

    /// Computes the next tokens of a sequence; gives whether its next token can be sampled.
    fn compute(&mut self, sequence: &mut Sequence) -> Result<bool, Failure> {
        let todo = sequence.prompt.get(sequence.position..).unwrap_or_default();
        let todo = if todo.is_empty() { sequence.next.as_slice() } else { todo };
        let todo = todo.get(..PREFILL_LENGTH).unwrap_or(todo);
        let end = sequence.position.saturating_add(todo.len());
        let can_sample = end >= sequence.prompt.len();
        self.batch.clear();
        for (position, token) in (sequence.position..).zip(todo) {
            let at = i32::try_from(position).map_err(|_| Failure::EngineFailed)?;
            let is_last = position.saturating_add(1) == end;
            self.batch.add(*token, at, &[0], is_last && can_sample).map_err(|_| Failure::EngineFailed)?;
        }
        self.context.decode(&mut self.batch).map_err(|_| Failure::EngineFailed)?;
        sequence.position = end;
        Ok(can_sample)
    }

    /// Takes the next token. Gives the reason if the answer ends with it.
    fn sample(&self, sequence: &mut Sequence, events: &mut Vec<Event>) -> Option<FinishReason> {
        let vocab = self.model.weights.vocab();
        let token = sequence.sampler.sample(&self.context, -1);
        sequence.next = Some(token);
        sequence.completion_tokens = sequence.completion_tokens.saturating_add(1);
        let (mut text, end) = if vocab.is_eog(token) {
            (sequence.answer.finish(), Some(FinishReason::Stop))
        } else {
            let (text, stopped) = sequence.answer.push(&vocab.token_to_piece(token, false, None));
            let is_full = sequence.completion_tokens >= sequence.max_tokens;
            (text, stopped.then_some(FinishReason::Stop).or(is_full.then_some(FinishReason::Length)))
        };
        if end == Some(FinishReason::Length) {
            text.push_str(&sequence.answer.finish());
        }
        if !text.is_empty() {
            events.push(Event::Token { id: sequence.id, text });
        }
        end
    }

    /// Nothing of one request stays in the cache for the next.
    fn forget(&mut self) {
        self.context.clear_kv_cache();
    }
}

impl Engine for LlamaEngine<'_> {
    fn facts(&self) -> ModelFacts {
        self.facts
    }

    fn admit(&mut self, request: Generate) -> Result<u32, Refused> {
        if self.running.iter().chain(&self.waiting).any(|other| other.id == request.id) {
            return Err(Failure::DuplicateId.into());
        }
        if self.waiting.len() >= MAX_WAITING {
            return Err(Failure::QueueFull.into());
        }
        let sequence = self.sequence(request)?;
        let prompt_tokens = sequence.prompt_tokens;
        self.waiting.push_back(sequence);
        Ok(prompt_tokens)
    }

    fn cancel(&mut self, id: u64, events: &mut Vec<Event>) {
        if let Some(sequence) = self.running.take_if(|sequence| sequence.id == id) {
            events.push(sequence.done(FinishReason::Cancelled));
            self.forget();
        }
        if let Some(position) = self.waiting.iter().position(|sequence| sequence.id == id) {
            events.extend(self.waiting.remove(position).map(|sequence| sequence.done(FinishReason::Cancelled)));
        }
    }

    fn step(&mut self, events: &mut Vec<Event>) {
        let Some(mut sequence) = self.running.take().or_else(|| self.waiting.pop_front()) else {
            return;
        };
        let end = match self.compute(&mut sequence) {
            Ok(true) => self.sample(&mut sequence, events).map(|reason| sequence.done(reason)),
            Ok(false) => None,
            Err(code) => Some(Event::Failed { id: sequence.id, code, prompt_tokens: Some(sequence.prompt_tokens) }),
        };
        match end {
            Some(event) => {
                events.push(event);
                self.forget();
            }
            None => self.running = Some(sequence),
        }
    }

    fn is_idle(&self) -> bool {
        self.running.is_none() && self.waiting.is_empty()
    }
}

impl Sequence {
    fn done(&self, finish_reason: FinishReason) -> Event {
        let Self { id, prompt_tokens, completion_tokens, .. } = *self;
        Event::Done { id, finish_reason, prompt_tokens, completion_tokens }
    }
}

/// Temperature first, then the likeliest tokens of what it made, as the OpenAI API describes them.
fn sampler(request: &Generate) -> Result<LlamaSampler, Failure> {
    if request.temperature == 0.0 {
        return Ok(LlamaSampler::greedy());
    }
    let seed = match request.seed {
        // Both halves count; llama.cpp takes 32 bits.
        #[expect(clippy::cast_possible_truncation, reason = "the halves are folded")]
        Some(seed) => (seed ^ (seed >> 32)) as u32,
        None => random_seed()?,
    };
    // This value tells llama.cpp to choose a seed itself.
    let seed = if seed == u32::MAX { 0 } else { seed };
    let steps =
        [LlamaSampler::temp(request.temperature), LlamaSampler::top_p(request.top_p, 1), LlamaSampler::dist(seed)];
    Ok(LlamaSampler::chain(steps, true))
}

/// By the system call itself: the sandbox lets no file be opened, and a static program has no libc to look a function up in.
fn random_seed() -> Result<u32, Failure> {
    let mut bytes = [0; 4];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(4) => Ok(u32::from_ne_bytes(bytes)),
        _ => Err(Failure::EngineFailed),
    }
}

enum Part<'a> {
    Template(&'a str),
    Content(&'a str),
}

/// The conversation with a mark in the place of each text.
fn placeholders(messages: &[Message]) -> Vec<Message> {
    let mark = |(index, message): (usize, &Message)| Message {
        role: message.role,
        content: format!("{MARK_START}{index}{MARK_END}"),
    };
    messages.iter().enumerate().map(mark).collect()
}

/// Splits a rendered conversation of [`placeholders`], and puts the texts back.
fn parts<'a>(skeleton: &'a str, messages: &'a [Message]) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    let mut rest = skeleton;
    while let Some((before, mark, after)) = next_mark(rest) {
        parts.push(Part::Template(before));
        parts.extend(mark.parse().ok().and_then(|index: usize| messages.get(index)).map(|m| Part::Content(&m.content)));
        rest = after;
    }
    parts.push(Part::Template(rest));
    parts
}

fn next_mark(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once(MARK_START)?;
    let (mark, after) = rest.split_once(MARK_END)?;
    Some((before, mark, after))
}

/// Private-use characters, which no chat template holds.
const MARK_START: char = '\u{e000}';
const MARK_END: char = '\u{e001}';
/// Tokens of a prompt computed in one step: small enough to cancel soon, large enough to be fast.
const PREFILL_TOKENS: u32 = 128;
const PREFILL_LENGTH: usize = PREFILL_TOKENS as usize;
/// Requests that wait while one runs.
const MAX_WAITING: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use engine_protocol::Role;

    #[test]
    fn texts_return_to_their_places_whatever_they_hold() {
        let content = |text: &str| Message { role: Role::User, content: text.into() };
        let messages = [content("\u{e000}1\u{e001}"), content("two")];
        let skeleton: String = placeholders(&messages).iter().map(|m| format!("<s>{}</s>", m.content)).collect();
        let joined: Vec<_> = parts(&skeleton, &messages)
            .into_iter()
            .map(|part| match part {
                Part::Template(text) => format!("T:{text}"),
                Part::Content(text) => format!("C:{text}"),
            })
            .collect();
        assert_eq!(joined, ["T:<s>", "C:\u{e000}1\u{e001}", "T:</s><s>", "C:two", "T:</s>"]);
    }
}
