// SPDX-License-Identifier: Apache-2.0
//! llama.cpp called plainly: its own batch, its own sampler, its defaults.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use engine::Weights;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;

use crate::{run::Run, work::Job};

/// Answers all jobs as one batch: all prompts are read, then each step gives every answer that has not ended a token.
pub(crate) fn run(weights: &Weights, jobs: &[Job], threads: u16) -> anyhow::Result<Run> {
    let (backend, model) = weights.library();
    let vocab = model.vocab();
    let prompts: Vec<Vec<LlamaToken>> =
        jobs.iter().map(|job| vocab.tokenize(job.prompt.as_bytes(), true, false)).collect();
    let all: usize = prompts.iter().map(Vec::len).sum();
    let longest = prompts.iter().zip(jobs).map(|(prompt, job)| prompt.len() + job.answer as usize).max();
    let cells = u32::try_from((longest.unwrap_or(0) + 1) * jobs.len())?;
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(cells))
        .with_n_seq_max(u32::try_from(jobs.len())?)
        .with_n_batch(u32::try_from(all.max(512))?)
        .with_n_threads(threads.into())
        .with_n_threads_batch(threads.into());
    let mut context = model.new_context(backend, params)?;
    let mut batch = LlamaBatch::new(all.max(512), 1);
    let start = Instant::now();
    let mut streams = Vec::new();
    for (sequence, (prompt, job)) in (0..).zip(prompts.iter().zip(jobs)) {
        batch.add_sequence(prompt, sequence, false)?;
        streams.push(Stream {
            sequence,
            entry: batch.n_tokens() - 1,
            position: i32::try_from(prompt.len())?,
            left: job.answer,
        });
    }
    context.decode(&mut batch)?;
    let mut sampler = match jobs.iter().any(|job| job.drawn) {
        true => LlamaSampler::chain_simple([LlamaSampler::temp(1.0), LlamaSampler::dist(SEED)]),
        false => LlamaSampler::greedy(),
    };
    let mut run = Run::default();
    loop {
        let mut tokens = Vec::with_capacity(streams.len());
        for stream in &mut streams {
            tokens.push(stream.take(&mut sampler, &context));
            run.tokens += 1;
        }
        if run.first.is_empty() {
            run.first.push(start.elapsed());
        }
        let going = streams.into_iter().zip(tokens).filter(|(stream, token)| stream.left > 0 && !vocab.is_eog(*token));
        let going: Vec<(Stream, LlamaToken)> = going.collect();
        if going.is_empty() {
            break;
        }
        batch.clear();
        streams = Vec::with_capacity(going.len());
        for (entry, (stream, token)) in (0..).zip(going) {
            batch.add(token, stream.position, &[stream.sequence], true)?;
            streams.push(Stream { entry, position: stream.position + 1, ..stream });
        }
        context.decode(&mut batch)?;
    }
    run.took = start.elapsed();
    Ok(run)
}

/// The jobs in batches of `size`, one after the other: the next begins when the longest answer of the last has ended.
pub(crate) fn in_batches(weights: &Weights, jobs: &[Job], size: usize, threads: u16) -> anyhow::Result<Run> {
    let mut sum = Run::default();
    for jobs in jobs.chunks(size.max(1)) {
        let one = run(weights, jobs, threads)?;
        sum.took += one.took;
        sum.tokens += one.tokens;
        sum.first.extend(one.first);
    }
    anyhow::ensure!(sum.took > Duration::ZERO, "nothing was computed");
    Ok(sum)
}

/// Reads a prompt and gives the time to its first token.
pub(crate) fn prefill(weights: &Weights, job: &Job, threads: u16) -> anyhow::Result<Duration> {
    let job = Job { answer: 1, ..job.clone() };
    run(weights, &[job], threads)?.first.first().copied().context("no first token")
}

/// Any number.
const SEED: u32 = 1;

struct Stream {
    sequence: i32,
    /// Its logits' place in the last batch.
    entry: i32,
    position: i32,
    left: u32,
}

impl Stream {
    fn take(&mut self, sampler: &mut LlamaSampler, context: &LlamaContext<'_>) -> LlamaToken {
        self.left = self.left.saturating_sub(1);
        sampler.sample(context, self.entry)
    }
}
