// SPDX-License-Identifier: Apache-2.0
//! The proof that an entry stands in a log, as it travels in answers.

use serde::{Deserialize, Serialize};
use types::Sha256Digest;

use super::checkpoint::{Checkpoint, CheckpointError, SignedCheckpoint};
use super::merkle::{MAX_PROOF, ProofError, verify_inclusion};
use super::note::{LogKey, Note};

/// Proof that `leaf` is entry `index` of a log, as of a checkpoint with `tree_size` entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntryProof {
    /// Index of the entry.
    pub index: u64,
    /// SHA-256(0x00 ‖ entry).
    pub leaf: Sha256Digest,
    /// Size of the checkpoint's tree.
    pub tree_size: u64,
    /// Inclusion path, the leaf's sibling first, at most 64 hashes.
    pub path: Vec<Sha256Digest>,
    /// The signed checkpoint, with the cosignatures there are so far.
    pub checkpoint: String,
}

/// Why a proof was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryProofError {
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The path.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// `tree_size` is not the checkpoint's.
    #[error("tree_size is not the checkpoint's")]
    Size,
}

impl EntryProof {
    /// Verifies path and log signature.
    ///
    /// # Errors
    /// [`EntryProofError`].
    pub fn verify(&self, log: &LogKey) -> Result<SignedCheckpoint, EntryProofError> {
        let checkpoint = SignedCheckpoint::verify(&self.checkpoint, log)?;
        self.check_path(checkpoint.head())?;
        Ok(checkpoint)
    }

    /// Verifies the path against the checkpoint **without verifying the log's signature**: for a reader that
    /// got the proof over an authenticated connection and does not know the log's key.
    ///
    /// # Errors
    /// [`EntryProofError`].
    pub fn verify_path_only(&self) -> Result<Checkpoint, EntryProofError> {
        let note = Note::parse(&self.checkpoint).map_err(CheckpointError::Note)?;
        let head = Checkpoint::from_note_unverified(&note)?;
        self.check_path(&head)?;
        Ok(head)
    }

    fn check_path(&self, head: &Checkpoint) -> Result<(), EntryProofError> {
        if head.size() != self.tree_size {
            return Err(EntryProofError::Size);
        }
        if self.path.len() > MAX_PROOF {
            return Err(ProofError::Length.into());
        }
        Ok(verify_inclusion(&self.leaf, self.index, self.tree_size, &self.path, head.root())?)
    }
}
