// SPDX-License-Identifier: Apache-2.0
//! Another inference server in the engine's place.
//!
//! The process speaks [`engine_protocol`] to `serve`, as the engine does. Behind it stands a child that it starts and
//! watches: a server such as vLLM with an OpenAI-style API on a Unix socket, which [`Server`] describes. Each request
//! becomes two of the server's: the prompt's tokens ([`/tokenize`]), which are counted and checked, then a streamed
//! completion of exactly these tokens.
//!
//! The server is not believed. What it sends has caps in bytes and time; counts, indices and reasons are compared with the
//! request; a form that was asked for is followed byte by byte ([`output_schema`]) before a byte of it is passed on; its
//! words, in errors or on its standard streams, reach nobody. When it dies or falls silent its requests end with
//! [`Failure::EngineFailed`], and it is started again.
//!
//! What this does not establish: that the server computes with the model's weights, that its tokenizer is the model's, or
//! that it keeps tenants' prefixes apart as it is told to. That it is the program it should be is for the image that holds it.
//!
//! [`/tokenize`]: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
//! [`Failure::EngineFailed`]: engine_protocol::Failure::EngineFailed

mod answers;
mod ask;
mod child;
mod confinement;
mod description;
mod exchange;
mod lines;
mod model;
mod serving;
mod work;

pub use answers::Answers;
pub use confinement::{ConfineError, confine};
pub use description::{DescriptionError, MAX_DESCRIPTION_BYTES, Places, Server};
pub use lines::{Lines, MAX_LINE, MAX_STREAM, NotALine};
pub use model::{Model, ModelError};
pub use serving::{RunError, run};
