// SPDX-License-Identifier: Apache-2.0
//! llama.cpp behind [`Model`].

use crate::{
    gpus::Gpus,
    prompt::Template,
    room::{CellShape, patience},
    runs::{has_long_run, is_recursive},
};
use batching::{Batching, Capacity, Change, Entry, Model, Slot, Token, Vocabulary};
use engine_protocol::{Failure, Message, ModelFacts, Prompt, Work};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel as LlamaWeights;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use std::ffi::CStr;
use std::fs::File;
use std::io::BufReader;
use std::num::NonZeroU32;
use std::path::Path;
use thiserror::Error;

/// A loaded model: weights, vocabulary and chat template.
pub struct Weights {
    backend: LlamaBackend,
    pub(crate) model: LlamaWeights,
    pub(crate) template: Template,
    /// The texts of all control tokens.
    pub(crate) controls: Vec<String>,
    /// Bytes of the longest token: with it, a text that cannot fit is known without tokenising it.
    longest_token: usize,
    /// Whether long words overflow the tokenizer's stack.
    is_recursive: bool,
}

/// How to run a model.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Most tokens of conversation and answer together.
    pub context: NonZeroU32,
    /// Tokens in the cache, of all requests together; at least `context`.
    pub cache: NonZeroU32,
    /// Answers that are computed at once.
    pub parallel: u16,
    /// Threads for one token at a time.
    pub threads_decode: u16,
    /// Threads for prompts.
    pub threads_prefill: u16,
    /// Tokens that are computed at once. With more than [`ROWS`] prompts are read faster, and an answer depends on its
    /// company.
    pub rows: u32,
}

/// Why a model could not be loaded.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum LoadError {
    /// llama.cpp could not start; it starts once in a process.
    #[error("llama.cpp could not be started")]
    Backend,
    /// The file is missing or cannot be opened.
    #[error("the model file cannot be opened: {0}")]
    Missing(std::io::ErrorKind),
    /// The file says of itself what is not so: llama.cpp has not seen it.
    #[error("the model file is not what it says: {0}")]
    File(#[from] gguf::GgufError),
    /// It is no GGUF that llama.cpp can run.
    #[error("the model file is no model that this engine can run")]
    Weights,
    /// The model has no chat template, or one that neither can be rendered nor is known to llama.cpp.
    #[error("the model has no chat template that this engine knows")]
    Template,
    /// Not enough memory for this context, or the model refuses it.
    #[error("a context of this size cannot be made")]
    Context,
    /// Not the GPUs that were named.
    #[error("there are {found} GPUs that can be computed on, and {expected} were named")]
    Gpus {
        /// How many were named.
        expected: u8,
        /// How many there are.
        found: usize,
    },
    /// llama.cpp left the weights with the processor.
    #[error("the model's weights did not go to the GPUs")]
    NotOnGpus,
}

impl Weights {
    /// Loads a GGUF file, after [`gguf::check`] has found its header true. Its pages stay those of the file (mapped), so a file in guest memory costs nothing twice.
    /// llama.cpp's log is switched off: some of its lines hold text of a prompt.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        Self::load_to(path, None)
    }

    /// As [`Self::load`], with all layers on these GPUs: they hold the weights and the cache, and compute. The table of the
    /// tokens' own vectors stays with the processor, which looks them up.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load_on(path: &Path, gpus: &Gpus) -> Result<Self, LoadError> {
        Self::load_to(path, Some(gpus))
    }

    fn load_to(path: &Path, gpus: Option<&Gpus>) -> Result<Self, LoadError> {
        check(path)?;
        let mut backend = LlamaBackend::init().map_err(|_| LoadError::Backend)?;
        backend.void_logs();
        let params = gpus.map_or_else(|| Ok(LlamaModelParams::default()), Gpus::parameters)?;
        let before = gpus.map(Gpus::free_bytes);
        let model = LlamaWeights::load_from_file(&backend, path, &params).map_err(|_| LoadError::Weights)?;
        if let Some((gpus, before)) = gpus.zip(before) {
            gpus.check_holding(before, model.size())?;
        }
        let template = Template::of(&model).ok_or(LoadError::Template)?;
        let vocab = model.vocab();
        let lengths = vocab.tokens().filter_map(|token| vocab.text(token)).map(CStr::count_bytes);
        let longest_token = lengths.max().unwrap_or(1).max(1);
        let controls = vocab.tokens().filter(|token| vocab.is_control(*token)).filter_map(|token| vocab.text(token));
        let controls =
            controls.map(|text| text.to_string_lossy().into_owned()).filter(|text| !text.is_empty()).collect();
        let told = |key: &str| model.meta_val_str(key).unwrap_or_default();
        let is_recursive = is_recursive(&told("tokenizer.ggml.model"), &told("tokenizer.ggml.pre"));
        let weights = Self { backend, model, template, controls, longest_token, is_recursive };
        // Proves that the template works, and fills llama.cpp's tables before the first request pays for it.
        let probe = Message { role: engine_protocol::Role::User, content: "x".into() };
        weights.chat_tokens(std::slice::from_ref(&probe)).map_err(|_| LoadError::Template)?;
        Ok(weights)
    }

    /// How many tokens the cache should hold: as many as fit `memory` bytes, with what compacting it needs for a moment,
    /// up to a context for each of `parallel` answers, and always one context. `memory` is not a limit where one context
    /// needs more.
    #[must_use]
    pub fn cache_within(&self, memory: u64, context: NonZeroU32, parallel: u16) -> NonZeroU32 {
        let model = &self.model;
        let plain = u64::try_from(model.n_embd()).unwrap_or(0).checked_div(model.n_head().into()).unwrap_or(0);
        let architecture = model.meta_val_str("general.architecture").unwrap_or_default();
        let length = |of: &str| {
            let told = model.meta_val_str(&format!("{architecture}.attention.{of}_length"));
            told.ok().and_then(|told| told.parse().ok()).unwrap_or(plain)
        };
        let (key, value) = (length("key"), length("value"));
        CellShape { layers: model.n_layer(), heads: model.n_head_kv(), key, value }
            .cells_within(memory, context, parallel)
    }

    /// llama.cpp's own objects, for who compares the engine with the library called plainly.
    #[must_use]
    pub fn library(&self) -> (&LlamaBackend, &LlamaWeights) {
        (&self.backend, &self.model)
    }

    /// See [`patience`]. Of experts those count that compute a token. On GPUs it is not known what looking past a cell costs:
    /// prefixes stay until their room is needed.
    fn patience(&self) -> u64 {
        if ON_GPUS {
            return u64::MAX;
        }
        let model = &self.model;
        let architecture = model.meta_val_str("general.architecture").unwrap_or_default();
        let told = |key: &str| model.meta_val_str(&format!("{architecture}.{key}")).ok()?.parse().ok();
        let (experts, used): (Option<u64>, Option<u64>) = (told("expert_count"), told("expert_used_count"));
        let all = model.n_params();
        let computed = match experts.zip(used) {
            Some((experts, used)) if used < experts => all.checked_div(experts).unwrap_or(all).saturating_mul(used),
            _ => all,
        };
        patience(computed, model.n_layer(), model.n_head()).unwrap_or(u64::MAX)
    }

    /// Whether a sequence can be cut and shared: not where a model keeps a state instead of its tokens.
    fn can_share(&self) -> bool {
        !(self.model.is_recurrent() || self.model.is_hybrid())
    }
}

/// Compares what the file says of itself with its length, before any of it is believed.
fn check(path: &Path) -> Result<(), LoadError> {
    let file = File::open(path).map_err(|error| LoadError::Missing(error.kind()))?;
    let length = file.metadata().map_err(|error| LoadError::Missing(error.kind()))?.len();
    gguf::check(&mut BufReader::with_capacity(READ_BYTES, file), length)?;
    Ok(())
}

/// A context of llama.cpp: one cache for all sequences.
pub struct LlamaModel<'w> {
    weights: &'w Weights,
    context: LlamaContext<'w>,
    batch: LlamaBatch<'static>,
    facts: ModelFacts,
    vocabulary: Vocabulary,
    /// Entries of the last computation that have logits.
    sampled: Vec<bool>,
    /// Whether the cache was lost in a [`Change::Compact`].
    is_lost: bool,
}

/// An engine that computes many requests at once.
///
/// # Errors
/// [`LoadError::Context`].
pub fn batching_engine(weights: &Weights, settings: Settings) -> Result<Batching<LlamaModel<'_>>, LoadError> {
    let (model, capacity) = parts(weights, settings)?;
    Ok(Batching::new(model, capacity))
}

/// What [`batching_engine`] puts together, for who measures it.
///
/// # Errors
/// [`LoadError::Context`].
pub fn parts(weights: &Weights, settings: Settings) -> Result<(LlamaModel<'_>, Capacity), LoadError> {
    let rows = settings.rows.clamp(1, MAX_ROWS);
    let parallel = settings.parallel.max(1);
    let capacity = Capacity {
        cells: settings.cache.max(settings.context).get(),
        slots: parallel.saturating_mul(2),
        running: parallel,
        step: step_tokens(rows, parallel.into()),
        waiting: MAX_WAITING,
        shares: weights.can_share(),
        patience: weights.patience(),
    };
    Ok((LlamaModel::new(weights, settings, &capacity, rows)?, capacity))
}

impl<'w> LlamaModel<'w> {
    /// Makes the context (key-value cache and work buffers).
    fn new(weights: &'w Weights, settings: Settings, capacity: &Capacity, rows: u32) -> Result<Self, LoadError> {
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(capacity.cells))
            .with_n_seq_max(capacity.slots.max(2).into())
            .with_kv_unified(true)
            .with_n_batch(capacity.step)
            .with_n_ubatch(capacity.step.min(rows))
            .with_n_threads(settings.threads_decode.into())
            .with_n_threads_batch(settings.threads_prefill.into())
            .with_no_perf(true);
        let context = weights.model.new_context(&weights.backend, params).map_err(|_| LoadError::Context)?;
        let vocab = weights.model.vocab();
        let vocabulary = Vocabulary::new(
            vocab.tokens().map(|token| (vocab.token_to_piece(token, false, None), vocab.is_eog(token))),
        );
        let facts = ModelFacts {
            context: settings.context.get(),
            vocab: u32::try_from(vocabulary.len()).map_err(|_| LoadError::Weights)?,
            work: Work::Generate,
        };
        let length = usize::try_from(capacity.step).map_err(|_| LoadError::Context)?;
        let batch = LlamaBatch::new(length, 1);
        Ok(Self { weights, context, batch, facts, vocabulary, sampled: Vec::new(), is_lost: false })
    }

    fn fill(&mut self, entries: &[Entry]) -> Option<()> {
        self.batch.clear();
        self.sampled.clear();
        for entry in entries {
            let token = LlamaToken::new(i32::try_from(entry.token).ok()?);
            let position = i32::try_from(entry.position).ok()?;
            let samples = entry.sample.is_some();
            self.batch.add(token, position, &[entry.slot.into()], samples).ok()?;
            self.sampled.push(samples);
        }
        Some(())
    }

    fn drop_slot(&mut self, slot: Slot) {
        // A whole sequence can always be removed.
        let _ = self.context.clear_kv_cache_seq(Some(slot.into()), None, None);
    }
}

impl Model for LlamaModel<'_> {
    fn facts(&self) -> ModelFacts {
        self.facts
    }

    fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    fn tokens(&self, prompt: &Prompt, most: usize) -> Result<Vec<Token>, Failure> {
        if prompt.text_bytes() / self.weights.longest_token > most {
            return Err(Failure::ContextOverflow);
        }
        if self.weights.is_recursive && prompt.texts().any(has_long_run) {
            return Err(Failure::UnbrokenText);
        }
        let tokens = match prompt {
            Prompt::Chat(messages) => self.weights.chat_tokens(messages)?,
            Prompt::Text(text) => self.weights.text_tokens(text),
        };
        tokens.into_iter().map(|token| Token::try_from(token.0).map_err(|_| Failure::EngineFailed)).collect()
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Drop { slot } => self.drop_slot(slot),
            Change::Copy { from, to, length } => {
                // Fails for lengths over 2³¹ only, which no cache has.
                let _ = self.context.copy_kv_cache_seq(from.into(), to.into(), Some(0), Some(length));
            }
            Change::Compact => self.is_lost = crate::compact::compact(&mut self.context).is_none(),
        }
    }

    fn compute(&mut self, entries: &[Entry]) -> Result<(), Failure> {
        if std::mem::take(&mut self.is_lost) {
            return Err(Failure::EngineFailed);
        }
        self.fill(entries).ok_or(Failure::EngineFailed)?;
        self.context.decode(&mut self.batch).map_err(|_| Failure::EngineFailed)
    }

    fn logits(&self, entry: usize) -> Option<&[f32]> {
        let has_logits = self.sampled.get(entry).copied().unwrap_or(false);
        let index = i32::try_from(entry).ok().filter(|_| has_logits)?;
        Some(self.context.get_logits_ith(index))
    }

    fn wipe(&mut self) {
        self.context.clear_kv_cache();
    }
}

/// Tokens of a step for so many rows at once, at least `least`: whole computations. The rest of one would cost nearly as
/// much time as a whole: all weights pass through the processor for it.
fn step_tokens(rows: u32, least: u32) -> u32 {
    let computations = (STEP_TOKENS / rows).max(least.div_ceil(rows)).max(1);
    computations.saturating_mul(rows)
}

/// Most tokens that are computed in one step, prompts included, unless more are computed at once: small enough to cancel
/// soon and to keep running answers fluent, large enough to be fast.
const STEP_TOKENS: u32 = if ON_GPUS { 512 } else { 128 };
/// Rows that llama.cpp computes at once. From 64 on its attention takes another kernel, which adds up in another order:
/// an answer would depend on how many tokens are computed beside its own. On GPUs the kernels differ from 2 rows on, so
/// there it depends on them in any case, and a step is computed whole.
pub const ROWS: u32 = if ON_GPUS { STEP_TOKENS } else { 63 };
/// Most rows that may be asked for.
pub const MAX_ROWS: u32 = 512;
/// Read at once of a file's header.
const READ_BYTES: usize = 1 << 20;
/// Whether this engine is compiled for GPUs.
const ON_GPUS: bool = cfg!(feature = "cuda");
/// Answers that wait.
const MAX_WAITING: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_whole_computations() {
        let wanted = match ON_GPUS {
            true => [(63, 1, 504), (512, 1, 512), (63, 600, 630)],
            false => [(63, 64, 126), (512, 64, 512), (63, 200, 252)],
        };
        for (rows, least, step) in wanted {
            assert_eq!(step_tokens(rows, least), step, "{rows} {least}");
        }
        for rows in 1..=MAX_ROWS {
            for least in [1, 64, 127, 128, 1000] {
                let step = step_tokens(rows, least);
                assert!(step.is_multiple_of(rows) && step >= least, "{rows} {least}");
                assert!(step < STEP_TOKENS.max(least) + rows, "{rows} {least}");
            }
        }
    }
}
