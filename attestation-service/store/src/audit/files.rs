// SPDX-License-Identifier: Apache-2.0
//! The audit log as tiles in a directory, beside the embedded database: one process appends.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use release::log::{EntryProof, LogKey, LogSigner, SignedCheckpoint};
use tile_log::{AppendError, TileDir, TileLog};

use super::AuditError;
use crate::OpenError;

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

    pub(super) fn append(
        &self,
        reopen: impl FnOnce(&Path) -> Result<TileLog, AuditError>,
        entries: &[&[u8]],
        record: impl FnOnce(&SignedCheckpoint) -> Result<(), AuditError>,
    ) -> Result<Vec<Result<EntryProof, AuditError>>, AuditError> {
        self.sequence(reopen, |log| {
            let appended = log.append(entries)?;
            record(log.checkpoint())?;
            let indexes: Vec<_> = appended.iter().map(|entry| entry.index).collect();
            Ok(log.proofs(&indexes)?.into_iter().map(Ok).collect())
        })
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
