// SPDX-License-Identifier: Apache-2.0
//! A model whose next token is a function of all tokens before it, and that checks what it is asked to do.

use batching::{Batching, Capacity, Change, Engine as _, Entry, Model, Slot, Token, Vocabulary};
use engine_protocol::{Event, Failure, Form, Generate, ModelFacts, Prompt, Sampling, Tenant, Work};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const CONTEXT: u32 = 64;

pub(crate) struct FakeModel {
    capacity: Capacity,
    vocabulary: Vocabulary,
    /// Tokens of each slot, with the cell that holds each.
    slots: BTreeMap<Slot, Vec<(Token, usize)>>,
    /// Where llama.cpp begins to look for a free cell.
    head: usize,
    pub(crate) compacted: u32,
    logits: Vec<Option<Vec<f32>>>,
    pub(crate) wiped: u32,
    pub(crate) computed: usize,
    pub(crate) steps: Vec<Vec<Entry>>,
    /// The computation with this number fails.
    pub(crate) fails_at: Option<usize>,
}

impl FakeModel {
    pub(crate) fn new(capacity: Capacity) -> Self {
        let texts = ["", "a", "b", "c", "d", "{", "}", "\"", ":", "1", "é"];
        let vocabulary = Vocabulary::new(texts.into_iter().map(|text| (text.as_bytes().to_vec(), text.is_empty())));
        let (slots, logits, steps) = (BTreeMap::new(), Vec::new(), Vec::new());
        let (head, compacted, wiped, computed) = (0, 0, 0, 0);
        Self { capacity, vocabulary, slots, head, compacted, logits, wiped, computed, steps, fails_at: None }
    }

    fn cells(&self) -> BTreeSet<usize> {
        self.slots.values().flatten().map(|(_, cell)| *cell).collect()
    }

    /// The cell that llama.cpp takes for the next token.
    fn take_cell(&mut self) -> usize {
        let (used, total) = (self.cells(), self.capacity.cells as usize);
        let start = if self.head > used.len() + 2 { 0 } else { self.head };
        let cell = (start..total).chain(0..start).find(|cell| !used.contains(cell)).expect("more cells than there are");
        self.head = cell + 1;
        cell
    }
}

impl Model for FakeModel {
    fn facts(&self) -> ModelFacts {
        ModelFacts { context: CONTEXT, vocab: self.vocabulary.len() as u32, work: Work::Generate }
    }

    fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// A token for each letter.
    fn tokens(&self, prompt: &Prompt, _: usize) -> Result<Vec<Token>, Failure> {
        Ok(prompt.texts().flat_map(str::bytes).map(u32::from).collect())
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Drop { slot } => {
                let dropped = self.slots.remove(&slot).unwrap_or_default();
                let used = self.cells();
                let freed = dropped.iter().map(|(_, cell)| *cell).filter(|cell| !used.contains(cell)).min();
                self.head = self.head.min(freed.unwrap_or(self.head));
            }
            Change::Compact => {
                let places: Vec<usize> = self.cells().into_iter().collect();
                for (_, cell) in self.slots.values_mut().flatten() {
                    *cell = places.binary_search(cell).unwrap();
                }
                self.head = 0;
                self.compacted += 1;
            }
            Change::Copy { from, to, length } => {
                let source = &self.slots[&from];
                assert!(source.len() >= length as usize && !self.slots.contains_key(&to), "{change:?}");
                self.slots.insert(to, source[..length as usize].to_vec());
            }
        }
    }

    fn compute(&mut self, entries: &[Entry]) -> Result<(), Failure> {
        assert!(entries.len() <= self.capacity.step as usize);
        self.steps.push(entries.to_vec());
        if self.fails_at == Some(self.steps.len()) {
            return Err(Failure::EngineFailed);
        }
        self.computed += entries.len();
        self.logits.clear();
        for entry in entries {
            assert!(entry.slot < self.capacity.slots);
            let cell = self.take_cell();
            let slot = self.slots.entry(entry.slot).or_default();
            assert_eq!(slot.len(), entry.position as usize);
            slot.push((entry.token, cell));
            assert!(slot.is_sorted_by_key(|(_, cell)| *cell), "cells in another order than their tokens: {slot:?}");
            let mut state = slot.iter().fold(7_u64, |state, (token, _)| mix(state ^ u64::from(*token)));
            let logits = entry.sample.map(|_| {
                (0..self.vocabulary.len()).map(|_| {
                    state = mix(state);
                    (state % 1000) as f32 / 150.0
                })
            });
            let logits = logits.map(Iterator::collect::<Vec<f32>>);
            self.logits.push(logits);
        }
        Ok(())
    }

    fn logits(&self, entry: usize) -> Option<&[f32]> {
        self.logits[entry].as_deref()
    }

    fn wipe(&mut self) {
        assert!(self.slots.is_empty());
        self.wiped += 1;
    }
}

fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

pub(crate) fn engine(capacity: Capacity) -> Batching<FakeModel> {
    Batching::new(FakeModel::new(capacity), capacity)
}

pub(crate) fn roomy() -> Capacity {
    Capacity { cells: 4096, slots: 16, running: 8, step: 32, waiting: 64, shares: true, patience: u64::MAX }
}

pub(crate) fn request(id: u64, tenant: u8, prompt: &str) -> Generate {
    Generate {
        id,
        tenant: Tenant([tenant; 32]),
        prompt: Prompt::Text(prompt.into()),
        choices: 1,
        max_tokens: Some(8),
        most_tokens: None,
        logit_bias: vec![],
        sampling: Sampling { temperature: 1.0, top_p: 1.0, frequency_penalty: 0.0, presence_penalty: 0.0, seed: id },
        stop: vec![],
        logprobs: None,
        form: Form::Free,
    }
}

/// What came of a request.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) texts: BTreeMap<u16, String>,
    pub(crate) ended: Vec<u16>,
    pub(crate) last: Option<Event>,
}

/// Sorts events by request; checks their order.
pub(crate) fn collect(outcomes: &mut BTreeMap<u64, Outcome>, events: Vec<Event>) {
    for event in events {
        let id = match &event {
            Event::Token { id, .. } | Event::Ended { id, .. } | Event::Done { id, .. } | Event::Failed { id, .. } => {
                *id
            }
            other => panic!("{other:?}"),
        };
        let outcome = outcomes.entry(id).or_default();
        assert_eq!(outcome.last, None, "{event:?} after the end");
        match event {
            Event::Token { choice, text, .. } => {
                assert!(!outcome.ended.contains(&choice));
                outcome.texts.entry(choice).or_default().push_str(&text);
            }
            Event::Ended { choice, .. } => {
                assert!(!outcome.ended.contains(&choice));
                outcome.ended.push(choice);
            }
            end => outcome.last = Some(end),
        }
    }
}

/// Steps until nothing is left to do.
pub(crate) fn drain(engine: &mut Batching<FakeModel>, outcomes: &mut BTreeMap<u64, Outcome>, most_steps: usize) {
    for _ in 0..most_steps {
        if engine.is_idle() {
            return;
        }
        let mut events = Vec::new();
        engine.step(&mut events);
        collect(outcomes, events);
    }
    panic!("not done after {most_steps} steps");
}

/// The outcome of a request that is alone.
pub(crate) fn alone(request: Generate) -> Outcome {
    let capacity = Capacity { shares: false, running: 1, ..roomy() };
    let (mut engine, id) = (engine(capacity), request.id);
    engine.admit(request).unwrap();
    let mut outcomes = BTreeMap::new();
    drain(&mut engine, &mut outcomes, 10_000);
    outcomes.remove(&id).unwrap()
}
