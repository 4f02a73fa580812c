// SPDX-License-Identifier: Apache-2.0
//! What `serve` and the inference engine say to each other over a Unix stream socket.
//!
//! Each message is one frame: its length in bytes (u32, big endian, at most [`MAX_FRAME`]), then that many bytes of
//! JSON. The engine speaks first ([`Event::Hello`]); then `serve` sends [`Command`]s and the engine answers with
//! [`Event`]s. Requests carry an `id` that `serve` chooses and that is unique among the requests in flight. Every
//! admitted request ends with exactly one [`Event::Done`] or [`Event::Failed`]. What a model is for ([`Work`]) stands in
//! the first message.
//!
//! Both ends treat the other as hostile: the engine runs C++ over a user's text, `serve` reads the network. Types that
//! hold text of a user print their sizes only, so that no log line can hold a prompt.
//!
//! This crate does no IO: [`encode`] makes a frame, [`Decoder`] takes bytes as they come.

mod embed;
mod frame;
mod message;

pub use embed::{Embed, Input, MAX_DIMENSIONS, MAX_EMBED_TOKENS, MAX_INPUTS};
pub use frame::{Decoder, EncodeError, FrameError, MAX_FRAME, encode};
pub use message::{
    Bias, Command, Event, Failure, FinishReason, Form, Generate, InvalidRequest, MAX_BIASES, MAX_CHOICES, MAX_MESSAGES,
    MAX_SCHEMA_BYTES, MAX_STOP_BYTES, MAX_STOPS, MAX_TEXT_BYTES, MAX_TOP_LOGPROBS, Message, ModelFacts,
    PROTOCOL_VERSION, Prompt, Role, Sampling, Tenant, TokenLogprob, TokenLogprobs, Work,
};
