// SPDX-License-Identifier: Apache-2.0
//! Requests, one text of each in turn.

use crate::Embedder;
use engine_process::Worker;
use engine_protocol::{Command, Embed, Event, Failure, MAX_EMBED_TOKENS, ModelFacts};
use std::collections::VecDeque;
use zeroize::Zeroizing;

/// The requests in work. The next text is computed of the first of them, which then goes to the end.
#[derive(Debug, Default)]
pub(crate) struct Queue(VecDeque<Job>);

#[derive(Debug)]
struct Job {
    id: u64,
    texts: VecDeque<Zeroizing<Vec<u32>>>,
    index: u32,
    prompt_tokens: u32,
}

impl Embedder {
    /// Everything that can be refused is refused here, before anything is computed.
    fn admit(&mut self, embed: Embed) -> Result<u32, Failure> {
        let Self { queue: Queue(jobs), facts, .. } = self;
        if jobs.iter().any(|job| job.id == embed.id) {
            return Err(Failure::DuplicateId);
        }
        if jobs.len() >= MAX_WAITING {
            return Err(Failure::QueueFull);
        }
        embed.check().map_err(|_| Failure::InvalidRequest)?;
        let most = usize::try_from(facts.context).unwrap_or(usize::MAX);
        let mut texts = VecDeque::with_capacity(embed.inputs.len());
        let mut prompt_tokens = 0_u32;
        for input in &embed.inputs {
            let tokens = self.text.tokens(input, most)?;
            prompt_tokens = prompt_tokens.saturating_add(u32::try_from(tokens.len()).unwrap_or(u32::MAX));
            if prompt_tokens > MAX_EMBED_TOKENS {
                return Err(Failure::TooManyTokens);
            }
            texts.push_back(tokens);
        }
        self.queue.0.push_back(Job { id: embed.id, texts, index: 0, prompt_tokens });
        Ok(prompt_tokens)
    }
}

impl Worker for Embedder {
    fn facts(&self) -> ModelFacts {
        self.facts
    }

    fn obey(&mut self, command: Command, events: &mut Vec<Event>) {
        let failed = |id, code| Event::Failed { id, code, prompt_tokens: None };
        match command {
            Command::Embed(embed) => {
                let id = embed.id;
                events.push(match self.admit(embed) {
                    Ok(prompt_tokens) => Event::Started { id, prompt_tokens },
                    Err(code) => failed(id, code),
                });
            }
            Command::Generate(request) => events.push(failed(request.id, Failure::OtherWork)),
            Command::Cancel { id } => {
                let before = self.queue.0.len();
                self.queue.0.retain(|job| job.id != id);
                if self.queue.0.len() < before {
                    events.push(failed(id, Failure::Cancelled));
                }
            }
            // Nothing is kept of anybody.
            Command::Forget { .. } => {}
        }
    }

    fn step(&mut self, events: &mut Vec<Event>) {
        let Some(mut job) = self.queue.0.pop_front() else { return };
        let (id, index, prompt_tokens) = (job.id, job.index, job.prompt_tokens);
        let Some(tokens) = job.texts.pop_front() else { return };
        match self.model.vector(&tokens) {
            Ok(values) => events.push(Event::Vector { id, index, values }),
            Err(_) => {
                let code = Failure::EngineFailed;
                return events.push(Event::Failed { id, code, prompt_tokens: Some(prompt_tokens) });
            }
        }
        if job.texts.is_empty() {
            events.push(Event::Done { id, prompt_tokens, cached_tokens: 0, completion_tokens: 0 });
        } else {
            job.index = index.saturating_add(1);
            self.queue.0.push_back(job);
        }
    }

    fn is_idle(&self) -> bool {
        self.queue.0.is_empty()
    }
}

/// Each may hold some hundred thousand tokens.
const MAX_WAITING: usize = 64;
