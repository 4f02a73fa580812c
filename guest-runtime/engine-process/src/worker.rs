// SPDX-License-Identifier: Apache-2.0
//! What computes.

use batching::Engine;
use engine_protocol::{Command, Event, Failure, ModelFacts};

/// Takes commands and does its work in bounded pieces. Not thread-safe: one thread owns it.
pub trait Worker {
    /// What the loaded model can do.
    fn facts(&self) -> ModelFacts;

    /// Takes a command and adds what it answers at once to `events`. Nothing is computed yet.
    fn obey(&mut self, command: Command, events: &mut Vec<Event>);

    /// Does one bounded piece of work and adds what happened to `events`.
    fn step(&mut self, events: &mut Vec<Event>);

    /// Whether [`Worker::step`] has nothing to do.
    fn is_idle(&self) -> bool;
}

impl<E: Engine> Worker for E {
    fn facts(&self) -> ModelFacts {
        Engine::facts(self)
    }

    fn obey(&mut self, command: Command, events: &mut Vec<Event>) {
        match command {
            Command::Generate(request) => {
                let id = request.id;
                events.push(match self.admit(request) {
                    Ok(prompt_tokens) => Event::Started { id, prompt_tokens },
                    Err(refused) => Event::Failed { id, code: refused.code, prompt_tokens: refused.prompt_tokens },
                });
            }
            Command::Embed(embed) => {
                events.push(Event::Failed { id: embed.id, code: Failure::OtherWork, prompt_tokens: None });
            }
            Command::Cancel { id } => self.cancel(id, events),
            Command::Forget { tenant } => self.forget(tenant),
        }
    }

    fn step(&mut self, events: &mut Vec<Event>) {
        Engine::step(self, events);
    }

    fn is_idle(&self) -> bool {
        Engine::is_idle(self)
    }
}
