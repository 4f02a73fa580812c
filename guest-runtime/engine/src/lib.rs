// SPDX-License-Identifier: Apache-2.0
//! The inference engine process of the guest.
//!
//! It loads a GGUF model from guest memory with llama.cpp, listens on a Unix socket and answers the one client that
//! connects, [`serve`](engine_protocol). It holds no key, has no network, and after the model is loaded its own
//! seccomp filter kills it for anything but computing and speaking on that socket: a bug in 200,000 lines of C++
//! reaches the requests in flight and nothing else.
//!
//! With the feature `cuda` it computes on NVIDIA GPUs ([`Gpus`]) and ends where there are none; its filter is wider then.
//!
//! [`batching`] decides what is computed, picks tokens and makes text; [`LlamaModel`] is llama.cpp behind it.
//! [`serve_client`] of crate `engine-process` serves it.

mod compact;
mod gpus;
mod llama;
mod prompt;
mod room;
mod runs;

pub use batching::{Engine, Refused};
pub use engine_process::{SeccompError, ServeError, Stage, accept_one, confine, confine_with_gpus, serve_client};
pub use gpus::Gpus;
pub use llama::{LlamaModel, LoadError, MAX_ROWS, ROWS, Settings, Weights, batching_engine, parts};
