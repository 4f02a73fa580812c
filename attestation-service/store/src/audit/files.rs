// SPDX-License-Identifier: Apache-2.0
//! The audit log as tiles in a directory, beside the embedded database: one process appends.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use release::log::{EntryProof, LogKey, LogSigner, SignedCheckpoint};
use tile_log::{AppendError, TileDir, TileLog};

use super::AuditError;
use crate::OpenError;
use crate::changes::Queued;

/// The log of one directory.
pub(crate) struct FileLog {
    /// `None` when the store was opened without the sequencer; `None` inside when a write failed, until the log is
    /// opened again.
    log: Option<Mutex<Option<TileLog>>>,
    pub(super) dir: TileDir,
    path: PathBuf,
    key: LogKey,
}

impl FileLog {
    /// Opens the log in `path`, for appending with a signer.
    pub(crate) fn open(path: &Path, signer: LogSigner, sequencer: bool) -> Result<Self, OpenError> {
        let key = signer.public().clone();
        let log = if sequencer { Some(Mutex::new(Some(TileLog::open(path, signer)?))) } else { None };
        Ok(Self { log, dir: TileDir::new(path), path: path.to_owned(), key })
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

    /// Appends what waits in `queued`, and then `entries`, whose proofs it gives. `record` hears of the new head.
    pub(super) fn append(
        &self,
        reopen: impl FnOnce(&Path) -> Result<TileLog, AuditError>,
        entries: &[&[u8]],
        queued: impl FnOnce() -> Result<Vec<Queued>, AuditError>,
        record: impl FnOnce(&SignedCheckpoint, &[Queued]) -> Result<(), AuditError>,
    ) -> Result<Vec<Result<EntryProof, AuditError>>, AuditError> {
        self.sequence(reopen, |log| {
            let queued = queued()?;
            let all: Vec<_> = queued.iter().map(|one| one.entry.as_slice()).chain(entries.iter().copied()).collect();
            if all.is_empty() {
                return Ok(Vec::new());
            }
            let appended = log.append(&all)?;
            record(log.checkpoint(), &queued)?;
            let indexes: Vec<_> = appended.iter().skip(queued.len()).map(|entry| entry.index).collect();
            Ok(log.proofs(&indexes)?.into_iter().map(Ok).collect())
        })
    }

    /// Whether this one appends.
    pub(super) const fn is_sequencer(&self) -> bool {
        self.log.is_some()
    }

    /// [`FileLog::append`] of what is queued by a program beside the service. Nothing where a service appends: it does so
    /// itself.
    pub(super) fn append_queued_beside(
        &self,
        reopen: impl FnOnce(&Path) -> Result<TileLog, AuditError>,
        queued: impl FnOnce() -> Result<Vec<Queued>, AuditError>,
        record: impl FnOnce(&SignedCheckpoint, &[Queued]) -> Result<(), AuditError>,
    ) -> Result<(), AuditError> {
        let mut log = match reopen(&self.path) {
            Err(AuditError::Reopen(error)) if matches!(*error, OpenError::Audit(tile_log::OpenError::Locked(_))) => {
                return Ok(());
            }
            opened => opened?,
        };
        let queued = queued()?;
        if queued.is_empty() {
            return Ok(());
        }
        log.append(&queued.iter().map(|one| one.entry.as_slice()).collect::<Vec<_>>())?;
        record(log.checkpoint(), &queued)
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
    /// as at a start, and must extend the head that the database knows.
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
