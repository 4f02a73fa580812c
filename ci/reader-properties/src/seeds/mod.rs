// SPDX-License-Identifier: Apache-2.0
//! The first inputs of each fuzz target, made here and nowhere else, and the keys behind them.
//!
//! The keys are public constants: they sign nothing but these inputs.

mod attestation;
mod binary;
mod documents;
mod gpu;
mod guest;
mod service;

use std::sync::OnceLock;

use release::log::{Checkpoint, EntryProof, LogSigner, SignedCheckpoint, WitnessSigner, cosign, leaf_hash, node_hash};
use release::{Bundle, BundleError, ReleaseKey, Statement, TrustPolicy};

/// The time at which the seeds are verified, unix seconds.
pub const NOW: u64 = 1_750_000_000;

/// One input: its fuzz target, its name and its bytes. The reader accepts it.
pub struct Seed {
    /// Name of the target.
    pub target: &'static str,
    /// File name.
    pub name: &'static str,
    /// The input.
    pub bytes: Vec<u8>,
}

/// All first inputs. The same bytes at every call.
#[must_use]
pub fn all() -> Vec<Seed> {
    let mut seeds = binary::all();
    seeds.extend(documents::all());
    seeds.extend(tile_log());
    seeds.extend(attestation::all());
    seeds.extend(gpu::all());
    seeds.extend(service::all());
    seeds.extend(guest::all());
    seeds
}

pub(crate) use attestation::{OWNER_KEY, TOKEN_KEY, key_release_entry, model, owner_command, service_keys};
pub(crate) use documents::machine;
pub(crate) use service::{
    CHALLENGE, EAR_AUDIENCE, MODEL_KEY, TIME_NONCE, ear_header, ear_key, ear_result, ear_service, ear_token,
    release_key_pair, time_key,
};

/// The signer of the log.
#[must_use]
pub fn log() -> &'static LogSigner {
    static LOG: OnceLock<LogSigner> = OnceLock::new();
    LOG.get_or_init(|| LogSigner::new("example.invalid/log", &[1; 32]).expect("a good name"))
}

/// The one witness.
#[must_use]
pub fn witness() -> &'static WitnessSigner {
    static WITNESS: OnceLock<WitnessSigner> = OnceLock::new();
    WITNESS.get_or_init(|| WitnessSigner::new("example.invalid/witness", &[2; 32]).expect("a good name"))
}

/// The policy under which the bundle is accepted.
#[must_use]
pub fn trust() -> &'static TrustPolicy {
    static TRUST: OnceLock<TrustPolicy> = OnceLock::new();
    TRUST.get_or_init(|| {
        let witnesses = vec![witness().public().clone()];
        TrustPolicy::new(vec![release_key().public()], log().public().clone(), witnesses, 1).expect("a good policy")
    })
}

/// The head of the log of the target `tile_log`: two entries.
#[must_use]
pub fn head() -> Checkpoint {
    two_entries(b"second").0
}

/// Signs a statement, logs it, has the head cosigned and gives the bundle.
///
/// # Errors
/// [`BundleError::Statement`] when `payload` is no statement.
pub fn publish(payload: &[u8]) -> Result<Vec<u8>, BundleError> {
    let key = release_key();
    let bundle = Bundle::sign(&Statement::parse(payload)?, key)?;
    let (head, mut proof) = two_entries(&bundle.log_entry(&key.public())?);
    proof.checkpoint = cosigned(&head).note().to_owned();
    bundle.with_proof(&key.public(), log().public(), &proof)?.to_json()
}

/// The bundle of the statement among the seeds.
#[must_use]
pub fn bundle() -> Vec<u8> {
    publish(&documents::statement()).expect("the seed is a statement")
}

fn release_key() -> &'static ReleaseKey {
    static KEY: OnceLock<ReleaseKey> = OnceLock::new();
    KEY.get_or_init(|| ReleaseKey::from_random(&[3; 32]).expect("a good scalar"))
}

/// Head of a log with a first entry and this one, and the proof of this one, without a checkpoint.
fn two_entries(entry: &[u8]) -> (Checkpoint, EntryProof) {
    let (first, leaf) = (leaf_hash(b"first"), leaf_hash(entry));
    let head = Checkpoint::new(log().public().origin(), 2, node_hash(&first, &leaf));
    (head, EntryProof { index: 1, leaf, tree_size: 2, path: vec![first], checkpoint: String::new() })
}

fn cosigned(head: &Checkpoint) -> SignedCheckpoint {
    let note = head.sign(log()).expect("the log's own head");
    cosign(witness(), None, &note, log().public(), &[], NOW).expect("the first head that the witness sees").0
}

fn tile_log() -> Vec<Seed> {
    let (head, mut proof) = two_entries(b"second");
    proof.checkpoint = cosigned(&head).note().to_owned();
    let note = format!("n{}", proof.checkpoint).into_bytes();
    let proof = [b"j".as_slice(), &serde_json::to_vec(&proof).expect("a proof is JSON")].concat();
    let seed = |name, bytes| Seed { target: "tile_log", name, bytes };
    vec![
        seed("checkpoint", note),
        seed("proof", proof),
        seed("log-key", format!("k{}", log().public()).into_bytes()),
        seed("tile-name", b"ptile/2/x001/x234/067.p/8".to_vec()),
        seed("entries", b"e\x02\x00\x01a\x00\x02bc".to_vec()),
        seed("tree", b"t\x0b\x06\x04\x01some entries".to_vec()),
    ]
}
