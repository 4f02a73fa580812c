// SPDX-License-Identifier: Apache-2.0
//! JSON Schemas as grammars of bytes, so that a model's answer can be held to one.
//!
//! [`Json`] reads JSON as untrusted text: it keeps the order of fields, refuses duplicates and deep nesting.
//! [`Grammar::of_schema`] turns a documented subset of JSON Schema into rules over bytes; what it does not enforce it
//! refuses by name. A [`Matcher`] follows an answer byte by byte and says which continuation is allowed: what it has
//! accepted to its end is JSON that the schema accepts.
//!
//! Both ends use this crate: `serve` to refuse a schema before it costs anything, the engine to hold the answer to it.
//! Nothing here panics or recurses on input but for nested JSON, at most [`MAX_DEPTH`] levels; all sizes have caps. It establishes form only, never sense.

mod build;
mod expand;
mod grammar;
mod json;
mod matcher;
mod schema;

pub use grammar::Grammar;
pub use json::{Json, JsonError, MAX_DEPTH};
pub use matcher::Matcher;
pub use schema::{MAX_ENUM, MAX_PROPERTIES, MAX_REPEAT, MAX_RULES, SchemaError};
