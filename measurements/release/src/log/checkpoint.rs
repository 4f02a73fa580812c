// SPDX-License-Identifier: Apache-2.0
//! Signed tree heads (C2SP tlog-checkpoint).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use types::Sha256Digest;

use super::note::{LogKey, LogSigner, Note, NoteError, WitnessKey, count_cosignatures};

/// The head of a log: its origin, size and root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    origin: String,
    size: u64,
    root: Sha256Digest,
}

/// Why a checkpoint was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The signed note around it.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// Not origin, size and root, one a line.
    #[error("not a checkpoint: {0}")]
    Form(&'static str),
    /// Signed for another log.
    #[error("the checkpoint is of another log")]
    Origin,
    /// Too few of the policy's witnesses cosigned.
    #[error("{found} of the policy's witnesses cosigned, {needed} are needed")]
    Witnesses {
        /// The policy's threshold.
        needed: usize,
        /// Valid cosignatures by different witnesses.
        found: usize,
    },
}

impl Checkpoint {
    /// Makes a head.
    #[must_use]
    pub fn new(origin: &str, size: u64, root: Sha256Digest) -> Self {
        Self { origin: origin.to_owned(), size, root }
    }

    /// The log's origin.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Number of entries.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The root hash.
    #[must_use]
    pub const fn root(&self) -> &Sha256Digest {
        &self.root
    }

    /// Signs the head: the text of the signed note.
    ///
    /// # Errors
    /// [`CheckpointError::Origin`] when the signer is another log's.
    pub fn sign(&self, signer: &LogSigner) -> Result<String, CheckpointError> {
        if signer.public().origin() != self.origin {
            return Err(CheckpointError::Origin);
        }
        Ok(signer.sign(&format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root.as_bytes())))?)
    }

    /// Reads the head out of a note **without verifying any signature**.
    ///
    /// # Errors
    /// [`CheckpointError::Note`] or [`CheckpointError::Form`]. Extension lines are refused: our logs have none.
    pub fn from_note_unverified(note: &Note<'_>) -> Result<Self, CheckpointError> {
        let mut lines = note.text().split_terminator('\n');
        let (Some(origin), Some(size), Some(root), None) = (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(CheckpointError::Form("three lines"));
        };
        let number: u64 = size.parse().map_err(|_| CheckpointError::Form("size"))?;
        if number.to_string() != size || number > i64::MAX as u64 {
            return Err(CheckpointError::Form("size"));
        }
        let decoded = STANDARD.decode(root).map_err(|_| CheckpointError::Form("root"))?;
        let root = Sha256Digest::from_slice(&decoded).map_err(|_| CheckpointError::Form("root"))?;
        if origin.is_empty() {
            return Err(CheckpointError::Form("origin"));
        }
        Ok(Self::new(origin, number, root))
    }
}

/// A head whose log signature was verified. The note is kept, with all its cosignatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCheckpoint {
    head: Checkpoint,
    note: String,
}

impl SignedCheckpoint {
    /// Reads a checkpoint and verifies the log's signature.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn verify(note: &str, log: &LogKey) -> Result<Self, CheckpointError> {
        let parsed = Note::parse(note)?;
        let head = Checkpoint::from_note_unverified(&parsed)?;
        if head.origin != log.origin() {
            return Err(CheckpointError::Origin);
        }
        log.verify(&parsed)?;
        Ok(Self { head, note: note.to_owned() })
    }

    /// The verified head.
    #[must_use]
    pub const fn head(&self) -> &Checkpoint {
        &self.head
    }

    /// The signed note.
    #[must_use]
    pub fn note(&self) -> &str {
        &self.note
    }

    /// Checks that at least `needed` different keys of `witnesses` cosigned. What it does not establish: when they
    /// did, and that they are run by different people.
    ///
    /// # Errors
    /// [`CheckpointError::Witnesses`].
    pub fn verify_witnesses(&self, witnesses: &[WitnessKey], needed: usize) -> Result<(), CheckpointError> {
        let found = count_cosignatures(&Note::parse(&self.note)?, witnesses);
        if found >= needed { Ok(()) } else { Err(CheckpointError::Witnesses { needed, found }) }
    }

    pub(super) fn with_line(mut self, line: &str) -> Self {
        self.note.push_str(line);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed() -> (LogSigner, String) {
        let signer = LogSigner::new("example.invalid/log", &[1; 32]).unwrap();
        let note = Checkpoint::new("example.invalid/log", 9, Sha256Digest::of(b"r")).sign(&signer).unwrap();
        (signer, note)
    }

    #[test]
    fn only_the_logs_own_signature_counts() {
        let (signer, note) = signed();
        assert_eq!(SignedCheckpoint::verify(&note, signer.public()).unwrap().head().size(), 9);
        let other = LogSigner::new("example.invalid/log", &[2; 32]).unwrap();
        assert!(matches!(
            SignedCheckpoint::verify(&note, other.public()),
            Err(CheckpointError::Note(NoteError::NotSigned(_)))
        ));
        let elsewhere = LogSigner::new("example.invalid/other", &[1; 32]).unwrap();
        assert_eq!(SignedCheckpoint::verify(&note, elsewhere.public()), Err(CheckpointError::Origin));
        let larger = note.replace("\n9\n", "\n10\n");
        assert!(matches!(
            SignedCheckpoint::verify(&larger, signer.public()),
            Err(CheckpointError::Note(NoteError::Signature(_)))
        ));
    }

    #[test]
    fn heads_have_one_spelling() {
        let (signer, _) = signed();
        let root = STANDARD.encode([0; 32]);
        for text in [
            format!("example.invalid/log\n09\n{root}\n"),
            format!("example.invalid/log\n+9\n{root}\n"),
            format!("example.invalid/log\n9\n{root}\nextension\n"),
            format!("example.invalid/log\n9\n{}\n", STANDARD.encode([0; 31])),
            format!("example.invalid/log\n18446744073709551615\n{root}\n"),
            "example.invalid/log\n9\n".to_owned(),
        ] {
            let note = signer.sign(&text).unwrap();
            assert!(
                matches!(SignedCheckpoint::verify(&note, signer.public()), Err(CheckpointError::Form(_))),
                "{text}"
            );
        }
    }
}
