// SPDX-License-Identifier: Apache-2.0
//! The audit log: verified, listed, handed to witnesses.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use release::log::SignedCheckpoint;
use serde_json::json;
use store::{AuditError, BackupError, ExportError, OpenOptions, Store};

use super::{admin::refused, open_options, serve::write_whole};
use crate::{
    cli::{AuditCommand, StoreArgs},
    input,
    outcome::Outcome,
};

pub(super) fn run(command: AuditCommand) -> anyhow::Result<Outcome> {
    match command {
        AuditCommand::List(store) => audit_list(&store),
        AuditCommand::Verify { store, checkpoint } => audit_verify(&store, checkpoint.as_deref()),
        AuditCommand::Checkpoint { store, wait, out } => checkpoint(&store, Duration::from_secs(wait), out.as_deref()),
        AuditCommand::Export { store, out } => export(&store, &out),
        AuditCommand::Cosign { store, checkpoint } => cosign(&store, &checkpoint),
    }
}

/// Every entry of the log, shown only when the whole log verifies.
fn audit_list(args: &StoreArgs) -> anyhow::Result<Outcome> {
    let opened = match open_audit(args, None)? {
        Ok(opened) => opened,
        Err(outcome) => return Ok(outcome),
    };
    let mut entries = Vec::new();
    if let Err(error) = opened.verify_audit_with(|index, entry| entries.push(json!({ "index": index, "entry": entry })))
    {
        return Ok(refused_log(&error));
    }
    let lines = entries.iter().map(ToString::to_string).collect();
    Ok(Outcome::accepted(lines, json!({ "entries": entries })))
}

fn refused_log(error: &dyn core::fmt::Display) -> Outcome {
    refused("audit_log", "audit", error, "restore the log from its newest copy; tell its witnesses")
}

/// The store for reading its log alone; the outcome where the log contradicts what is known of it.
fn open_audit(args: &StoreArgs, known: Option<&Path>) -> anyhow::Result<Result<Store, Outcome>> {
    open_known(args, false, known)
}

/// The store; the outcome where its log contradicts what is known of it, in the database or in the file `known`.
pub(super) fn open_known(
    args: &StoreArgs,
    sequencer: bool,
    known: Option<&Path>,
) -> anyhow::Result<Result<Store, Outcome>> {
    let known_checkpoint = known.map(read_checkpoint).transpose()?;
    let options = OpenOptions { sequencer, known_checkpoint, ..open_options(args) };
    match Store::open_with(&args.store, &options) {
        Ok(opened) => Ok(Ok(opened)),
        Err(
            error @ (store::OpenError::RolledBack { .. }
            | store::OpenError::KnownCheckpoint(_)
            | store::OpenError::AuditTile(_)),
        ) => Ok(Err(refused_log(&error))),
        Err(error @ (store::OpenError::DatabaseSetBack { .. } | store::OpenError::ChangesLost { .. })) => {
            let fix = "restore the store as a whole from its newest backup; look in the log for what was revoked since";
            Ok(Err(refused("audit_log", "store", &error, fix)))
        }
        // Refused, and no failure: a unit that tries again would lock the token.
        Err(store::OpenError::Kek(error @ store::KekError::Pin(_))) => {
            Ok(Err(refused("kek_pin", "kek", &error, "correct the PIN where `pin-source` says, then start again")))
        }
        // With the sequencer it may be that another service runs, which is no fault of the log.
        Err(error @ store::OpenError::Audit(_)) if !sequencer => Ok(Err(refused_log(&error))),
        Err(error) => Err(error).context("could not open the store"),
    }
}

fn audit_verify(args: &StoreArgs, checkpoint: Option<&Path>) -> anyhow::Result<Outcome> {
    let opened = match open_audit(args, checkpoint)? {
        Ok(opened) => opened,
        Err(outcome) => return Ok(outcome),
    };
    match opened.verify_audit() {
        Ok(summary) => {
            let (size, root) = (summary.checkpoint.head().size(), *summary.checkpoint.head().root());
            let lines = vec![format!(
                "{size} entries, {} releases, {} refusals, root {root}",
                summary.key_releases, summary.refusals
            )];
            let document = json!({
                "size": size, "root": root, "key_releases": summary.key_releases, "refusals": summary.refusals,
                "checkpoint": summary.checkpoint.note(),
            });
            Ok(Outcome::accepted(lines, document))
        }
        Err(error) => Ok(refused_log(&error)),
    }
}

/// A checkpoint's text.
pub(super) fn read_checkpoint(path: &Path) -> anyhow::Result<String> {
    Ok(String::from_utf8(input::read(path, MAX_CHECKPOINT)?)?)
}

/// A checkpoint that lacked a revocation of a moment ago would show nothing of a store that is set back to before it.
fn checkpoint(args: &StoreArgs, wait: Duration, out: Option<&Path>) -> anyhow::Result<Outcome> {
    let opened = match open_audit(args, None)? {
        Ok(opened) => opened,
        Err(outcome) => return Ok(outcome),
    };
    let until = Instant::now() + wait;
    loop {
        // Where no service does it.
        let entered = opened.enter_changes();
        let waiting = opened.changes_waiting()?;
        if waiting == 0 {
            break;
        }
        if Instant::now() >= until {
            let fix = match &entered {
                Err(AuditError::Queued { .. }) => "find out who wrote that row, remove it, then try again",
                _ => "see in the running service's log why it enters nothing (audit_unavailable), then try again",
            };
            let why = entered.err().map(|error| format!(": {error}")).unwrap_or_default();
            let detail = format!("{waiting} changes are not in the log yet{why}");
            return Ok(refused("changes_waiting", "audit", &detail, fix));
        }
        std::thread::sleep(AGAIN);
    }
    let checkpoint = opened.checkpoint()?;
    if let Some(out) = out {
        write_whole(out, checkpoint.note().as_bytes())?;
    }
    let lines = checkpoint.note().lines().map(str::to_owned).collect();
    Ok(Outcome::accepted(lines, document(&checkpoint)))
}

fn export(args: &StoreArgs, out: &Path) -> anyhow::Result<Outcome> {
    let opened = match open_audit(args, None)? {
        Ok(opened) => opened,
        Err(outcome) => return Ok(outcome),
    };
    match opened.export_audit(out) {
        Ok(checkpoint) => {
            let lines = vec![format!("{} entries written to {}", checkpoint.head().size(), out.display())];
            Ok(Outcome::accepted(lines, document(&checkpoint)))
        }
        Err(BackupError::Log(ExportError::Refused(error))) => Ok(refused_log(&error)),
        Err(error) => Err(error).context("the log was not written"),
    }
}

fn cosign(args: &StoreArgs, path: &Path) -> anyhow::Result<Outcome> {
    let note = read_checkpoint(path)?;
    let store = Store::open_with(&args.store, &open_options(args)).context("could not open the store")?;
    let cosigned = match SignedCheckpoint::verify(&note, store.audit_key()) {
        Ok(cosigned) => cosigned,
        Err(error) => return Ok(refused("checkpoint", "checkpoint", &error, "give a checkpoint of this log")),
    };
    match store.set_cosigned(cosigned) {
        Ok(()) => {
            let checkpoint = store.checkpoint()?;
            Ok(Outcome::accepted(vec!["cosignatures added".to_owned()], document(&checkpoint)))
        }
        Err(error @ (AuditError::Checkpoint(_) | AuditError::Append(store::AppendError::Checkpoint(_)))) => {
            Ok(refused("checkpoint", "checkpoint", &error, "have the newest checkpoint cosigned"))
        }
        Err(error) => Err(error).context("the cosignatures were not added"),
    }
}

fn document(checkpoint: &SignedCheckpoint) -> serde_json::Value {
    let head = checkpoint.head();
    json!({ "size": head.size(), "root": head.root(), "checkpoint": checkpoint.note() })
}

/// Between two looks at what waits.
const AGAIN: Duration = Duration::from_millis(100);
const MAX_CHECKPOINT: usize = 64 * 1024;
