// SPDX-License-Identifier: Apache-2.0
//! Continuous batching, for any model.
//!
//! [`Scheduler`] decides what is computed in each step: one token for every running answer, and parts of prompts in what
//! is left of the step's budget, in fair shares. [`Cells`] mirrors the model's key-value cache exactly, so that a step
//! never needs more than there is. [`Sampler`] picks tokens, and holds an answer to a form. [`Answer`] turns tokens into
//! text. [`Batching`] joins them to an [`Engine`], over whatever implements [`Model`].
//!
//! No clock, no thread, no randomness, no IO: the same requests in the same order give the same steps.

mod cells;
mod engine;
mod model;
mod request;
mod sampler;
mod scheduler;
mod text;
mod weights;

pub use cells::{Cells, Slot};
pub use engine::{Batching, Engine, Refused, form};
pub use model::{Model, Vocabulary};
pub use sampler::{NoToken, Sampler, Scratch};
pub use scheduler::{Capacity, Change, Entry, Key, Plan, Scheduler};
pub use text::{Answer, Held};

/// A token of the model's vocabulary.
pub type Token = u32;
