// SPDX-License-Identifier: Apache-2.0
//! The SQLite database: schema, opening, and what several modules share.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};
use types::Sha256Digest;

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// It is not there.
    #[error("{} is not a store; make one with `init`", .0.display())]
    Missing(PathBuf),
    /// It could not be made.
    #[error("could not make {}: {source}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// SQLite refused.
    #[error("the database refused: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// Made by another version.
    #[error("the database has schema version {found}, this program knows {known}")]
    Version {
        /// Found in the database.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A row that can't have been written by this program.
    #[error("the database has a malformed row in {0}")]
    Row(&'static str),
    /// An earlier operation panicked.
    #[error("the store must be reopened: an earlier operation did not end")]
    Poisoned,
}

pub(crate) fn create(path: &Path) -> Result<Connection, DatabaseError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // SQLite gives its WAL the mode of the database file.
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map_err(|source| DatabaseError::Create { path: path.to_owned(), source })?;
    let connection = connect(path)?;
    connection.execute_batch(SCHEMA)?;
    connection.execute_batch(OWNERS)?;
    connection.pragma_update(None, "user_version", VERSION)?;
    Ok(connection)
}

pub(crate) fn open(path: &Path) -> Result<Connection, DatabaseError> {
    if !path.is_file() {
        return Err(DatabaseError::Missing(path.to_owned()));
    }
    let mut connection = connect(path)?;
    match version(&connection)? {
        VERSION => {}
        1 => migrate(&mut connection)?,
        found => return Err(DatabaseError::Version { found, known: VERSION }),
    }
    Ok(connection)
}

fn version(connection: &Connection) -> Result<i64, DatabaseError> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// From version 1, which had no owners. Another process may do the same at the same time.
fn migrate(connection: &mut Connection) -> Result<(), DatabaseError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if version(&transaction)? == 1 {
        transaction.execute_batch(OWNERS)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()?;
    Ok(())
}

fn connect(path: &Path) -> Result<Connection, DatabaseError> {
    use rusqlite::OpenFlags;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "trusted_schema", "OFF")?;
    connection.pragma_update(None, "cell_size_check", "ON")?;
    connection.pragma_update(None, "secure_delete", "ON")?;
    Ok(connection)
}

pub(crate) fn lock(database: &Mutex<Connection>) -> Result<MutexGuard<'_, Connection>, DatabaseError> {
    database.lock().map_err(|_| DatabaseError::Poisoned)
}

pub(crate) fn put_meta(connection: &Connection, name: &str, value: &[u8]) -> Result<(), DatabaseError> {
    connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)", params![name, value])?;
    Ok(())
}

pub(crate) fn meta(connection: &Connection, name: &str) -> Result<Option<Vec<u8>>, DatabaseError> {
    Ok(connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0)).optional()?)
}

/// The newest head of the audit log that this database saw.
pub(crate) fn audit_head(connection: &Connection) -> Result<Option<(u64, Sha256Digest)>, DatabaseError> {
    let row = connection
        .query_row("SELECT size, root FROM audit_head", [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?))
        })
        .optional()?;
    let Some((size, root)) = row else { return Ok(None) };
    Ok(Some((number("audit_head", size)?, digest("audit_head", &root)?)))
}

/// Records the newest head. Not synced by itself: the log is on disk already, and the next redemption syncs this, too.
pub(crate) fn set_audit_head(connection: &Connection, size: u64, root: &Sha256Digest) -> Result<(), DatabaseError> {
    let size = i64::try_from(size).map_err(|_| DatabaseError::Row("audit_head"))?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    let recorded = connection.execute(
        "INSERT INTO audit_head (one, size, root) VALUES (1, ?1, ?2)
         ON CONFLICT (one) DO UPDATE SET size = excluded.size, root = excluded.root WHERE excluded.size >= size",
        params![size, root.as_bytes()],
    );
    connection.pragma_update(None, "synchronous", "FULL")?;
    recorded?;
    Ok(())
}

pub(crate) fn number(table: &'static str, value: i64) -> Result<u64, DatabaseError> {
    u64::try_from(value).map_err(|_| DatabaseError::Row(table))
}

pub(crate) fn digest(table: &'static str, bytes: &[u8]) -> Result<Sha256Digest, DatabaseError> {
    Sha256Digest::from_slice(bytes).map_err(|_| DatabaseError::Row(table))
}

const VERSION: i64 = 2;

const SCHEMA: &str = "
BEGIN;
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE secrets (name TEXT PRIMARY KEY, wrapped BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE model_keys (
    model TEXT NOT NULL, version INTEGER NOT NULL CHECK (version BETWEEN 1 AND 4294967295), wrapped BLOB NOT NULL,
    PRIMARY KEY (model, version)) STRICT, WITHOUT ROWID;
CREATE TABLE releases (digest BLOB PRIMARY KEY CHECK (length(digest) = 32), bundle BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE revoked (
    kind TEXT NOT NULL CHECK (kind IN ('release', 'platform', 'model')), subject TEXT NOT NULL,
    PRIMARY KEY (kind, subject)) STRICT, WITHOUT ROWID;
CREATE TABLE redeemed (
    token BLOB PRIMARY KEY CHECK (length(token) = 32), expires INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX redeemed_by_expiry ON redeemed (expires);
CREATE TABLE policies (name TEXT PRIMARY KEY, document BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE audit_head (
    one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL, root BLOB NOT NULL CHECK (length(root) = 32)) STRICT;
COMMIT;
";

/// Since version 2.
const OWNERS: &str = "
CREATE TABLE owners (
    model TEXT PRIMARY KEY, key BLOB NOT NULL CHECK (length(key) = 32), sequence INTEGER NOT NULL CHECK (sequence >= 0),
    policy BLOB) STRICT, WITHOUT ROWID;
";
