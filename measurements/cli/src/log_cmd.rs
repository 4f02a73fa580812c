// SPDX-License-Identifier: Apache-2.0
//! `measure log`: verification of a log's directory.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use release::log::{CheckpointError, ProofError, SignedCheckpoint, Tree, WitnessKey, verify_consistency};
use serde_json::json;
use tile_log::{TileDir, VerifyError};
use types::Refusal;

use crate::key_file;
use crate::output::{Failure, Report, accepted, refused};

/// Verifies logs.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: LogCommand,
    /// Print one JSON document.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Subcommand)]
enum LogCommand {
    /// Recompute a whole log from its entries and compare it with its signed checkpoint.
    #[command(after_help = "Example:\n  measure log verify --dir log --key log.key.pub --known yesterdays-checkpoint")]
    Verify(VerifyArgs),
}

#[derive(Args)]
struct VerifyArgs {
    /// The log's directory.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The log's public key.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// A checkpoint of this log from before, or from elsewhere: the log must extend it.
    #[arg(long, value_name = "FILE")]
    known: Option<PathBuf>,
    /// Public key of a witness; may be repeated.
    #[arg(long = "witness", value_name = "FILE", requires = "threshold")]
    witnesses: Vec<PathBuf>,
    /// How many of the witnesses must have cosigned the checkpoint.
    #[arg(long, value_name = "K", requires = "witnesses")]
    threshold: Option<usize>,
}

pub(crate) fn run(arguments: &Arguments) -> core::result::Result<Report, Failure> {
    let LogCommand::Verify(args) = &arguments.command;
    Ok(verify(args)?)
}

fn verify(args: &VerifyArgs) -> Result<Report> {
    let key = key_file::log_key(&args.key)?;
    let witnesses = args.witnesses.iter().map(|path| key_file::witness_key(path)).collect::<Result<Vec<_>>>()?;
    let known = args.known.as_ref().map(|path| key_file::read_text(path)).transpose()?;
    let dir = TileDir::new(&args.dir);
    let mut entries = 0u64;
    let checkpoint = match tile_log::verify(&dir, &key, |_, _| {
        entries += 1;
        Ok(())
    }) {
        Ok(checkpoint) => checkpoint,
        Err(VerifyError::File(error)) => return Err(error.into()),
        Err(error) => return Ok(refused(vec![damaged(&error)])),
    };
    let mut reasons = Vec::new();
    if let Some(known) = known {
        match SignedCheckpoint::verify(&known, &key) {
            Ok(known) => reasons.extend(check_extends(&dir, &checkpoint, &known)?),
            Err(error) => reasons.push(Refusal::new(
                "log_known_checkpoint",
                "known",
                error.to_string(),
                "give a checkpoint that this log signed",
            )),
        }
    }
    reasons.extend(check_witnesses(&checkpoint, &witnesses, args.threshold));
    if !reasons.is_empty() {
        return Ok(refused(reasons));
    }
    let head = checkpoint.head();
    let text = format!("the log {} is whole: {entries} entries, root {}", head.origin(), head.root());
    Ok(accepted(json!({"origin": head.origin(), "size": head.size(), "root": head.root()}), text))
}

fn damaged(error: &VerifyError) -> Refusal {
    let (code, field) = match error {
        VerifyError::Checkpoint(_) => ("log_checkpoint", "checkpoint"),
        VerifyError::Root => ("log_root_mismatch", "checkpoint"),
        VerifyError::Differs(_) => ("log_tile_mismatch", "tile"),
        VerifyError::Entry { .. } | VerifyError::Edge(_) => ("log_entry", "tile/entries"),
        VerifyError::Tile(_) | VerifyError::File(_) => ("log_tile", "tile"),
    };
    Refusal::new(code, field, error.to_string(), "take the log from its origin again, and keep this copy as evidence")
}

fn check_extends(dir: &TileDir, now: &SignedCheckpoint, known: &SignedCheckpoint) -> Result<Option<Refusal>> {
    let (new, old) = (now.head(), known.head());
    let checked = if old.size() > new.size() {
        Err(ProofError::Shrunk { old: old.size(), new: new.size() })
    } else {
        let proof = Tree::new(dir, new.size()).consistency_proof(old.size())?;
        verify_consistency(old.size(), old.root(), new.size(), new.root(), &proof)
    };
    Ok(checked.err().map(|error| {
        let code = if matches!(error, ProofError::Shrunk { .. }) { "log_shrunk" } else { "log_forked" };
        Refusal::new(
            code,
            "checkpoint",
            error.to_string(),
            "do not use this log: show both checkpoints to its operator",
        )
    }))
}

fn check_witnesses(checkpoint: &SignedCheckpoint, keys: &[WitnessKey], threshold: Option<usize>) -> Option<Refusal> {
    let error = checkpoint.verify_witnesses(keys, threshold?).err()?;
    let code = match error {
        CheckpointError::Witnesses { .. } => "log_witnesses_missing",
        _ => "log_checkpoint",
    };
    Some(Refusal::new(code, "checkpoint", error.to_string(), "have the checkpoint cosigned by accepted witnesses"))
}
