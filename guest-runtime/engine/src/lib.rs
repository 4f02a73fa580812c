// SPDX-License-Identifier: Apache-2.0
//! The inference engine process of the guest.
//!
//! It loads a GGUF model from guest memory with llama.cpp, listens on a Unix socket and answers the one client that
//! connects, [`serve`](engine_protocol). It holds no key, has no network, and after the model is loaded its own
//! seccomp filter kills it for anything but computing and speaking on that socket: a bug in 200,000 lines of C++
//! reaches the requests in flight and nothing else.
//!
//! [`Engine`] is what a scheduler offers: admit requests, advance all of them by a step. [`LlamaEngine`] runs one
//! sequence at a time; [`serve_client`] needs no change for one that batches.

mod llama;
mod sandbox;
mod serving;
mod text;

pub use linux_sys::seccomp::SeccompError;
pub use llama::{LlamaEngine, LoadError, Model, Settings};
pub use sandbox::{Stage, confine};
pub use serving::{ServeError, serve_client};
pub use text::Answer;

use engine_protocol::{Event, Failure, Generate, ModelFacts};

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

    /// Ends a request, waiting or running, with [`engine_protocol::FinishReason::Cancelled`]. Unknown ids are ignored.
    fn cancel(&mut self, id: u64, events: &mut Vec<Event>);

    /// Does one bounded piece of work (a part of a prompt, or a token for each running request) and adds what
    /// happened to `events`.
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
