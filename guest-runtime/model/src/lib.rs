// SPDX-License-Identifier: Apache-2.0
//! Encrypted model packs: made by a model's owner, stored by anybody, opened in a guest.
//!
//! A pack is a public [`PackIndex`] (`pack.json`) and encrypted objects. Object 0 holds the [`Manifest`]; the others
//! hold the files' bytes. The BLAKE3 of the manifest's plaintext is the model's *identity*: it names exactly these
//! files and does not depend on the key. `docs/model-pack.md` has the format.
//!
//! - [`create`] makes a pack from a directory, without root, in constant memory.
//! - [`disk::compose`] lays a pack out for a raw disk; it needs no key.
//! - [`unpack`] is the guest's side: it decrypts into a directory and verifies everything against an expected
//!   identity. [`verify`] does the same without writing.
//!
//! A verified pack says what its owner packed. It does not say that the model is good, nor who packed it: that
//! stands in the policy that names the identity.

pub mod disk;

mod create;
mod error;
mod index;
mod key;
mod manifest;
mod open;
mod pipeline;
mod source;
mod stream;

pub use create::{CreateError, Created, Labels, Limits, create, input_size};
pub use error::PackError;
pub use index::{KeyName, Object, PackIndex};
pub use key::{Key, KeyError};
pub use manifest::{FileEntry, Manifest};
pub use open::{Ciphertexts, Opened, open_manifest, unpack, verify, verify_ciphertext};
pub use source::{Directory, INDEX_FILE, ReadAt, Source, object_file};

/// Told how many bytes were worked through since the last call.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);
