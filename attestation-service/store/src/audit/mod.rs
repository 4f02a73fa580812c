// SPDX-License-Identifier: Apache-2.0
//! The audit log: what was authorised stands on disk before it happens.

mod files;
mod rows;

use std::path::Path;

use release::log::{EntryProof, LogKey, SignedCheckpoint, TileError, TilePath, Tiles as _, Tree};
use tile_log::{AppendError, FileError, ReadError, TileLog, VerifyError};

use crate::changes::{self, Queued, Settled};
use crate::database::{self, Database, DatabaseError};
use crate::entry::{AuditEntry, EntryError};
use crate::group::Group;
use crate::{OpenError, Store};
pub(crate) use files::FileLog;
pub(crate) use rows::{DatabaseTiles, RowLog, RowWriter};

pub(crate) struct Audit {
    pub(crate) log: Log,
    pub(crate) key: LogKey,
    /// Entries that are written together.
    pub(crate) group: Group<Waiting, Result<EntryProof, AuditError>>,
}

/// An entry that is to be written.
pub(crate) struct Waiting {
    bytes: Vec<u8>,
    settled: Settled,
}

/// Where the log is.
pub(crate) enum Log {
    /// In a directory beside the embedded database.
    Files(Box<FileLog>),
    /// In PostgreSQL.
    Rows(Box<RowLog>),
}

/// Why nothing was appended to, or read from, the audit log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The entry.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The store was opened without the sequencer.
    #[error("the store was opened without the audit log's sequencer")]
    NotSequencer,
    /// Appending failed.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// Reading failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The checkpoint could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The checkpoint on disk was refused.
    #[error("the audit log's checkpoint was refused: {0}")]
    Checkpoint(#[from] release::log::CheckpointError),
    /// A row that waits for the log is no entry of a change: somebody else wrote it. Nothing is entered until it is gone.
    #[error("row {number} of operator_changes is refused, somebody else wrote it: {rule}")]
    Queued {
        /// Its number.
        number: i64,
        /// Why.
        rule: String,
    },
    /// The new head could not be recorded.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// After a write that failed the log could not be opened again.
    #[error("the audit log could not be opened again: {0}")]
    Reopen(#[from] Box<OpenError>),
    /// The log is smaller than this process has seen it, or another one: the database was set back.
    #[error("the audit log was rolled back or replaced: {known} entries are known, it has {found}")]
    RolledBack {
        /// Entries of the newest head that this process saw.
        known: u64,
        /// Entries found.
        found: u64,
    },
    /// The rows do not have the root that the checkpoint says.
    #[error("the audit log is damaged: its root is not the checkpoint's")]
    Root,
    /// The write that it was a part of failed.
    #[error("the entry was not written: {0}")]
    Batch(String),
    /// An earlier operation panicked.
    #[error("the store must be reopened: an earlier operation did not end")]
    Poisoned,
}

/// What a verification of the whole audit log found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSummary {
    /// The log's head.
    pub checkpoint: SignedCheckpoint,
    /// Entries that authorised a key.
    pub key_releases: u64,
    /// Refusals, those that are only counted included.
    pub refusals: u64,
}

/// Why the audit log was refused.
#[derive(Debug, thiserror::Error)]
pub enum AuditVerifyError {
    /// The log.
    #[error(transparent)]
    Log(#[from] VerifyError),
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// Fewer entries than the database has seen.
    #[error("the audit log has {found} entries, the database has seen {known}")]
    RolledBack {
        /// Entries that the database has seen.
        known: u64,
        /// Entries found.
        found: u64,
    },
}

impl Store {
    /// Appends an entry. On return the entry, its tiles and the signed checkpoint are on disk (in a directory: the
    /// database's record of the new head is written, and synced with the next redemption). Entries that come at the same
    /// time share one write, and their proofs one checkpoint.
    ///
    /// # Errors
    /// [`AuditError`]; then the caller may not act on the entry, though it may stand in the log.
    pub fn append_audit(&self, entry: &AuditEntry) -> Result<EntryProof, AuditError> {
        self.append_bytes(entry.to_bytes()?, Settled(false))
    }

    /// [`Store::append_audit`] of an entry that is at hand as the bytes that will stand in the log, and that was decided by
    /// nothing newer than the read that gave `settled` ([`crate::ModelKey::settled`]). What waits for the log is looked at
    /// only where some of it may have decided the entry.
    ///
    /// # Errors
    /// [`AuditError`], for bytes that are no entry, too.
    pub fn append_entry(&self, bytes: &[u8], settled: Settled) -> Result<EntryProof, AuditError> {
        AuditEntry::parse(bytes)?;
        self.append_bytes(bytes.to_vec(), settled)
    }

    fn append_bytes(&self, bytes: Vec<u8>, settled: Settled) -> Result<EntryProof, AuditError> {
        let done = self.audit.group.submit(Waiting { bytes, settled }, |batch| {
            let count = batch.len();
            match self.append_all(&batch) {
                Ok(proofs) => proofs,
                Err(error) => {
                    let text = error.to_string();
                    let first = core::iter::once(Err(error));
                    first.chain((1..count).map(|_| Err(AuditError::Batch(text.clone())))).collect()
                }
            }
        });
        done.unwrap_or(Err(AuditError::Poisoned))
    }

    /// Enters what the operator changed and no entry says yet; also done with every other entry, before it. Beside a
    /// service that appends to a log in a directory it enters nothing: the service does within seconds.
    ///
    /// # Errors
    /// [`AuditError`]; what was changed stays, and is entered later. [`AuditError::Queued`] also where a service appends.
    pub fn enter_changes(&self) -> Result<(), AuditError> {
        if self.changes_waiting()? == 0 {
            return Ok(());
        }
        match &self.audit.log {
            Log::Files(files) if !files.is_sequencer() => files.append_queued_beside(
                |path| self.reopened(path),
                |after| self.queued(after),
                |checkpoint, entered| self.record(checkpoint, entered),
            ),
            _ => self.append_all(&[]).map(drop),
        }
    }

    /// How many changes no entry of the log says yet, as far as the database knows.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn changes_waiting(&self) -> Result<u64, DatabaseError> {
        self.database.read(changes::waiting)
    }

    /// Whether the newest look at the log found it set back or replaced, so that nothing is read of it or appended to it.
    #[must_use]
    pub fn log_set_back(&self) -> bool {
        match &self.audit.log {
            Log::Rows(rows) => rows.is_set_back(),
            // Nobody else appends to it.
            Log::Files(_) => false,
        }
    }

    fn append_all(&self, batch: &[Waiting]) -> Result<Vec<Result<EntryProof, AuditError>>, AuditError> {
        let entries: Vec<_> = batch.iter().map(|entry| entry.bytes.as_slice()).collect();
        // Without entries it is about what waits.
        let settled = !batch.is_empty() && batch.iter().all(|entry| entry.settled.0);
        match &self.audit.log {
            // Whether something waits comes with the head, which must be read and locked anyway.
            Log::Rows(rows) => rows.append(&self.database, &entries),
            Log::Files(files) => files.append(
                |path| self.reopened(path),
                &entries,
                |after| if settled { Ok(Vec::new()) } else { self.queued(after) },
                |checkpoint, entered| self.record(checkpoint, entered),
            ),
        }
    }

    fn queued(&self, after: i64) -> Result<Vec<Queued>, AuditError> {
        self.database.read(|tx| changes::queued(tx, after))
    }

    /// Records the new head of a log in a directory, which stands beside an embedded database, and up to which change the
    /// log has entries, where that is news: both or neither, so that a start finds the others behind the recorded head.
    fn record(&self, checkpoint: &SignedCheckpoint, entered: Option<i64>) -> Result<(), AuditError> {
        let Database::Sqlite(sqlite) = &self.database else { return Ok(()) };
        let head = checkpoint.head();
        match entered {
            None => Ok(database::set_audit_head(sqlite, head.size(), head.root())?),
            Some(number) => sqlite.write(|tx| {
                database::set_audit_head_in(tx, head.size(), head.root())?;
                Ok(changes::entered(tx, number)?)
            }),
        }
    }

    /// Proof that entry `index` stands in the log, as of the newest checkpoint.
    ///
    /// # Errors
    /// [`AuditError`]; [`TileError::Range`] inside for an index beyond the log.
    pub fn audit_proof(&self, index: u64) -> Result<EntryProof, AuditError> {
        match &self.audit.log {
            Log::Rows(rows) => rows.proof(&self.database, index),
            Log::Files(files) => files.sequence(|path| self.reopened(path), |log| Ok(log.proof(index)?)),
        }
    }

    /// The newest checkpoint, as text.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn checkpoint(&self) -> Result<SignedCheckpoint, AuditError> {
        match &self.audit.log {
            Log::Rows(rows) => rows.checkpoint(&self.database),
            Log::Files(files) => files.checkpoint(|path| self.reopened(path)),
        }
    }

    /// The bytes of a tile or entry bundle.
    ///
    /// # Errors
    /// [`TileError::Missing`] where the log has no such tile.
    pub fn tile(&self, path: &TilePath) -> Result<Vec<u8>, TileError> {
        match &self.audit.log {
            Log::Rows(_) if self.log_set_back() => {
                let source = "the log was found set back or replaced: nothing of it is shown".into();
                Err(TileError::Read { path: *path, source })
            }
            Log::Rows(_) => DatabaseTiles(&self.database).read(path),
            Log::Files(files) => files.dir.read(path),
        }
    }

    /// The proof that the log of `size` entries extends its own first `old` ones.
    pub(crate) fn consistency_proof(&self, old: u64, size: u64) -> Result<Vec<types::Sha256Digest>, TileError> {
        match &self.audit.log {
            Log::Rows(_) => Tree::new(&DatabaseTiles(&self.database), size).consistency_proof(old),
            Log::Files(files) => Tree::new(&files.dir, size).consistency_proof(old),
        }
    }

    /// The audit log's public key, named by its origin.
    #[must_use]
    pub const fn audit_key(&self) -> &LogKey {
        &self.audit.key
    }

    /// Adds cosignatures to the newest checkpoint; `cosigned` must be of the same head.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn set_cosigned(&self, cosigned: SignedCheckpoint) -> Result<(), AuditError> {
        match &self.audit.log {
            Log::Rows(rows) => rows.set_cosigned(&self.database, &cosigned),
            Log::Files(files) => files.sequence(|path| self.reopened(path), |log| Ok(log.set_cosigned(cosigned)?)),
        }
    }

    /// Recomputes the whole audit log from its entries, each of which must be of a known form. Nothing is appended
    /// meanwhile.
    ///
    /// # Errors
    /// [`AuditVerifyError`].
    pub fn verify_audit(&self) -> Result<AuditSummary, AuditVerifyError> {
        self.verify_audit_with(|_, _| ())
    }

    /// [`Store::verify_audit`] that shows each entry with its index to `visit`. What was shown is verified only when
    /// the whole call succeeds.
    ///
    /// # Errors
    /// [`AuditVerifyError`].
    pub fn verify_audit_with(&self, mut visit: impl FnMut(u64, &AuditEntry)) -> Result<AuditSummary, AuditVerifyError> {
        let guard = match &self.audit.log {
            Log::Files(files) => files.hold(),
            // What a checkpoint of rows covers never changes.
            Log::Rows(_) => None,
        };
        // Before the checkpoint, which another process may move on meanwhile.
        let head = self.database.read(database::audit_head)?;
        let (mut key_releases, mut refusals) = (0_u64, 0_u64);
        let look = |index, bytes: &[u8]| {
            let entry = AuditEntry::parse(bytes).map_err(|error| error.to_string())?;
            visit(index, &entry);
            match entry {
                AuditEntry::KeyRelease(_) => key_releases = key_releases.saturating_add(1),
                AuditEntry::Refusal(_) => refusals = refusals.saturating_add(1),
                AuditEntry::Refusals(entry) => refusals = refusals.saturating_add(entry.refusals),
                AuditEntry::Owner(_) | AuditEntry::Operator(_) => {}
            }
            Ok(())
        };
        let checkpoint = match &self.audit.log {
            Log::Files(files) => tile_log::verify(&files.dir, &self.audit.key, look)?,
            Log::Rows(rows) => {
                let checkpoint = rows.checkpoint(&self.database).map_err(|error| match error {
                    AuditError::Checkpoint(error) => AuditVerifyError::Log(error.into()),
                    AuditError::Database(error) => AuditVerifyError::Database(error),
                    _ => AuditVerifyError::Database(DatabaseError::Row("audit_head")),
                })?;
                tile_log::verify_tiles(&DatabaseTiles(&self.database), &checkpoint, look)?;
                checkpoint
            }
        };
        drop(guard);
        let (known, found) = (head.map_or(0, |(size, _)| size), checkpoint.head().size());
        if known > found {
            return Err(AuditVerifyError::RolledBack { known, found });
        }
        Ok(AuditSummary { checkpoint, key_releases, refusals })
    }

    fn reopened(&self, path: &Path) -> Result<TileLog, AuditError> {
        Ok(self.reopened_log(path)?)
    }
}
