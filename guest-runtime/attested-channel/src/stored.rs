// SPDX-License-Identifier: Apache-2.0
//! A connection proof that is kept: it commits to the receipts that a guest had signed, and can be looked at later.

use serde::{Deserialize, Serialize};
use types::{CanonicalError, ConnectionProof, Document, Evidence, Hex32, Refusal, Sha256Digest};

use crate::{Leaf, PathError, Quoted, ReportDataInputs, verify_path};

/// A proof with what its leaf is made of (`chrysalis/stored-proof/v1`). The evidence document that it names lies apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredProof {
    /// `chrysalis/stored-proof/v1`.
    pub schema: String,
    /// What the client asked with.
    pub challenge: Hex32,
    /// The exporter of the client's connection for it. Its SHA-256 is the `channel` of that connection's receipts.
    pub binding: Hex32,
    /// What the guest answered.
    pub proof: ConnectionProof,
}

impl Document for StoredProof {
    const SCHEMA: &'static str = "chrysalis/stored-proof/v1";
    const MAX_BYTES: usize = ConnectionProof::MAX_BYTES + 1024;

    fn schema(&self) -> &str {
        &self.schema
    }
}

/// Why a stored proof does not belong to an evidence document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoredProofError {
    /// It names another document.
    #[error("the proof names the evidence {expected}; found {found}")]
    Evidence {
        /// As the proof says.
        expected: Sha256Digest,
        /// Of the document that was given.
        found: Sha256Digest,
    },
    /// Challenge and binding are not in the tree.
    #[error("challenge and binding are no leaf under the quoted root: {0}")]
    Leaf(#[from] PathError),
    /// The quote was made for something else.
    #[error("the quote's REPORTDATA is not that of this evidence with this proof's receipts and freshness")]
    ReportData,
    /// A part has no canonical form.
    #[error(transparent)]
    Malformed(#[from] CanonicalError),
}

impl StoredProofError {
    /// As a refusal with its stable code.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let (code, field, fix) = match self {
            Self::Evidence { .. } => {
                ("evidence_digest_mismatch", "proof.evidence", "give the evidence that the proof names")
            }
            Self::Leaf(_) => ("binding_mismatch", "proof.path", "give the proof as it was stored"),
            Self::ReportData => ("report_data_mismatch", "report_data", "give the proof as it was stored"),
            Self::Malformed(_) => ("proof_malformed", "proof", "give the proof as it was stored"),
        };
        Refusal::new(code, field, self.to_string(), fix)
    }
}

impl StoredProof {
    /// Keeps what a connection was proven with.
    #[must_use]
    pub fn new(challenge: [u8; 32], binding: [u8; 32], proof: ConnectionProof) -> Self {
        Self { schema: Self::SCHEMA.to_owned(), challenge: Hex32::new(challenge), binding: Hex32::new(binding), proof }
    }

    /// Checks that the proof is one over this evidence document and over the stored challenge and binding. Whether the
    /// quote's signature holds, and whether its registers are a release's, is not established: appraise
    /// [`as_committed`] for that. When it was made, nobody can tell but whoever chose the challenge.
    ///
    /// # Errors
    /// [`StoredProofError`] names the rule.
    pub fn verify(&self, evidence: &Evidence) -> Result<(), StoredProofError> {
        let Self { challenge, binding, proof, .. } = self;
        let leaf = Leaf {
            kind: proof.freshness.kind,
            role: evidence.role,
            challenge: *challenge.as_bytes(),
            binding: *binding.as_bytes(),
        };
        verify_path(&leaf, proof.leaf_index, proof.freshness.tree_size, &proof.path, &proof.freshness.root)?;
        verify_proof(proof, evidence)
    }
}

/// [`StoredProof::verify`] for a proof whose challenge and binding are not known.
///
/// # Errors
/// [`StoredProofError`] names the rule.
pub fn verify_proof(proof: &ConnectionProof, evidence: &Evidence) -> Result<(), StoredProofError> {
    let found = evidence.digest()?;
    if found != proof.evidence {
        return Err(StoredProofError::Evidence { expected: proof.evidence, found });
    }
    verify_quote(&as_committed(evidence.clone(), proof))
}

/// Checks that the quote of an evidence document was made for it.
///
/// # Errors
/// [`StoredProofError::ReportData`] or [`StoredProofError::Malformed`].
pub fn verify_quote(evidence: &Evidence) -> Result<(), StoredProofError> {
    let expected = ReportDataInputs::of(evidence)?.report_data();
    let quoted = Quoted::read(evidence.quote.as_slice()).map_err(|_| StoredProofError::ReportData)?;
    if quoted.report_data == expected { Ok(()) } else { Err(StoredProofError::ReportData) }
}

/// The evidence as it would be if it had been made with the proof's quote: what REPORTDATA of that quote covers. Its digest
/// is another than the one in certificates, proofs and receipts.
#[must_use]
pub fn as_committed(evidence: Evidence, proof: &ConnectionProof) -> Evidence {
    Evidence {
        quote: proof.quote.clone(),
        receipt_head: proof.receipt_head,
        receipt_count: proof.receipt_count,
        freshness: proof.freshness.clone(),
        ..evidence
    }
}
