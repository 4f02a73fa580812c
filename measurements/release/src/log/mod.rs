// SPDX-License-Identifier: Apache-2.0
//! An append-only Merkle log after C2SP tlog-tiles, without storage of its own.
//!
//! [`merkle`] hashes and checks proofs (RFC 6962), [`tile`] names tiles, [`tree`] makes proofs from tiles,
//! [`edge`] appends, [`note`] signs and reads notes, [`checkpoint`] is the signed tree head, [`witness`] cosigns.
//! Written here because the published crates for it index slices of untrusted length without checks, know no
//! cosignatures and would bring second versions of the hash and signature crates.

pub mod checkpoint;
pub mod edge;
pub mod merkle;
pub mod note;
pub mod proof;
pub mod tile;
pub mod tree;
pub mod witness;

pub use checkpoint::{Checkpoint, CheckpointError, SignedCheckpoint};
pub use edge::{Edge, EdgeError};
pub use merkle::{ProofError, leaf_hash, node_hash, verify_consistency, verify_inclusion};
pub use note::{LogKey, LogSigner, NoteError, WitnessKey, WitnessSigner};
pub use proof::{EntryProof, EntryProofError, ProofVerifier};
pub use tile::{TileError, TilePath, Tiles};
pub use tree::Tree;
pub use witness::{WitnessError, WitnessState, cosign};
