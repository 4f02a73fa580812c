// SPDX-License-Identifier: Apache-2.0
//! The embedding process of the guest.
//!
//! It loads a BERT model (MiniLM-class: `model.safetensors`, `config.json`, `tokenizer.json`) from guest memory and turns
//! texts into vectors of length 1, over the same socket protocol as the engine ([`engine_protocol`]) and under the same
//! confinement ([`engine_process`]): no key, no network, and once a client is served nothing but computing and speaking.
//!
//! Each text is computed by itself, without filling: its vector does not depend on what is computed beside it.

mod bert;
mod config;
mod load;
mod text;
mod worker;

pub use bert::Bert;
pub use config::{Config, Pooling};
pub use load::{Embedder, LoadError};
