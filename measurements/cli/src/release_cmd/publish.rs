// SPDX-License-Identifier: Apache-2.0
//! `measure release publish`: append to a log, have it cosigned, put the proof into the bundle.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use release::log::{SignedCheckpoint, WitnessSigner, WitnessState, cosign};
use release::{Bundle, ReleasePublicKey};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tile_log::TileLog;
use types::{Refusal, Sha256Digest, canonical};

use super::MAX_BUNDLE;
use crate::output::{Report, accepted, refused};
use crate::{input, key_file};

#[derive(clap::Args)]
pub(super) struct PublishArgs {
    /// The signed bundle.
    #[arg(long, value_name = "FILE")]
    bundle: PathBuf,
    /// Public key of the release's signer.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The log's directory.
    #[arg(long, value_name = "DIR")]
    log: PathBuf,
    /// Make the log when there is none.
    #[arg(long)]
    create: bool,
    /// The log's private key, with its public half beside it.
    #[arg(long, value_name = "FILE")]
    log_key: PathBuf,
    /// Private key of a witness that runs here; may be repeated. What it cosigned last is kept in `KEY.state`.
    #[arg(long = "witness-key", value_name = "FILE")]
    witness_keys: Vec<PathBuf>,
    /// Where the published bundle goes.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// What a local witness remembers, one file for each log.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    log: Sha256Digest,
    root: Sha256Digest,
    size: u64,
}

pub(super) fn run(args: &PublishArgs, now: u64) -> Result<Report> {
    let bundle = Bundle::from_json(&input::file(&args.bundle, MAX_BUNDLE)?)?;
    let key = key_file::release_public_key(&args.key)?;
    if !bundle.is_signed_by(&key) {
        let detail = "the bundle is not signed by this key";
        let fix = "give the public key of its signer, or sign again";
        return Ok(refused(vec![Refusal::new("release_signature", "dsseEnvelope.signatures", detail, fix)]));
    }
    // Keys are read before anything is appended.
    let witnesses = args.witness_keys.iter().map(|path| Ok((path.as_path(), key_file::witness_signer(path)?)));
    let witnesses = witnesses.collect::<Result<Vec<_>>>()?;
    let mut log = open_log(args)?;
    let index = log_once(&mut log, &bundle, &key)?;
    let mut checkpoint = log.checkpoint().clone();
    for (path, witness) in &witnesses {
        checkpoint = cosign_by(witness, path, &log, &checkpoint, now)?;
    }
    log.set_cosigned(checkpoint)?;
    let proof = log.proof(index)?;
    let published = bundle.with_proof(&key, log.key(), &proof)?;
    key_file::write(&args.out, &published.to_json()?)?;
    let (digest, size) = (published.digest(), proof.tree_size);
    let text =
        format!("release {digest}\nis entry {index} of {size} in {}\nwrote {}", log.key().origin(), args.out.display());
    let document = json!({"digest": digest, "log_index": index, "tree_size": size, "checkpoint": proof.checkpoint, "bundle": args.out});
    Ok(accepted(document, text))
}

fn open_log(args: &PublishArgs) -> Result<TileLog> {
    let signer = key_file::log_signer(&args.log_key)?;
    let log = match TileLog::open(&args.log, signer) {
        Err(tile_log::OpenError::NoLog(_)) if args.create => {
            TileLog::create(&args.log, key_file::log_signer(&args.log_key)?)
        }
        other => other,
    };
    log.with_context(|| format!("could not open the log in {} (a new one needs --create)", args.log.display()))
}

/// Appends the bundle's entry, unless the newest run did so already and failed later.
fn log_once(log: &mut TileLog, bundle: &Bundle, key: &ReleasePublicKey) -> Result<u64> {
    let entry = bundle.log_entry(key)?;
    let leaf = release::log::leaf_hash(&entry);
    let size = log.checkpoint().head().size();
    if let Some(last) = size.checked_sub(1)
        && log.tree().leaf(last)? == leaf
    {
        return Ok(last);
    }
    let appended = log.append(&[&entry])?;
    Ok(appended.first().context("nothing was appended")?.index)
}

fn cosign_by(
    witness: &WitnessSigner,
    key_path: &Path,
    log: &TileLog,
    checkpoint: &SignedCheckpoint,
    now: u64,
) -> Result<SignedCheckpoint> {
    let path = key_path.with_added_extension("state");
    let log_id = log.key().log_id();
    let state = if path.exists() {
        let file: StateFile = canonical::from_bytes(&input::file(&path, 4096)?, 4096)
            .with_context(|| format!("{} is not a witness's state", path.display()))?;
        ensure!(file.log == log_id, "{} is of another log", path.display());
        Some(WitnessState { size: file.size, root: file.root })
    } else {
        None
    };
    let known = state.as_ref().map_or(0, |state| state.size);
    // A log smaller than known has no such proof; the witness itself then says that it shrank.
    let proof = log.tree().consistency_proof(known).unwrap_or_default();
    let (cosigned, next) = cosign(witness, state.as_ref(), checkpoint.note(), log.key(), &proof, now)
        .with_context(|| format!("the witness {} refused", witness.public().name()))?;
    // Durable before the cosignature is handed out.
    key_file::write(&path, &canonical::to_bytes(&StateFile { log: log_id, root: next.root, size: next.size })?)?;
    Ok(cosigned)
}
