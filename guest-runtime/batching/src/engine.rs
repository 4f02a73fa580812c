// SPDX-License-Identifier: Apache-2.0
//! An engine that computes many requests at once.

use crate::{
    Capacity, Change, Key, Model, NoToken, Scheduler, Scratch, Token,
    request::{Progress, Request},
};
use engine_protocol::{Event, Failure, FinishReason, Form, Generate, ModelFacts, Tenant};
use output_schema::{Grammar, Json, Matcher};
use std::{collections::HashMap, sync::Arc};
use zeroize::Zeroize as _;

/// A scheduler with a model. Not thread-safe: one thread owns it and calls [`Engine::step`] while there is work.
pub trait Engine {
    /// What the model can do.
    fn facts(&self) -> ModelFacts;

    /// Takes a request into the queue, after everything that can be refused was refused. Gives the number of tokens
    /// of the rendered conversation. Nothing is computed yet.
    ///
    /// # Errors
    /// Why the request was not taken.
    fn admit(&mut self, request: Generate) -> Result<u32, Refused>;

    /// Ends a request, waiting or running, with [`Failure::Cancelled`]. Unknown ids are ignored.
    fn cancel(&mut self, id: u64, events: &mut Vec<Event>);

    /// Drops what is kept for a tenant.
    fn forget(&mut self, tenant: Tenant);

    /// Does one bounded piece of work (parts of prompts, and a token for each running answer) and adds what happened to
    /// `events`.
    fn step(&mut self, events: &mut Vec<Event>);

    /// Whether [`Engine::step`] has nothing to do.
    fn is_idle(&self) -> bool;
}

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The reason.
    pub code: Failure,
    /// Tokens of the rendered conversation, where they were counted.
    pub prompt_tokens: Option<u32>,
}

impl From<Failure> for Refused {
    fn from(code: Failure) -> Self {
        Self { code, prompt_tokens: None }
    }
}

/// [`Engine`] over a model.
#[derive(Debug)]
pub struct Batching<M> {
    model: M,
    scheduler: Scheduler,
    requests: HashMap<u64, Request>,
    /// Whether the model's cache holds anything that was not overwritten.
    is_stained: bool,
    scratch: Scratch,
}

impl<M: Model> Batching<M> {
    /// Nothing to do yet. The capacity's cells are those of the model, at least as many as its context.
    #[must_use]
    pub fn new(model: M, capacity: Capacity) -> Self {
        Self {
            model,
            scheduler: Scheduler::new(capacity),
            requests: HashMap::new(),
            is_stained: false,
            scratch: Scratch::default(),
        }
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Who computes what.
    #[must_use]
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Memory of the last draw.
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    fn prompt(&self, request: &Generate) -> Result<(Vec<Token>, u32), Refused> {
        let context = self.model.facts().context;
        let tokens = self.model.tokens(&request.prompt, usize::try_from(context).unwrap_or(usize::MAX))?;
        let overflow = |prompt_tokens| Refused { code: Failure::ContextOverflow, prompt_tokens };
        let prompt_tokens = u32::try_from(tokens.len()).map_err(|_| overflow(None))?;
        if prompt_tokens == 0 {
            return Err(Failure::InvalidRequest.into());
        }
        let room = context.checked_sub(prompt_tokens).filter(|room| *room > 0).ok_or(overflow(Some(prompt_tokens)))?;
        let most = request.most_tokens.unwrap_or(room);
        let max_tokens = request.max_tokens.unwrap_or(room.min(most));
        if max_tokens > room { Err(overflow(Some(prompt_tokens))) } else { Ok((tokens, max_tokens)) }
    }

    /// Takes what the computation gave for one answer.
    fn take(&mut self, key: Key, entry: usize, events: &mut Vec<Event>) {
        let Some(request) = self.requests.get_mut(&key.id) else { return };
        let progress = match self.model.logits(entry) {
            Some(logits) => request.take(key.choice, logits, self.model.vocabulary(), &mut self.scratch, events),
            None => Progress::Stuck(NoToken::NotNumbers),
        };
        match progress {
            Progress::Goes(token) => {
                if !self.scheduler.generated(key, token) {
                    request.end(key.choice, FinishReason::Length, events);
                }
            }
            Progress::Ended => self.scheduler.end(key),
            Progress::Stuck(NoToken::Form) => {
                self.fail(key.id, Failure::FormStuck, events);
                return;
            }
            Progress::Stuck(NoToken::NotNumbers) => {
                self.fail(key.id, Failure::EngineFailed, events);
                // Whatever made it so must not reach others through what is kept.
                self.scheduler.forget(None);
                return;
            }
        }
        if let Some(done) = request.done() {
            self.requests.remove(&key.id);
            events.push(done);
        }
    }

    fn fail(&mut self, id: u64, code: Failure, events: &mut Vec<Event>) {
        if let Some(request) = self.requests.remove(&id) {
            self.scheduler.remove(id);
            events.push(Event::Failed { id, code, prompt_tokens: Some(request.prompt_tokens()) });
        }
    }

    /// The cache cannot be relied on any more: what is in it ends, what waits goes on.
    fn fail_running(&mut self, code: Failure, events: &mut Vec<Event>) {
        for id in self.scheduler.running_requests() {
            self.fail(id, code, events);
        }
        self.scheduler.forget(None);
    }

    /// Passes on what happened to the cache; wipes it when nothing is left in it.
    fn tidy(&mut self) {
        for change in self.scheduler.take_changes() {
            self.change(change);
        }
        if self.is_stained && self.scheduler.cells().is_empty() {
            self.model.wipe();
            self.scratch.zeroize();
            self.is_stained = false;
        }
    }

    fn change(&mut self, change: Change) {
        self.model.change(change);
    }
}

impl<M: Model> Engine for Batching<M> {
    fn facts(&self) -> ModelFacts {
        self.model.facts()
    }

    fn admit(&mut self, request: Generate) -> Result<u32, Refused> {
        if self.requests.contains_key(&request.id) {
            return Err(Failure::DuplicateId.into());
        }
        request.check().map_err(|_| Failure::InvalidRequest)?;
        let vocabulary = self.model.facts().vocab;
        if request.logit_bias.iter().any(|bias| bias.token >= vocabulary) {
            return Err(Failure::UnknownToken.into());
        }
        let form = form(&request.form)?;
        let (tokens, max_tokens) = self.prompt(&request)?;
        let prompt_tokens = u32::try_from(tokens.len()).map_err(|_| Failure::ContextOverflow)?;
        if !self.scheduler.admit(request.id, request.tenant, &Arc::from(tokens), request.choices, max_tokens) {
            return Err(Refused { code: Failure::QueueFull, prompt_tokens: Some(prompt_tokens) });
        }
        self.requests.insert(request.id, Request::new(&request, prompt_tokens, form.as_ref()));
        Ok(prompt_tokens)
    }

    fn cancel(&mut self, id: u64, events: &mut Vec<Event>) {
        self.fail(id, Failure::Cancelled, events);
        self.tidy();
    }

    fn forget(&mut self, tenant: Tenant) {
        self.scheduler.forget(Some(tenant));
        self.tidy();
    }

    fn step(&mut self, events: &mut Vec<Event>) {
        let plan = self.scheduler.plan();
        for change in plan.changes {
            self.change(change);
        }
        for (key, length) in plan.reused {
            if let Some(request) = self.requests.get_mut(&key.id).filter(|_| key.choice == 0) {
                request.cached_tokens = request.cached_tokens.max(length.min(request.prompt_tokens()));
            }
        }
        if plan.entries.is_empty() {
            return;
        }
        self.is_stained = true;
        match self.model.compute(&plan.entries) {
            Ok(()) => {
                for (index, entry) in plan.entries.iter().enumerate() {
                    if let Some(key) = entry.sample {
                        self.take(key, index, events);
                    }
                }
            }
            Err(code) => self.fail_running(code, events),
        }
        self.tidy();
    }

    fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }
}

/// What holds an answer to a form, at its start; nothing for a free one.
///
/// # Errors
/// [`Failure::InvalidRequest`]: the schema is none, or too large.
pub fn form(form: &Form) -> Result<Option<Matcher>, Failure> {
    let grammar = |schema: &str| {
        let schema = Json::parse(schema.as_bytes()).map_err(|_| Failure::InvalidRequest)?;
        Grammar::of_schema(&schema).map_err(|_| Failure::InvalidRequest)
    };
    let grammar = match form {
        Form::Free => return Ok(None),
        Form::JsonObject => Grammar::of_any_object(),
        Form::JsonSchema(schema) => grammar(schema)?,
        Form::ToolCalls(schema) => grammar(schema)?.within_tool_calls(),
    };
    Matcher::new(grammar).map(Some).map_err(|_| Failure::InvalidRequest)
}
