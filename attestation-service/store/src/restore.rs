// SPDX-License-Identifier: Apache-2.0
//! A store out of a backup, into an empty place: every digest, the signature over them, every wrapped key and the whole
//! audit log are verified before the store is there.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use key_wrap::{KekError, KekSource, WrapError};
use release::log::{CheckpointError, Edge, EdgeError, LogSigner, SignedCheckpoint, TileError, TilePath};
use tile_log::TileLog;
use types::ModelId;
use zeroize::Zeroizing;

use crate::archive::{ArchiveError, Manifest, Reader};
use crate::audit::{AuditError, RowWriter};
use crate::challenges::META_PRUNED;
use crate::database::{self, DatabaseError};
use crate::entry::AuditEntry;
use crate::keyring::Keyring;
use crate::keys::{key_context, secret_context};
use crate::open::{AUDIT, DATABASE, KEK, META_ORIGIN, SECRET_AUDIT, make_private_dir};
use crate::postgres::{Postgres, PostgresSettings};
use crate::schema::VERSION;
use crate::sql::{Cell, Tx, Value, integer};
use crate::sqlite::Sqlite;
use crate::tables::{TABLES, Table};
use crate::{KeyStoreError, Location, Store, changes};

/// How a store is restored.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// The key that opens what is wrapped in the archive; `DIR/kek` when it is `None`, which a database server does not
    /// have.
    pub kek: Option<KekSource>,
    /// Other keys that rows are wrapped by.
    pub other_keks: Vec<KekSource>,
    /// A checkpoint of the audit log kept elsewhere: an archive whose log does not extend it is too old.
    pub known_checkpoint: Option<String>,
    /// Every challenge that ends at this time or before is void: now, and as much as a challenge lasts.
    pub void_until: u64,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Made by another version.
    #[error(
        "the archive holds tables of version {found}, this program knows {known}; restore it with the program that made it"
    )]
    Version {
        /// In the archive.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// There is a store, or a part of one.
    #[error("{0} exists already")]
    Exists(PathBuf),
    /// The database has tables of a store.
    #[error("the database holds a store already")]
    NotEmpty,
    /// A store in a database server has no directory for it.
    #[error("say where the key-wrapping key is")]
    NoKek,
    /// The key-wrapping key.
    #[error(transparent)]
    Kek(#[from] KekError),
    /// It does not open a row of the archive.
    #[error("the key-wrapping key does not open {row}: {source}")]
    Row {
        /// Which.
        row: String,
        /// Why not.
        #[source]
        source: Box<KeyStoreError>,
    },
    /// A table of the archive.
    #[error("the archive's table {0} is malformed")]
    Table(&'static str),
    /// The audit log's key or origin.
    #[error("the archive has no key of the audit log, or a malformed one")]
    AuditKey,
    /// The log's checkpoint in the archive.
    #[error("the archive's checkpoint was refused: {0}")]
    Checkpoint(CheckpointError),
    /// The known checkpoint is not of this log.
    #[error("the known checkpoint was refused: {0}")]
    KnownCheckpoint(CheckpointError),
    /// The archive is older than the known checkpoint, or of another history.
    #[error(
        "the archive is older than the known checkpoint, or of another history: {known} entries are known, it has {found}"
    )]
    RolledBack {
        /// Entries of the known checkpoint.
        known: u64,
        /// Entries of the archive.
        found: u64,
    },
    /// The entries do not give the root that the checkpoint says.
    #[error("the archive's entries give another root than its checkpoint's")]
    Root,
    /// An entry is not one of an audit log.
    #[error("entry {index} of the archive was refused: {rule}")]
    Entry {
        /// Its index.
        index: u64,
        /// Why.
        rule: String,
    },
    /// The tables lack a change of the operator that the log has an entry of.
    #[error("the archive's tables have {known} changes of the operator, its log has entries of {found}")]
    ChangesLost {
        /// Changes that the tables counted.
        known: i64,
        /// Number of the newest one in the log.
        found: i64,
    },
    /// A bundle of entries is malformed.
    #[error("the archive's log is malformed: {0}")]
    Tile(#[from] TileError),
    /// An entry can't be in a log.
    #[error(transparent)]
    Edge(#[from] EdgeError),
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The audit log could not be made.
    #[error(transparent)]
    LogOpen(#[from] tile_log::OpenError),
    /// The audit log could not be written.
    #[error(transparent)]
    LogAppend(#[from] tile_log::AppendError),
    /// The audit log in a database server.
    #[error(transparent)]
    AuditRows(#[from] AuditError),
    /// A file.
    #[error("could not write {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl RestoreError {
    /// Whether the key-wrapping key could not be asked, so that it may be the right one.
    #[must_use]
    pub fn kek_unavailable(&self) -> bool {
        let Self::Row { source, .. } = self else { return false };
        matches!(source.as_ref(), KeyStoreError::Wrap(WrapError::Unavailable(_) | WrapError::Randomness))
    }
}

/// The tables of an archive, opened and verified.
struct Contents {
    rows: Vec<(&'static Table, Vec<Vec<Cell>>)>,
    /// Of the audit log's key.
    seed: Zeroizing<[u8; 32]>,
    origin: String,
    checkpoint: SignedCheckpoint,
    known: Option<SignedCheckpoint>,
    void_until: i64,
}

impl Store {
    /// Makes a store from an archive of [`Store::backup`], in a place where there is none (a key-wrapping key may be
    /// there). `progress` sees how many entries of the log are written, and of how many. Gives the log's checkpoint.
    ///
    /// The archive must be signed by the key of its own audit log, which nobody has without the key-wrapping key; with a
    /// known checkpoint that is the key that signed it.
    ///
    /// All challenges are void: those that were redeemed are not in an archive.
    ///
    /// # Errors
    /// [`RestoreError`]; then there is no store.
    pub fn restore(
        location: impl Into<Location>,
        from: impl Read,
        options: &RestoreOptions,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<SignedCheckpoint, RestoreError> {
        let mut reader = opened(from)?;
        match location.into() {
            Location::Directory(dir) => restore_directory(&dir, reader, options, &mut progress),
            Location::Postgres(settings) => {
                let source = options.kek.clone().ok_or(RestoreError::NoKek)?;
                let contents = Contents::read(&mut reader, &source, options)?;
                restore_postgres(&settings, reader, &contents, &mut progress)?;
                Ok(contents.checkpoint)
            }
        }
    }

    /// Reads and verifies a whole archive as [`Store::restore`] does, and writes nothing. Gives the log's checkpoint.
    ///
    /// What this does not establish: that the database takes every row.
    ///
    /// # Errors
    /// [`RestoreError`]; [`RestoreError::NoKek`] where the options name no key.
    pub fn check_backup(
        from: impl Read,
        options: &RestoreOptions,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<SignedCheckpoint, RestoreError> {
        let mut reader = opened(from)?;
        let source = options.kek.as_ref().ok_or(RestoreError::NoKek)?;
        let contents = Contents::read(&mut reader, source, options)?;
        contents.read_log(reader, &mut progress, |_| Ok(()))?;
        Ok(contents.checkpoint)
    }
}

/// An archive of this program's tables.
fn opened<R: Read>(from: R) -> Result<Reader<R>, RestoreError> {
    match Reader::new(from)? {
        (reader, VERSION) => Ok(reader),
        (_, found) => Err(RestoreError::Version { found, known: VERSION }),
    }
}

impl Contents {
    fn read<R: Read>(
        reader: &mut Reader<R>,
        source: &KekSource,
        options: &RestoreOptions,
    ) -> Result<Self, RestoreError> {
        let keyring = Keyring::open(source, &options.other_keks)?;
        let mut rows = Vec::new();
        for table in TABLES {
            let bytes = reader.member(&table_member(table.name), MAX_TABLE)?;
            rows.push((table, table.parse(&bytes).ok_or(RestoreError::Table(table.name))?));
        }
        let (seed, origin) = open_rows(&rows, &keyring)?;
        let signer = LogSigner::new(&origin, &seed).map_err(|_| RestoreError::AuditKey)?;
        let key = signer.public();
        let note = reader.member(CHECKPOINT, release::log::note::MAX_NOTE)?;
        let note = String::from_utf8(note).map_err(|_| RestoreError::Checkpoint(CheckpointError::Form("not text")))?;
        let checkpoint = SignedCheckpoint::verify(&note, key).map_err(RestoreError::Checkpoint)?;
        let known = options.known_checkpoint.as_deref().map(|note| SignedCheckpoint::verify(note, key));
        let known = known.transpose().map_err(RestoreError::KnownCheckpoint)?;
        let void_until = integer("redeemed", options.void_until)?;
        Ok(Self { rows, seed, origin, checkpoint, known, void_until })
    }

    fn signer(&self) -> Result<LogSigner, RestoreError> {
        LogSigner::new(&self.origin, &self.seed).map_err(|_| RestoreError::AuditKey)
    }

    /// Reads the entries, verifies them, gives them to `write` in order, and at last reads the manifest. Gives the number of
    /// the newest change of the operator among them.
    fn read_log<R: Read>(
        &self,
        mut reader: Reader<R>,
        progress: &mut dyn FnMut(u64, u64),
        mut write: impl FnMut(&[Vec<u8>]) -> Result<(), RestoreError>,
    ) -> Result<i64, RestoreError> {
        let head = self.checkpoint.head();
        let mut newest = 0;
        let mut edge = Edge::empty();
        self.check_known(&edge)?;
        let mut waiting = Vec::new();
        for number in 0.. {
            let Some(path) = TilePath::entries(number, head.size()) else { break };
            let bundle = reader.member(&entries_member(number), MAX_BUNDLE)?;
            for entry in path.split_entries(&bundle)? {
                let (index, _) = edge.append(entry)?;
                let parsed = AuditEntry::parse(entry);
                let parsed = parsed.map_err(|e| RestoreError::Entry { index, rule: e.to_string() })?;
                newest = changes::number_of(&parsed).max(newest);
                self.check_known(&edge)?;
                waiting.push(entry.to_vec());
            }
            // What the edge keeps for writers is not needed here.
            drop(edge.take_files());
            if waiting.len() >= MAX_WAITING {
                write(&core::mem::take(&mut waiting))?;
                progress(edge.size(), head.size());
            }
        }
        if !waiting.is_empty() {
            write(&waiting)?;
        }
        if edge.size() != head.size() || &edge.root() != head.root() {
            return Err(RestoreError::Root);
        }
        if let Some(known) = self.known.as_ref().filter(|known| known.head().size() > head.size()) {
            return Err(RestoreError::RolledBack { known: known.head().size(), found: head.size() });
        }
        let Manifest { size, root, .. } = reader.finish(self.signer()?.public())?;
        if (size, &root) != (head.size(), head.root()) {
            return Err(ArchiveError::Manifest("it names another head of the log".to_owned()).into());
        }
        progress(size, size);
        Ok(newest)
    }

    /// At the known checkpoint's size the log must have its root.
    fn check_known(&self, edge: &Edge) -> Result<(), RestoreError> {
        match self.known.as_ref().map(SignedCheckpoint::head) {
            Some(known) if known.size() == edge.size() && known.root() != &edge.root() => {
                Err(RestoreError::RolledBack { known: known.size(), found: self.checkpoint.head().size() })
            }
            _ => Ok(()),
        }
    }

    /// Writes the tables, voids challenges, and gives services that have seen another store no mark that they know.
    fn write_tables(&self, tx: &mut Tx<'_>) -> Result<(), RestoreError> {
        for (table, rows) in &self.rows {
            table.write(tx, rows)?;
        }
        let pruned: Option<[u8; 8]> = database::meta(tx, META_PRUNED)?.and_then(|bytes| bytes.try_into().ok());
        let until = pruned.map_or(0, i64::from_be_bytes).max(self.void_until);
        database::put_meta(tx, META_PRUNED, &until.to_be_bytes())?;
        tx.execute("UPDATE changes SET mark = ?1", &[Value::Int(database::random()?)])?;
        Ok(())
    }
}

/// The tables must have every change of the operator that the log has; what was queued and stands in the log is done.
fn settle(tx: &mut Tx<'_>, newest: i64) -> Result<(), RestoreError> {
    let known = changes::last(tx)?;
    if newest > known {
        return Err(RestoreError::ChangesLost { known, found: newest });
    }
    Ok(changes::entered(tx, newest)?)
}

fn restore_directory<R: Read>(
    dir: &Path,
    mut reader: Reader<R>,
    options: &RestoreOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<SignedCheckpoint, RestoreError> {
    let (database, audit, unfinished) = (dir.join(DATABASE), dir.join(AUDIT), dir.join(UNFINISHED));
    if let Some(there) = [&database, &audit, &unfinished].into_iter().find(|path| path.exists()) {
        return Err(RestoreError::Exists(there.clone()));
    }
    let source = options.kek.clone().unwrap_or_else(|| dir.join(KEK).into());
    let contents = Contents::read(&mut reader, &source, options)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RestoreError::File { path, source }
    };
    make_private_dir(dir).map_err(failed(dir))?;
    let written = (|| {
        let mut log = TileLog::create(&audit, contents.signer()?)?;
        let newest = contents.read_log(reader, progress, |entries| {
            let entries: Vec<_> = entries.iter().map(Vec::as_slice).collect();
            Ok(log.append(&entries).map(drop)?)
        })?;
        log.set_cosigned(contents.checkpoint.clone())?;
        let head = contents.checkpoint.head();
        let sqlite = Sqlite::create(&unfinished)?;
        sqlite.write(|tx| {
            contents.write_tables(tx)?;
            settle(tx, newest)
        })?;
        database::set_audit_head(&sqlite, head.size(), head.root())?;
        sqlite.close()?;
        // A store is there from here on.
        fs::rename(&unfinished, &database).map_err(failed(&database))?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir))
    })();
    if written.is_err() {
        // Nothing that was there before: the places were empty.
        let _ = fs::remove_dir_all(&audit);
        for file in [UNFINISHED, "store.sqlite.restoring-wal", "store.sqlite.restoring-shm"] {
            let _ = fs::remove_file(dir.join(file));
        }
    }
    written.map(|()| contents.checkpoint)
}

fn restore_postgres<R: Read>(
    settings: &PostgresSettings,
    reader: Reader<R>,
    contents: &Contents,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), RestoreError> {
    let database = Postgres::new(settings)?;
    let signer = contents.signer()?;
    let made = database.create(|tx| {
        contents.write_tables(tx)?;
        let mut log = RowWriter::create(tx, &signer)?;
        let newest = contents.read_log(reader, progress, |entries| Ok(log.append(tx, entries)?))?;
        settle(tx, newest)?;
        Ok::<_, RestoreError>(log.finish(tx, &contents.checkpoint)?)
    })?;
    made.ok_or(RestoreError::NotEmpty)
}

/// Opens every wrapped row, so that a wrong key or a changed row shows now and not when a guest asks.
fn open_rows(
    rows: &[(&'static Table, Vec<Vec<Cell>>)],
    keyring: &Keyring,
) -> Result<(Zeroizing<[u8; 32]>, String), RestoreError> {
    let (mut seed, mut origin) = (None, None);
    let opened = |row: String, kek: &str, wrapped: &[u8], context: &[u8]| {
        let opened = keyring.unwrap(kek, wrapped, context);
        opened.map_err(|source| RestoreError::Row { row, source: Box::new(source) })
    };
    for (table, rows) in rows {
        for row in rows {
            match (table.name, row.as_slice()) {
                ("meta", [Cell::Text(name), Cell::Blob(value)]) if name == META_ORIGIN => {
                    origin = String::from_utf8(value.clone()).ok();
                }
                ("secrets", [Cell::Text(name), Cell::Blob(wrapped), Cell::Text(kek)]) => {
                    let secret = opened(format!("the secret {name}"), kek, wrapped, &secret_context(name))?;
                    if name == SECRET_AUDIT {
                        seed = Some(secret);
                    }
                }
                ("model_keys", [Cell::Text(name), Cell::Int(version), Cell::Blob(wrapped), Cell::Text(kek)]) => {
                    let model: ModelId = name.parse().map_err(|_| RestoreError::Table("model_keys"))?;
                    let version = u32::try_from(*version).map_err(|_| RestoreError::Table("model_keys"))?;
                    opened(
                        format!("version {version} of the key of {name}"),
                        kek,
                        wrapped,
                        &key_context(&model, version),
                    )?;
                }
                _ => {}
            }
        }
    }
    let seed: [u8; 32] = seed.and_then(|seed| seed.as_slice().try_into().ok()).ok_or(RestoreError::AuditKey)?;
    Ok((Zeroizing::new(seed), origin.ok_or(RestoreError::AuditKey)?))
}

pub(crate) fn table_member(name: &str) -> String {
    format!("tables/{name}.json")
}

/// Twelve digits: the order of names is the order of entries.
pub(crate) fn entries_member(number: u64) -> String {
    format!("audit/entries/{number:012}")
}

pub(crate) const CHECKPOINT: &str = "audit/checkpoint";
const UNFINISHED: &str = "store.sqlite.restoring";
pub(crate) const MAX_TABLE: usize = 256 << 20;
pub(crate) const MAX_BUNDLE: usize = 256 * (2 + 65_535);
/// Entries that are written at a time.
const MAX_WAITING: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_cannot_be_asked_is_no_wrong_one() {
        let row = |source| RestoreError::Row { row: "a row".to_owned(), source: Box::new(KeyStoreError::Wrap(source)) };
        assert!(row(WrapError::Unavailable("sealed".to_owned())).kek_unavailable());
        assert!(!row(WrapError::Open).kek_unavailable());
        assert!(!RestoreError::AuditKey.kek_unavailable());
    }
}
