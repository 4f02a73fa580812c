// SPDX-License-Identifier: Apache-2.0
//! What a witness does (C2SP tlog-witness): it remembers one head per log and cosigns only extensions of it.

use types::{Refusal, Sha256Digest};

use super::checkpoint::{Checkpoint, CheckpointError, SignedCheckpoint};
use super::merkle::{ProofError, verify_consistency};
use super::note::{LogKey, WitnessSigner};

/// The head that a witness cosigned last, to be kept durably **before** the cosignature is handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessState {
    /// Size of the tree.
    pub size: u64,
    /// Root of the tree.
    pub root: Sha256Digest,
}

/// Why a witness refused to cosign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WitnessError {
    /// The checkpoint itself.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The new head does not extend the remembered one.
    #[error("the checkpoint does not extend the one cosigned before: {0}")]
    Consistency(#[from] ProofError),
}

impl WitnessError {
    /// Stable code of the reason.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Checkpoint(_) => "witness_checkpoint",
            Self::Consistency(ProofError::Shrunk { .. }) => "witness_log_shrunk",
            Self::Consistency(_) => "witness_log_forked",
        }
    }

    /// The reason with its field and fix.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let fix = match self {
            Self::Checkpoint(_) => "ask with a checkpoint that the log signed",
            Self::Consistency(_) => {
                "give the consistency proof from the size cosigned last; if there is none, the log's history was changed"
            }
        };
        Refusal::new(self.code(), "checkpoint", self.to_string(), fix)
    }
}

/// Cosigns `note` when the log signed it and it extends `state`; gives the new checkpoint and the state to keep.
/// `proof` is the consistency proof from the remembered size, empty where there is none.
///
/// # Errors
/// [`WitnessError`]; then nothing was signed.
pub fn cosign(
    witness: &WitnessSigner,
    state: Option<&WitnessState>,
    note: &str,
    log: &LogKey,
    proof: &[Sha256Digest],
    now: u64,
) -> Result<(SignedCheckpoint, WitnessState), WitnessError> {
    let checkpoint = SignedCheckpoint::verify(note, log)?;
    let (size, root) = (checkpoint.head().size(), *checkpoint.head().root());
    match state {
        Some(known) => verify_consistency(known.size, &known.root, size, &root, proof)?,
        None => verify_consistency(0, &super::merkle::empty_root(), size, &root, proof)?,
    }
    let line = witness.line(&text_of(&checkpoint)?, now);
    Ok((checkpoint.with_line(&line), WitnessState { size, root }))
}

impl From<&Checkpoint> for WitnessState {
    fn from(head: &Checkpoint) -> Self {
        Self { size: head.size(), root: *head.root() }
    }
}

fn text_of(checkpoint: &SignedCheckpoint) -> Result<String, CheckpointError> {
    Ok(super::note::Note::parse(checkpoint.note())?.text().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{LogSigner, WitnessKey, leaf_hash, node_hash};

    fn head(signer: &LogSigner, leaves: &[&[u8]]) -> String {
        let hashes: Vec<_> = leaves.iter().map(|l| leaf_hash(l)).collect();
        let root = match hashes.as_slice() {
            [a] => *a,
            [a, b] => node_hash(a, b),
            _ => panic!("one or two"),
        };
        Checkpoint::new("log", hashes.len() as u64, root).sign(signer).unwrap()
    }

    #[test]
    fn forked_and_shrunk_heads_get_no_cosignature() {
        let log = LogSigner::new("log", &[1; 32]).unwrap();
        let witness = WitnessSigner::new("witness", &[2; 32]).unwrap();
        let (_, state) = cosign(&witness, None, &head(&log, &[b"a"]), log.public(), &[], 5).unwrap();
        let two = head(&log, &[b"a", b"b"]);
        let proof = [leaf_hash(b"b")];
        let (checkpoint, state) = cosign(&witness, Some(&state), &two, log.public(), &proof, 6).unwrap();
        let keys = [witness.public().clone()];
        assert_eq!(checkpoint.verify_witnesses(&keys, 1), Ok(()));

        let refused = |note: &str, proof: &[Sha256Digest]| cosign(&witness, Some(&state), note, log.public(), proof, 7);
        assert_eq!(
            refused(&head(&log, &[b"a"]), &[]),
            Err(WitnessError::Consistency(ProofError::Shrunk { old: 2, new: 1 }))
        );
        let fork = head(&log, &[b"a", b"c"]);
        assert_eq!(refused(&fork, &[]), Err(WitnessError::Consistency(ProofError::Root)));
        assert_eq!(refused(&fork, &[leaf_hash(b"c")]), Err(WitnessError::Consistency(ProofError::Length)));
    }

    #[test]
    fn one_witness_under_two_names_counts_once() {
        let log = LogSigner::new("log", &[1; 32]).unwrap();
        let (a, b) = (WitnessSigner::new("a", &[2; 32]).unwrap(), WitnessSigner::new("b", &[2; 32]).unwrap());
        let (once, _) = cosign(&a, None, &head(&log, &[b"a"]), log.public(), &[], 5).unwrap();
        let (twice, _) = cosign(&b, None, once.note(), log.public(), &[], 5).unwrap();
        let keys: Vec<WitnessKey> = vec![a.public().clone(), b.public().clone(), a.public().clone()];
        assert_eq!(twice.verify_witnesses(&keys, 2), Err(CheckpointError::Witnesses { needed: 2, found: 1 }));
    }
}
