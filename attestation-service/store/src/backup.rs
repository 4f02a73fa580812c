// SPDX-License-Identifier: Apache-2.0
//! A consistent copy of a store while services run on it. Keys in it stay wrapped; the key that wraps them is not in it.

use std::io::Write;
use std::path::Path;

use release::log::{SignedCheckpoint, TileError, TilePath};
use types::Sha256Digest;

use crate::archive::{ArchiveError, Writer};
use crate::audit::{AuditError, DatabaseTiles, Log};
use crate::database::DatabaseError;
use crate::schema::VERSION;
use crate::tables::TABLES;
use crate::{OpenError, Store, changes, restore};

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupSummary {
    /// Entries of the audit log.
    pub size: u64,
    /// Its root.
    pub root: Sha256Digest,
    /// Bytes of the tables beside it.
    pub bytes_of_tables: u64,
    /// Its newest checkpoint in the copy: to be kept elsewhere.
    pub checkpoint: String,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A tile of it.
    #[error("the audit log is damaged: {0}")]
    Tile(#[from] TileError),
    /// The log's key, which signs the archive.
    #[error("the audit log's key can't be used: {0}")]
    Key(#[source] Box<OpenError>),
    /// The log was refused, or not written.
    #[error(transparent)]
    Log(#[from] tile_log::ExportError),
    /// The operator changes something all the time.
    #[error("releases, policies or keys were changed during each of {TRIES} tries: try again")]
    Changing,
    /// The archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// A table's name and rows.
type NamedTable = (&'static str, Vec<u8>);

impl Store {
    /// Writes an archive. `progress` sees how many entries of the log are written, and of how many.
    ///
    /// The log in it is as new as the tables, or newer: what the tables show was entered before. The log is copied, not
    /// verified; [`Store::restore`] verifies it. The whole is signed by the log's key.
    ///
    /// # Errors
    /// [`BackupError`]; what was written so far is no archive.
    pub fn backup(
        &self,
        to: &mut impl Write,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<BackupSummary, BackupError> {
        let signer = self.audit_signer().map_err(|error| BackupError::Key(Box::new(error)))?;
        // The tables first: an entry stands in the log before what it says is done.
        let (tables, checkpoint) = self.tables_and_checkpoint()?;
        let size = checkpoint.head().size();
        let mut writer = Writer::new(to, VERSION)?;
        let mut bytes_of_tables = 0_u64;
        for (name, bytes) in tables {
            bytes_of_tables = bytes_of_tables.saturating_add(bytes.len() as u64);
            writer.member(&restore::table_member(name), &bytes, restore::MAX_TABLE)?;
        }
        writer.member(restore::CHECKPOINT, checkpoint.note().as_bytes(), release::log::note::MAX_NOTE)?;
        for number in 0.. {
            let Some(path) = TilePath::entries(number, size) else { break };
            writer.member(&restore::entries_member(number), &self.tile(&path)?, restore::MAX_BUNDLE)?;
            progress(number.saturating_mul(256).saturating_add(path.width().into()), size);
        }
        let root = *checkpoint.head().root();
        writer.finish(size, root, &signer)?;
        Ok(BackupSummary { size, root, bytes_of_tables, checkpoint: checkpoint.note().to_owned() })
    }

    /// The tables, and the checkpoint of a log that has no change of the operator which they lack.
    fn tables_and_checkpoint(&self) -> Result<(Vec<NamedTable>, SignedCheckpoint), BackupError> {
        for _ in 0..TRIES {
            let (tables, before) = self.database.snapshot(|tx| {
                let tables = TABLES.iter().map(|table| Ok((table.name, table.read(tx)?)));
                let tables = tables.collect::<Result<Vec<_>, DatabaseError>>()?;
                Ok::<_, DatabaseError>((tables, changes::last(tx)?))
            })?;
            let checkpoint = self.checkpoint()?;
            // A change is committed before its entry is made.
            if self.database.read(changes::last)? == before {
                return Ok((tables, checkpoint));
            }
        }
        Err(BackupError::Changing)
    }

    /// Verifies the whole log and writes it as a directory of tiles with its newest checkpoint, which it gives.
    ///
    /// # Errors
    /// [`BackupError`]; what was written so far is no log: the checkpoint comes last.
    pub fn export_audit(&self, out: &Path) -> Result<SignedCheckpoint, BackupError> {
        let checkpoint = self.checkpoint()?;
        match &self.audit.log {
            Log::Files(files) => tile_log::export(files.tiles(), &checkpoint, out)?,
            Log::Rows(_) => tile_log::export(&DatabaseTiles(&self.database), &checkpoint, out)?,
        }
        Ok(checkpoint)
    }
}

/// How often tables are read until nothing changes meanwhile.
const TRIES: u32 = 1000;
