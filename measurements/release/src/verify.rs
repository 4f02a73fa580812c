// SPDX-License-Identifier: Apache-2.0
//! Verification of a release bundle.

use calculator::ExpectedRegisters;
use types::{MachineShape, Refusal, Sha256Digest};

use crate::bundle::{Bundle, BundleError, ENTRY_KIND, ENTRY_VERSION};
use crate::key::ReleasePublicKey;
use crate::log::{
    CheckpointError, EntryProof, EntryProofError, NoteError, ProofError, SignedCheckpoint, WitnessState, leaf_hash,
    merkle, verify_consistency,
};
use crate::reference::NoReference;
use crate::statement::{ReferenceValues, Statement, StatementError, Validity};
use crate::trust::{TrustPolicy, TrustPolicyError};

/// A release that was signed by an accepted key, stands in the accepted log, was seen by enough witnesses and was
/// valid at the time of verification. Only [`VerifiedRelease::verify`] makes one.
///
/// Not established: that the source gives these bytes (rebuild it), that the release is the newest, and that it was
/// not revoked (the store of the attestation service knows).
#[derive(Debug, Clone)]
pub struct VerifiedRelease {
    statement: Statement,
    digest: Sha256Digest,
    signer: ReleasePublicKey,
    log_index: u64,
    checkpoint: SignedCheckpoint,
}

/// Why a bundle was refused. In the order of the checks; the first that fails is reported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// The policy itself is unusable.
    #[error(transparent)]
    Policy(#[from] TrustPolicyError),
    /// The bundle's form.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The bundle names a key that the policy does not have.
    #[error("the bundle is signed by a key that the policy does not accept")]
    Signer,
    /// The signature does not verify under the named key.
    #[error("the signature over the statement does not verify")]
    Signature,
    /// The statement's form.
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// Used before or after its time.
    #[error("the release is valid from {} to {} (unix seconds), it is {now}", validity.not_before, validity.not_after)]
    Validity {
        /// The release's span.
        validity: Validity,
        /// The time of verification.
        now: u64,
    },
    /// No log entry, or one without an inclusion proof.
    #[error("the bundle carries no proof that it was logged")]
    NotLogged,
    /// The entry is of another log.
    #[error("the log entry is of another log than the policy's")]
    Log,
    /// The logged entry is not the one for this statement, signature and key.
    #[error("the logged entry is not this bundle's")]
    Entry,
    /// The checkpoint or its log signature.
    #[error("the checkpoint was refused: {0}")]
    Checkpoint(CheckpointError),
    /// The inclusion proof, or its repetition of index, size and root.
    #[error("the inclusion proof does not verify: {0}")]
    Inclusion(EntryProofError),
    /// Too few witnesses.
    #[error("{found} accepted witnesses cosigned the checkpoint, {needed} are needed")]
    Witnesses {
        /// The policy's threshold.
        needed: usize,
        /// Found.
        found: usize,
    },
    /// The bundle's checkpoint and a known one are not of one history.
    #[error("the bundle's checkpoint and the known one are not of one log history: {0}")]
    Forked(ProofError),
}

impl VerifiedRelease {
    /// Verifies a bundle at `now` (unix seconds).
    ///
    /// # Errors
    /// [`ReleaseError`]: the first check that failed.
    pub fn verify(bundle: &[u8], policy: &TrustPolicy, now: u64) -> Result<Self, ReleaseError> {
        policy.check()?;
        let bundle = Bundle::from_json(bundle)?;
        let signer = signer(&bundle, policy)?;
        if !signer.verifies(&bundle.signed_bytes(), bundle.signature()) {
            return Err(ReleaseError::Signature);
        }
        let statement = Statement::parse(bundle.payload())?;
        let validity = statement.predicate.validity;
        if !validity.contains(now) {
            return Err(ReleaseError::Validity { validity, now });
        }
        let (log_index, checkpoint) = verify_log(&bundle, &signer, policy)?;
        Ok(Self { digest: bundle.digest(), statement, signer, log_index, checkpoint })
    }

    /// The reference values.
    #[must_use]
    pub const fn values(&self) -> &ReferenceValues {
        &self.statement.predicate
    }

    /// The whole statement.
    #[must_use]
    pub const fn statement(&self) -> &Statement {
        &self.statement
    }

    /// Computes the registers of a machine.
    ///
    /// # Errors
    /// [`NoReference`] names the part that the release lacks.
    pub fn registers_for(&self, shape: &MachineShape) -> Result<ExpectedRegisters, NoReference> {
        self.values().registers_for(shape)
    }

    /// SHA-256 of the statement: names the release everywhere.
    #[must_use]
    pub const fn digest(&self) -> &Sha256Digest {
        &self.digest
    }

    /// The key that signed.
    #[must_use]
    pub const fn signer(&self) -> &ReleasePublicKey {
        &self.signer
    }

    /// Index of the entry in the log.
    #[must_use]
    pub const fn log_index(&self) -> u64 {
        self.log_index
    }

    /// The checkpoint that the inclusion proof leads to.
    #[must_use]
    pub const fn checkpoint(&self) -> &SignedCheckpoint {
        &self.checkpoint
    }

    /// Whether the release may be used at `now`; verification checked it for its own time.
    #[must_use]
    pub const fn is_valid_at(&self, now: u64) -> bool {
        self.statement.predicate.validity.contains(now)
    }

    /// Checks that the bundle's checkpoint and the head `known` from elsewhere belong to one history. `proof` leads
    /// from the smaller to the larger tree.
    ///
    /// # Errors
    /// [`ReleaseError::Forked`].
    pub fn check_same_history(&self, known: &WitnessState, proof: &[Sha256Digest]) -> Result<(), ReleaseError> {
        let (size, root) = (self.checkpoint.head().size(), self.checkpoint.head().root());
        let checked = if known.size <= size {
            verify_consistency(known.size, &known.root, size, root, proof)
        } else {
            verify_consistency(size, root, known.size, &known.root, proof)
        };
        checked.map_err(ReleaseError::Forked)
    }
}

impl ReleaseError {
    /// Stable code of the reason.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Policy(_) => "release_policy_malformed",
            Self::Bundle(_) => "release_bundle_malformed",
            Self::Signer => "release_signer_not_accepted",
            Self::Signature => "release_signature",
            Self::Statement(_) => "release_statement_malformed",
            Self::Validity { .. } => "release_not_valid_now",
            Self::NotLogged => "release_not_logged",
            Self::Log => "release_log_not_accepted",
            Self::Entry => "release_log_entry_mismatch",
            Self::Checkpoint(_) => "release_checkpoint",
            Self::Inclusion(_) => "release_inclusion_proof",
            Self::Witnesses { .. } => "release_witnesses_missing",
            Self::Forked(_) => "release_log_forked",
        }
    }

    /// The reason with its field and fix.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let (field, fix) = match self {
            Self::Policy(_) => ("policy", "correct the trust policy"),
            Self::Bundle(_) => ("bundle", "take the bundle as `measure release publish` wrote it"),
            Self::Signer => {
                ("verificationMaterial.publicKey", "take a bundle of an accepted signer or accept this one")
            }
            Self::Signature => ("dsseEnvelope.signatures", "fetch the bundle again; it was changed or wrongly signed"),
            Self::Statement(_) => ("dsseEnvelope.payload", "publish a statement of the documented form"),
            Self::Validity { .. } => ("predicate.validity", "use the successor release, or correct the clock"),
            Self::NotLogged => {
                ("verificationMaterial.tlogEntries", "publish the release with `measure release publish`")
            }
            Self::Log => ("tlogEntries.logId", "publish the release in the accepted log"),
            Self::Entry => ("tlogEntries.canonicalizedBody", "publish the release again"),
            Self::Checkpoint(_) => ("inclusionProof.checkpoint", "take a checkpoint that the accepted log signed"),
            Self::Inclusion(_) => ("inclusionProof", "make the proof anew from the log's tiles"),
            Self::Witnesses { .. } => {
                ("inclusionProof.checkpoint", "have the checkpoint cosigned by accepted witnesses")
            }
            Self::Forked(_) => {
                ("inclusionProof.checkpoint", "do not use this log: show both checkpoints to its operator")
            }
        };
        Refusal::new(self.code(), field, self.to_string(), fix)
    }
}

fn signer(bundle: &Bundle, policy: &TrustPolicy) -> Result<ReleasePublicKey, ReleaseError> {
    let named = |key: &&ReleasePublicKey| key.hint().is_ok_and(|hint| hint == bundle.hint());
    policy.release_keys.iter().find(named).copied().ok_or(ReleaseError::Signer)
}

fn verify_log(
    bundle: &Bundle,
    signer: &ReleasePublicKey,
    policy: &TrustPolicy,
) -> Result<(u64, SignedCheckpoint), ReleaseError> {
    let entry = bundle.logged().ok_or(ReleaseError::NotLogged)?;
    let proof = entry.inclusion_proof.as_ref().ok_or(ReleaseError::NotLogged)?;
    if entry.log_id.key_id.0 != policy.log.log_id().as_bytes() {
        return Err(ReleaseError::Log);
    }
    let body = bundle.log_entry(signer)?;
    let kind = &entry.kind_version;
    if kind.kind != ENTRY_KIND || kind.version != ENTRY_VERSION || entry.canonicalized_body.0 != body {
        return Err(ReleaseError::Entry);
    }
    let path = proof.hashes.iter().take(merkle::MAX_PROOF + 1).map(|hash| Sha256Digest::from_slice(&hash.0));
    let path = path.collect::<Result<Vec<_>, _>>().map_err(|_| inclusion(ProofError::Length))?;
    let claimed = EntryProof {
        index: entry.log_index.0,
        leaf: leaf_hash(&body),
        tree_size: proof.tree_size.0,
        path,
        checkpoint: proof.checkpoint.envelope.clone(),
    };
    let checkpoint = claimed.verify(&policy.log).map_err(|error| match error {
        EntryProofError::Checkpoint(inner) => ReleaseError::Checkpoint(inner),
        other => ReleaseError::Inclusion(other),
    })?;
    // The proof repeats index and root outside of the signed checkpoint: they may not say something else.
    if proof.log_index != entry.log_index || proof.root_hash.0 != checkpoint.head().root().as_bytes() {
        return Err(inclusion(ProofError::Root));
    }
    let needed = usize::try_from(policy.threshold).unwrap_or(usize::MAX);
    checkpoint.verify_witnesses(&policy.witnesses, needed).map_err(|error| match error {
        CheckpointError::Witnesses { needed, found } => ReleaseError::Witnesses { needed, found },
        other => ReleaseError::Checkpoint(other),
    })?;
    Ok((claimed.index, checkpoint))
}

const fn inclusion(error: ProofError) -> ReleaseError {
    ReleaseError::Inclusion(EntryProofError::Proof(error))
}

impl From<NoteError> for ReleaseError {
    fn from(error: NoteError) -> Self {
        Self::Checkpoint(CheckpointError::Note(error))
    }
}
