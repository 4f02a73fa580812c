// SPDX-License-Identifier: Apache-2.0
//! Encrypted model packs on a host.
//!
//! A pack is named by its **root**, the BLAKE3 of its `pack.json`, which holds the BLAKE3 of every object. So a pack can be
//! fetched from anybody: each object is hashed while it arrives, and what is not as the root says is not kept. A fetch
//! that was cut goes on where it stopped, from the same source or another.
//!
//! A pack is stored once, laid out as the disk that guests read (`docs/model-pack.md`), and given to any number of guests
//! as it is. Who uses it holds a lock on it ([`HeldPack`]); packs that nobody holds make room for others, the one that was
//! used longest ago first.
//!
//! It holds ciphertext only. That a pack is the model that somebody means, its key and a guest establish, not this crate.

mod error;
mod fetch;
mod partial;
mod pipe;
mod source;
mod store;

pub use error::{CacheError, SourceError};
pub use fetch::{FetchProgress, Request};
pub use source::{Bucket, BucketStyle, CredentialsError, Limits, Source, SourceAddressError, StoreFault};
pub use store::{Cache, Entry, HeldPack, root_of};
