// SPDX-License-Identifier: Apache-2.0
//! What is measured.

use engine::{MAX_ROWS, ROWS, Weights};
use serde_json::{Map, Value, json};

use crate::ours::{Ours, Room};
use crate::peer;
use crate::run::{Run, median};
use crate::work::{Job, Prompts};

pub(crate) struct Bench<'w> {
    weights: &'w Weights,
    prompts: Prompts<'w>,
    threads: u16,
    rounds: u16,
    /// Divides the length of answers and long prompts.
    hurry: u32,
}

impl<'w> Bench<'w> {
    pub(crate) fn new(weights: &'w Weights, threads: u16, rounds: Option<u16>, quick: bool) -> Self {
        let (rounds, hurry) = if quick { (1, 8) } else { (rounds.unwrap_or(ROUNDS), 1) };
        Self { weights, prompts: Prompts::new(weights), threads, rounds, hurry }
    }

    /// All measurements, or those that are named.
    pub(crate) fn measure(mut self, only: &[String]) -> anyhow::Result<Value> {
        if let Some(unknown) = only.iter().find(|name| measures().iter().all(|(known, ..)| known != name)) {
            anyhow::bail!("{unknown} is no measurement");
        }
        let mut document = Map::from_iter([
            ("threads".to_owned(), self.threads.into()),
            ("rounds".to_owned(), self.rounds.into()),
            ("avx512".to_owned(), cfg!(target_feature = "avx512f").into()),
        ]);
        for (name, what, measure) in measures() {
            if only.is_empty() || only.iter().any(|one| one == name) {
                let value = measure(&mut self)?;
                eprintln!("{what}: {value}");
                document.insert(name.to_owned(), value);
            }
        }
        Ok(document.into())
    }

    fn decode(&mut self) -> anyhow::Result<Value> {
        let job = self.job(32, 128);
        let mut ours = self.ours(1, 256, 256)?;
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            a.push(ours.run(std::slice::from_ref(&job))?.decode_rate());
            b.push(peer::run(self.weights, std::slice::from_ref(&job), self.threads)?.decode_rate());
        }
        Ok(against(a, b).into())
    }

    /// With the engine's smaller computations, and with whole steps.
    fn prefill(&mut self) -> anyhow::Result<Value> {
        let tokens = 1024 / self.hurry;
        let job = self.job(tokens as usize, 1);
        let room = Room { rows: MAX_ROWS, ..self.room(1, tokens + 64, tokens + 64) };
        let (mut ours, mut whole) = (self.ours(1, room.context, room.cache)?, Ours::new(self.weights, room)?);
        let (mut a, mut b, mut c) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            a.push(read_rate(&ours.run(std::slice::from_ref(&job))?, tokens));
            b.push(f64::from(tokens) / peer::prefill(self.weights, &job, self.threads)?.as_secs_f64());
            c.push(read_rate(&whole.run(std::slice::from_ref(&job))?, tokens));
        }
        let (ours, peer, whole) = (median(a), median(b), median(c));
        Ok(
            json!({ "ours": ours, "peer": peer, "whole": whole, "tokens": tokens, "rows": ROWS, "whole_rows": MAX_ROWS }),
        )
    }

    /// Eight answers of one length.
    fn streams(&mut self) -> anyhow::Result<Value> {
        let answer = 64 / self.hurry;
        let jobs = self.prompts.jobs(8, 32, |_| answer);
        self.batches(&jobs, 8, self.rounds * if self.hurry == 1 { 3 } else { 1 })
    }

    /// Eight answers that are drawn: both sides end some of them early, at other tokens.
    fn drawn(&mut self) -> anyhow::Result<Value> {
        let answer = 64 / self.hurry;
        let mut jobs = self.prompts.jobs(8, 32, |_| answer);
        jobs.iter_mut().for_each(|job| job.drawn = true);
        self.batches(&jobs, 8, self.rounds)
    }

    /// Twenty-four answers, eight at once, of 16 to 128 tokens: as they come in practice.
    fn uneven(&mut self) -> anyhow::Result<Value> {
        let hurry = self.hurry;
        let jobs = self.prompts.jobs(24, 32, |number| (16 << (number % 4)) / hurry);
        self.batches(&jobs, 8, self.few())
    }

    /// Tokens generated for each second of the whole run, prompts included.
    fn batches(&mut self, jobs: &[Job], at_once: u16, rounds: u16) -> anyhow::Result<Value> {
        let mut ours = self.ours(at_once, 256, 256 * u32::from(at_once))?;
        let (mut a, mut b, mut tokens) = (Vec::new(), Vec::new(), (0, 0));
        for _ in 0..rounds {
            let run = ours.run(jobs)?;
            let other = peer::in_batches(self.weights, jobs, at_once.into(), self.threads)?;
            tokens = (run.tokens, other.tokens);
            a.push(run.rate());
            b.push(other.rate());
        }
        let mut document = against(a, b);
        document.extend([("tokens_ours".to_owned(), tokens.0.into()), ("tokens_peer".to_owned(), tokens.1.into())]);
        Ok(document.into())
    }

    /// Time to the first token behind 200 tokens that the tenant has asked before, or has not.
    fn prefix(&mut self) -> anyhow::Result<Value> {
        let mut ours = self.ours(1, 512, 4096)?;
        let (mut shared, mut fresh) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds.max(3) {
            let prefix = self.prompts.text("", PREFIX);
            let [first, second] = [1, 2].map(|_| self.prompts.text(&prefix, PREFIX + 12));
            for (prompt, times) in [(first, &mut fresh), (second, &mut shared)] {
                let run = ours.run_and_keep(&[Job { tenant: 1, prompt, answer: 1, drawn: false }])?;
                times.extend(run.first.first().map(|time| time.as_secs_f64() * 1e3));
            }
        }
        Ok(json!({ "shared_ms": median(shared), "fresh_ms": median(fresh), "tokens": PREFIX }))
    }

    /// One answer in an empty cache, and beside what is kept of other tenants: the model looks at each cell of the cache to
    /// see that it is none of the answer's.
    fn kept(&mut self) -> anyhow::Result<Value> {
        let (slots, tokens) = (16, 256 / self.hurry);
        let mut ours = self.ours(slots, 512, 16 * 512)?;
        let others = self.prompts.jobs(2 * u32::from(slots) - 1, tokens as usize, |_| 1);
        let job = self.job(32, 128 / self.hurry);
        let (mut empty, mut beside, mut cells) = (Vec::new(), Vec::new(), 0);
        for other in &others {
            ours.run_and_keep(std::slice::from_ref(other))?;
        }
        for _ in 0..self.few() {
            cells = ours.cells();
            beside.push(ours.run(std::slice::from_ref(&job))?.decode_rate());
        }
        ours.forget(&others);
        for _ in 0..self.few() {
            empty.push(ours.run(std::slice::from_ref(&job))?.decode_rate());
        }
        Ok(json!({ "empty": median(empty), "beside": median(beside), "cells": cells }))
    }

    /// Eight at once with room for four: prefixes are dropped, answers stopped, and the cache is compacted.
    fn compaction(&mut self) -> anyhow::Result<Value> {
        let hurry = self.hurry;
        let jobs = self.prompts.jobs(24, 64, |number| (32 << (number % 4)) / hurry);
        let mut ours = self.ours(8, 512, 512)?;
        let run = ours.run(&jobs)?;
        let (count, took) = ours.compactions();
        let each = took.checked_div(count).unwrap_or_default();
        let share = took.as_secs_f64() / run.took.as_secs_f64();
        Ok(json!({ "count": count, "ms_each": each.as_secs_f64() * 1e3, "share": share, "cells": 512 }))
    }

    fn concurrency(&mut self) -> anyhow::Result<Value> {
        let mut rows = Vec::new();
        for streams in STREAMS {
            let answer = 48 / self.hurry;
            let jobs = self.prompts.jobs(streams.into(), 32, |_| answer);
            let mut row = self.batches(&jobs, streams, self.few())?;
            if let Some(row) = row.as_object_mut() {
                row.insert("streams".to_owned(), streams.into());
            }
            rows.push(row);
        }
        Ok(rows.into())
    }

    fn context(&mut self) -> anyhow::Result<Value> {
        let mut rows = Vec::new();
        for tokens in CONTEXTS.map(|tokens| tokens / self.hurry) {
            let job = self.job(tokens as usize, 32 / self.hurry.min(4));
            let mut ours = self.ours(1, tokens + 64, tokens + 64)?;
            let (run, other) = (
                ours.run(std::slice::from_ref(&job))?,
                peer::run(self.weights, std::slice::from_ref(&job), self.threads)?,
            );
            rows.push(json!({
                "tokens": tokens,
                "prefill_ours": read_rate(&run, tokens), "prefill_peer": read_rate(&other, tokens),
                "decode_ours": run.decode_rate(), "decode_peer": other.decode_rate(),
            }));
        }
        Ok(rows.into())
    }

    /// Rounds of what takes long.
    fn few(&self) -> u16 {
        self.rounds.min(3)
    }

    fn job(&mut self, prompt: usize, answer: u32) -> Job {
        Job { tenant: 0, prompt: self.prompts.text("", prompt), answer, drawn: false }
    }

    fn room(&self, at_once: u16, context: u32, cache: u32) -> Room {
        Room { context, cache, at_once, threads: self.threads, rows: ROWS }
    }

    fn ours(&self, at_once: u16, context: u32, cache: u32) -> anyhow::Result<Ours<'w>> {
        Ours::new(self.weights, self.room(at_once, context, cache))
    }
}

/// Medians of rates, and of the shares of the peer's rate in the same round: a machine is not as fast in each of them.
fn against(ours: Vec<f64>, peer: Vec<f64>) -> Map<String, Value> {
    let ratio = median(ours.iter().zip(&peer).map(|(ours, peer)| ours / peer));
    Map::from_iter([
        ("ours".to_owned(), median(ours).into()),
        ("peer".to_owned(), median(peer).into()),
        ("ratio".to_owned(), ratio.into()),
    ])
}

/// Tokens of a prompt for each second to the first token.
fn read_rate(run: &Run, tokens: u32) -> f64 {
    f64::from(tokens) / run.first.first().copied().unwrap_or_default().as_secs_f64()
}

const ROUNDS: u16 = 5;
const PREFIX: usize = 200;
const STREAMS: [u16; 6] = [1, 2, 4, 8, 12, 16];
const CONTEXTS: [u32; 6] = [128, 256, 512, 1024, 2048, 4096];

type Measure<'w> = fn(&mut Bench<'w>) -> anyhow::Result<Value>;

/// Field of the document, what it is, and how it is measured.
const fn measures<'w>() -> [(&'static str, &'static str, Measure<'w>); 10] {
    [
        ("decode", "one answer", Bench::decode),
        ("prefill", "a prompt", Bench::prefill),
        ("streams", "eight answers at once", Bench::streams),
        ("drawn", "eight answers at once, drawn", Bench::drawn),
        ("uneven", "answers of several lengths", Bench::uneven),
        ("prefix", "a shared prefix", Bench::prefix),
        ("kept", "one answer beside kept prefixes", Bench::kept),
        ("compaction", "a cache that is too small", Bench::compaction),
        ("concurrency", "1 to 16 answers at once", Bench::concurrency),
        ("context", "long contexts", Bench::context),
    ]
}
