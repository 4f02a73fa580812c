// SPDX-License-Identifier: Apache-2.0
//! The proof that an entry stands in a log, as it travels in answers.

use std::sync::{Arc, Mutex, PoisonError};

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

/// Verifies proofs of one log. A checkpoint covers many entries: the signature of the one that was verified last is
/// not verified again, byte by byte the same note.
#[derive(Debug)]
pub struct ProofVerifier {
    log: LogKey,
    last: Mutex<Option<Arc<SignedCheckpoint>>>,
}

impl ProofVerifier {
    /// For the log with this key.
    #[must_use]
    pub fn new(log: LogKey) -> Self {
        Self { log, last: Mutex::default() }
    }

    /// Verifies path and log signature.
    ///
    /// # Errors
    /// [`EntryProofError`].
    pub fn verify(&self, proof: &EntryProof) -> Result<(), EntryProofError> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(last) = last.filter(|last| last.note() == proof.checkpoint) {
            return proof.check_path(last.head());
        }
        let checkpoint = proof.verify(&self.log)?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(checkpoint));
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{LogSigner, leaf_hash, node_hash};

    fn proof(log: &LogSigner, second: &[u8]) -> EntryProof {
        let (first, leaf) = (leaf_hash(b"first"), leaf_hash(second));
        let head = Checkpoint::new(log.public().origin(), 2, node_hash(&first, &leaf));
        let checkpoint = head.sign(log).unwrap();
        EntryProof { index: 1, leaf, tree_size: 2, path: vec![first], checkpoint }
    }

    #[test]
    fn a_known_checkpoint_proves_its_own_entries_alone() {
        let log = LogSigner::new("example.invalid/log", &[1; 32]).unwrap();
        let verifier = ProofVerifier::new(log.public().clone());
        let good = proof(&log, b"second");
        for _ in 0..2 {
            assert_eq!(verifier.verify(&good), Ok(()));
            // Another entry, another place, another size under the note that is known.
            let changed = |change: &dyn Fn(&mut EntryProof)| {
                let mut proof = good.clone();
                change(&mut proof);
                verifier.verify(&proof)
            };
            assert!(changed(&|proof| proof.leaf = leaf_hash(b"third")).is_err());
            assert!(changed(&|proof| proof.index = 0).is_err());
            assert!(changed(&|proof| proof.path = vec![]).is_err());
            assert_eq!(changed(&|proof| proof.tree_size = 3), Err(EntryProofError::Size));
            // A note that is another by one byte, or another log's.
            assert!(changed(&|proof| proof.checkpoint = proof.checkpoint.replacen('2', "3", 1)).is_err());
            let other = LogSigner::new("example.invalid/log", &[2; 32]).unwrap();
            assert!(verifier.verify(&proof(&other, b"second")).is_err());
            assert_eq!(verifier.verify(&proof(&log, b"later")), Ok(()));
        }
    }
}
