// SPDX-License-Identifier: Apache-2.0
//! `backup` and `restore`.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Write as _},
    path::Path,
};

use anyhow::{Context as _, bail};
use serde_json::json;
use store::{KekSource, Location, RestoreError, RestoreOptions, Store};

use super::{admin::refused, audit::read_checkpoint, now, open_beside};
use crate::{
    cli::{BackupArgs, RestoreArgs},
    outcome::Outcome,
    service::CHALLENGE_SECONDS,
};

pub(super) fn backup(args: &BackupArgs) -> anyhow::Result<Outcome> {
    let out = &args.out;
    if out.exists() {
        bail!("{} exists already", out.display());
    }
    let store = open_beside(&args.store)?;
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Readable by its owner alone, and not there under its name until it is whole.
    let mut file =
        tempfile::NamedTempFile::new_in(dir).with_context(|| format!("could not write {}", out.display()))?;
    let mut writer = BufWriter::new(file.as_file_mut());
    let summary = store.backup(&mut writer, progress()).context("there is no backup")?;
    writer.flush()?;
    drop(writer);
    file.as_file().sync_all()?;
    file.persist_noclobber(out).with_context(|| format!("could not write {}", out.display()))?;
    File::open(dir)?.sync_all()?;
    let lines = vec![
        format!("{} entries of the log and {} bytes of tables", summary.size, summary.bytes_of_tables),
        "keep the key-wrapping key apart from it: together they are the model keys".to_owned(),
    ];
    let document = json!({ "size": summary.size, "root": summary.root, "checkpoint": summary.checkpoint });
    Ok(Outcome::accepted(lines, document))
}

pub(super) fn restore(args: &RestoreArgs) -> anyhow::Result<Outcome> {
    let file = File::open(&args.archive).with_context(|| format!("could not read {}", args.archive.display()))?;
    let mut keks = args.store.kek.iter().cloned();
    let options = RestoreOptions {
        kek: keks.next().or_else(|| key_of(&args.store.store)),
        other_keks: keks.collect(),
        known_checkpoint: args.checkpoint.as_deref().map(read_checkpoint).transpose()?,
        void_until: now().saturating_add(CHALLENGE_SECONDS),
    };
    let archive = BufReader::new(file);
    let done = if args.check {
        Store::check_backup(archive, &options, progress())
    } else {
        Store::restore(&args.store.store, archive, &options, progress())
    };
    match done {
        Ok(checkpoint) => {
            let head = checkpoint.head();
            let what = if args.check {
                "the archive is whole".to_owned()
            } else {
                format!("restored to {}", args.store.store)
            };
            let lines = vec![format!("{what}, {} entries of the log verified", head.size())];
            Ok(Outcome::accepted(
                lines,
                json!({ "size": head.size(), "root": head.root(), "checkpoint": checkpoint.note() }),
            ))
        }
        Err(error @ RestoreError::RolledBack { .. }) => Ok(refused(
            "backup_too_old",
            "checkpoint",
            &error,
            "restore from a newer backup; tell the owners of the models",
        )),
        // Malformed, or of another log: it says nothing of the backup's age.
        Err(error @ RestoreError::KnownCheckpoint(_)) => {
            Ok(refused("checkpoint", "checkpoint", &error, "give a checkpoint of this store's own audit log"))
        }
        // It may be the right key: the token or the transit service can't be used now.
        Err(error @ RestoreError::Row { .. }) if error.kek_unavailable() => Err(error).context("nothing was restored"),
        Err(error @ RestoreError::Row { .. }) => Ok(refused(
            "kek_wrong",
            "kek",
            &error,
            "give the key-wrapping key that the store had when the backup was made",
        )),
        Err(
            error @ (RestoreError::Exists(_)
            | RestoreError::NotEmpty
            | RestoreError::NoKek
            | RestoreError::Kek(_)
            | RestoreError::Database(_)
            | RestoreError::LogOpen(_)
            | RestoreError::LogAppend(_)
            | RestoreError::File { .. }),
        ) => Err(error).context("nothing was restored"),
        Err(error) => Ok(refused("backup_refused", "in", &error, "restore from another backup")),
    }
}

/// Where the key-wrapping key of a directory is when nothing is said.
fn key_of(store: &Location) -> Option<KekSource> {
    match store {
        Location::Directory(dir) => Some(dir.join("kek").into()),
        Location::Postgres(_) => None,
    }
}

/// Shows every so often how far it is.
fn progress() -> impl FnMut(u64, u64) {
    let mut shown = 0;
    move |done, all| {
        if done >= shown + 100_000 {
            shown = done;
            eprintln!("{done} of {all} entries");
        }
    }
}
