// SPDX-License-Identifier: Apache-2.0
//! The OpenAI-style API of the guest.
//!
//! This process terminates TLS and speaks HTTP; it has no key and no quote device. Signatures of the handshake,
//! proofs and receipts come from the attester, answers from the engine, both over Unix sockets. It writes no log: what
//! it knows of a request leaves it only inside the client's own connection.
//!
//! A connection must ask for a proof (`POST /v1/attestation`) before anything else is answered. That makes careless
//! clients fail loudly; whether the proof convinces is the client's decision alone.
//!
//! Where the model has tenants, only who sends one of their API keys is answered anything but proofs.

mod accounts;
mod answer;
mod api;
mod attester;
mod buckets;
mod choice;
mod client_address;
mod completion;
mod connection;
mod drain;
mod embeddings;
mod engine;
mod error;
mod identities;
mod limits;
mod messages;
mod order;
mod parse;
mod receipts;
mod request;
mod sandbox;
mod shares;
mod stall;
mod tools;

pub use accounts::TenantsDocument;
pub use attester::AttesterError;
pub use connection::{Ended, Options, Server, StartError};
pub use drain::DrainLink;
pub use engine::EngineError;
pub use limits::Limits;
pub use order::{BodyRefused, order};
pub use sandbox::{ConfineError, confine};
