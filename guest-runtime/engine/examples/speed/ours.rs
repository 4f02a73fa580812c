// SPDX-License-Identifier: Apache-2.0
//! The engine as `serve` uses it, without the socket.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use batching::{Batching, Change, Engine as _, Entry, Model, Token, Vocabulary};
use engine::{LlamaModel, Settings, Weights};
use engine_protocol::{Event, Failure, Form, Generate, ModelFacts, Prompt, Sampling, Tenant};

use crate::{run::Run, work::Job};

/// Room and threads of an engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) context: u32,
    pub(crate) cache: u32,
    pub(crate) at_once: u16,
    pub(crate) threads: u16,
    /// Rows that llama.cpp computes at once.
    pub(crate) rows: u32,
}

pub(crate) struct Ours<'w> {
    engine: Batching<Timed<'w>>,
    at_once: usize,
    next: u64,
}

impl<'w> Ours<'w> {
    pub(crate) fn new(weights: &'w Weights, room: Room) -> anyhow::Result<Self> {
        let size = |number| NonZeroU32::new(number).ok_or_else(|| anyhow::anyhow!("no room"));
        let settings = Settings {
            context: size(room.context)?,
            cache: size(room.cache)?,
            parallel: room.at_once,
            threads_decode: room.threads,
            threads_prefill: room.threads,
            rows: room.rows,
        };
        let (inner, capacity) = engine::parts(weights, settings)?;
        let model = Timed { inner, compactions: 0, compacting: Duration::ZERO };
        Ok(Self { engine: Batching::new(model, capacity), at_once: room.at_once.into(), next: 0 })
    }

    /// Answers the jobs, at most so many at once as there is room for; what ends is followed by the next at once. Nothing
    /// of the tenants stays.
    pub(crate) fn run(&mut self, jobs: &[Job]) -> anyhow::Result<Run> {
        let run = self.run_and_keep(jobs)?;
        self.forget(jobs);
        Ok(run)
    }

    /// Drops what is kept for the jobs' tenants.
    pub(crate) fn forget(&mut self, jobs: &[Job]) {
        jobs.iter().for_each(|job| self.engine.forget(tenant(job)));
    }

    /// Cells of the cache that are used.
    pub(crate) fn cells(&self) -> usize {
        self.engine.scheduler().cells().used()
    }

    /// The same; what was computed stays.
    pub(crate) fn run_and_keep(&mut self, jobs: &[Job]) -> anyhow::Result<Run> {
        let start = Instant::now();
        let (mut waiting, mut run) = (jobs.iter(), Run::default());
        let mut open: HashMap<u64, Option<Instant>> = HashMap::new();
        let mut events = Vec::new();
        loop {
            while open.len() < self.at_once {
                let Some(job) = waiting.next() else { break };
                self.next += 1;
                open.insert(self.next, Some(Instant::now()));
                let admitted = self.engine.admit(request(self.next, job));
                admitted.map_err(|refused| anyhow::anyhow!("refused: {:?}", refused.code))?;
            }
            if open.is_empty() {
                run.took = start.elapsed();
                return Ok(run);
            }
            self.engine.step(&mut events);
            for event in events.drain(..) {
                match event {
                    Event::Token { id, .. } => {
                        let asked = open.get_mut(&id).and_then(Option::take);
                        run.first.extend(asked.map(|asked| asked.elapsed()));
                    }
                    Event::Done { id, completion_tokens, .. } => {
                        open.remove(&id);
                        run.tokens += completion_tokens;
                    }
                    Event::Failed { code, .. } => anyhow::bail!("failed: {code:?}"),
                    Event::Hello { .. } | Event::Vector { .. } | Event::Started { .. } | Event::Ended { .. } => {}
                }
            }
        }
    }

    /// How often the cache was compacted, and the time that took.
    pub(crate) fn compactions(&self) -> (u32, Duration) {
        (self.engine.model().compactions, self.engine.model().compacting)
    }
}

fn tenant(job: &Job) -> Tenant {
    let mut bytes = [0; 32];
    for (byte, value) in bytes.iter_mut().zip(job.tenant.to_be_bytes()) {
        *byte = value;
    }
    Tenant(bytes)
}

fn request(id: u64, job: &Job) -> Generate {
    Generate {
        id,
        tenant: tenant(job),
        prompt: Prompt::Text(job.prompt.clone()),
        choices: 1,
        max_tokens: Some(job.answer),
        most_tokens: None,
        logit_bias: vec![],
        sampling: Sampling {
            temperature: if job.drawn { 1.0 } else { 0.0 },
            top_p: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: id,
        },
        stop: Vec::new(),
        logprobs: None,
        form: Form::Free,
    }
}

/// The model, with a watch on compactions.
struct Timed<'w> {
    inner: LlamaModel<'w>,
    compactions: u32,
    compacting: Duration,
}

impl Model for Timed<'_> {
    fn facts(&self) -> ModelFacts {
        self.inner.facts()
    }

    fn vocabulary(&self) -> &Vocabulary {
        self.inner.vocabulary()
    }

    fn tokens(&self, prompt: &Prompt, most: usize) -> Result<Vec<Token>, Failure> {
        self.inner.tokens(prompt, most)
    }

    fn change(&mut self, change: Change) {
        let start = Instant::now();
        self.inner.change(change);
        if change == Change::Compact {
            self.compactions += 1;
            self.compacting += start.elapsed();
        }
    }

    fn compute(&mut self, entries: &[Entry]) -> Result<(), Failure> {
        self.inner.compute(entries)
    }

    fn logits(&self, entry: usize) -> Option<&[f32]> {
        self.inner.logits(entry)
    }

    fn wipe(&mut self) {
        self.inner.wipe();
    }
}
