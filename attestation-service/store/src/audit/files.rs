// SPDX-License-Identifier: Apache-2.0
//! The audit log as tiles in a directory, beside the embedded database: one process appends.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard};

use release::log::{EntryProof, LogKey, LogSigner, SignedCheckpoint};
use tile_log::{AppendError, TileDir, TileLog};

use super::AuditError;
use crate::OpenError;
use crate::changes::{self, Queued};

/// The log of one directory.
pub(crate) struct FileLog {
    /// `None` when the store was opened without the sequencer; `None` inside when a write failed, until the log is
    /// opened again.
    log: Option<Mutex<Option<TileLog>>>,
    pub(super) dir: TileDir,
    path: PathBuf,
    key: LogKey,
    /// Number of the newest change of which the log is known to have the entry: it is not entered again, whether the
    /// database could record that or not.
    entered: AtomicI64,
    /// The same as the database recorded it.
    recorded: AtomicI64,
}

impl FileLog {
    /// Opens the log in `path`, for appending with a signer.
    pub(crate) fn open(path: &Path, signer: LogSigner, sequencer: bool) -> Result<Self, OpenError> {
        let key = signer.public().clone();
        let log = if sequencer { Some(Mutex::new(Some(TileLog::open(path, signer)?))) } else { None };
        let (entered, recorded) = (AtomicI64::new(0), AtomicI64::new(0));
        Ok(Self { log, dir: TileDir::new(path), path: path.to_owned(), key, entered, recorded })
    }

    /// The log was found to have the entries of changes up to this number, which may be queued still.
    pub(crate) fn found_entered(&self, number: i64) {
        self.entered.fetch_max(number, Ordering::Relaxed);
    }

    /// The checkpoint right after [`FileLog::open`].
    pub(crate) fn opened_checkpoint(&self) -> Result<SignedCheckpoint, OpenError> {
        if let Some(held) = self.hold()
            && let Some(log) = held.as_ref()
        {
            return Ok(log.checkpoint().clone());
        }
        let note = self.dir.checkpoint()?;
        Ok(SignedCheckpoint::verify(&note, &self.key).map_err(tile_log::OpenError::Checkpoint)?)
    }

    pub(super) fn checkpoint(
        &self,
        reopen: impl FnOnce(&Path) -> Result<TileLog, AuditError>,
    ) -> Result<SignedCheckpoint, AuditError> {
        match &self.log {
            Some(_) => self.sequence(reopen, |log| Ok(log.checkpoint().clone())),
            None => Ok(SignedCheckpoint::verify(&self.dir.checkpoint()?, &self.key)?),
        }
    }

    /// Appends what waits behind the change that `queued` gets, and then `entries`, whose proofs it gives. `record` hears
    /// of the new head, and up to which change the log has entries that the database does not know of.
    pub(super) fn append(
        &self,
        reopen: impl FnOnce(&Path) -> Result<TileLog, AuditError>,
        entries: &[&[u8]],
        queued: impl Fn(i64) -> Result<Vec<Queued>, AuditError>,
        record: impl Fn(&SignedCheckpoint, Option<i64>) -> Result<(), AuditError>,
    ) -> Result<Vec<Result<EntryProof, AuditError>>, AuditError> {
        self.sequence(reopen, |log| {
            let indexes = self.append_to(log, entries, &queued, &record)?;
            Ok(log.proofs(&indexes)?.into_iter().map(Ok).collect())
        })
    }

    /// Gives the indexes of `entries`. They come with the last of what waits: where that is more than one write, each of
    /// its changes may have decided them.
    fn append_to(
        &self,
        log: &mut TileLog,
        entries: &[&[u8]],
        queued: &impl Fn(i64) -> Result<Vec<Queued>, AuditError>,
        record: &impl Fn(&SignedCheckpoint, Option<i64>) -> Result<(), AuditError>,
    ) -> Result<Vec<u64>, AuditError> {
        loop {
            let batch = queued(self.entered.load(Ordering::Relaxed))?;
            if !changes::is_full(&batch) {
                return self.append_batch(log, &batch, entries, record);
            }
            self.append_batch(log, &batch, &[], record)?;
        }
    }

    /// Gives the indexes of `entries`. What stands in the log stands there, though its record may fail: it is made up for
    /// with the next write, or the next look at what waits.
    fn append_batch(
        &self,
        log: &mut TileLog,
        queued: &[Queued],
        entries: &[&[u8]],
        record: &impl Fn(&SignedCheckpoint, Option<i64>) -> Result<(), AuditError>,
    ) -> Result<Vec<u64>, AuditError> {
        let all: Vec<_> = queued.iter().map(|one| one.entry.as_slice()).chain(entries.iter().copied()).collect();
        let appended = if all.is_empty() { Vec::new() } else { log.append(&all)? };
        if let Some(newest) = queued.last() {
            self.found_entered(newest.number);
        }
        let entered = self.entered.load(Ordering::Relaxed);
        let unrecorded = (entered > self.recorded.load(Ordering::Relaxed)).then_some(entered);
        if unrecorded.is_some() || !all.is_empty() {
            record(log.checkpoint(), unrecorded)?;
            self.recorded.store(entered, Ordering::Relaxed);
        }
        Ok(appended.iter().skip(queued.len()).map(|entry| entry.index).collect())
    }

    /// Whether this one appends.
    pub(super) const fn is_sequencer(&self) -> bool {
        self.log.is_some()
    }

    /// [`FileLog::append`] of what is queued by a program beside the service. Where a service appends, it does so itself:
    /// then this only looks whether it can.
    pub(super) fn append_queued_beside(
        &self,
        reopen: impl FnOnce(&Path) -> Result<TileLog, AuditError>,
        queued: impl Fn(i64) -> Result<Vec<Queued>, AuditError>,
        record: impl Fn(&SignedCheckpoint, Option<i64>) -> Result<(), AuditError>,
    ) -> Result<(), AuditError> {
        let mut log = match reopen(&self.path) {
            Err(AuditError::Reopen(error)) if matches!(*error, OpenError::Audit(tile_log::OpenError::Locked(_))) => {
                return queued(0).map(drop);
            }
            opened => opened?,
        };
        self.append_to(&mut log, &[], &queued, &record).map(drop)
    }

    /// The log's tiles.
    pub(crate) const fn tiles(&self) -> &TileDir {
        &self.dir
    }

    /// Nothing is appended while this is held.
    pub(super) fn hold(&self) -> Option<MutexGuard<'_, Option<TileLog>>> {
        self.log.as_ref().and_then(|log| log.lock().ok())
    }

    /// Works on the log. Where a write failed before, which checkpoint is on disk is in doubt: the log is opened again,
    /// as at a start: it must extend the head that the database knows, and is looked through for
    /// entries of changes that are queued still.
    pub(super) fn sequence<T>(
        &self,
        reopen: impl FnOnce(&Path) -> Result<TileLog, AuditError>,
        work: impl FnOnce(&mut TileLog) -> Result<T, AuditError>,
    ) -> Result<T, AuditError> {
        let mut place = self.log.as_ref().ok_or(AuditError::NotSequencer)?.lock().map_err(|_| AuditError::Poisoned)?;
        let log = match place.as_mut() {
            Some(log) => log,
            None => place.insert(reopen(&self.path)?),
        };
        let result = work(log);
        if matches!(result, Err(AuditError::Append(AppendError::File(_) | AppendError::Poisoned))) {
            *place = None;
        }
        result
    }
}
