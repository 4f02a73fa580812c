// SPDX-License-Identifier: Apache-2.0
//! The database, embedded or PostgreSQL, and what several modules share.

use std::path::PathBuf;

use types::Sha256Digest;

use crate::postgres::Postgres;
use crate::schema::VERSION;
use crate::sql::{Tx, Value, integer};
use crate::sqlite::Sqlite;

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// It is not there.
    #[error("{} is not a store; make one with `init`", .0.display())]
    Missing(PathBuf),
    /// The PostgreSQL database has none of our tables.
    #[error("the database is not a store; make one with `init`")]
    Empty,
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
    /// PostgreSQL refused, with the code of its appendix A.
    #[error("the database refused ({code}): {message}")]
    Postgres {
        /// Five characters.
        code: String,
        /// Its primary message, without details.
        message: String,
    },
    /// PostgreSQL can't be reached, or the connection broke off.
    #[error("the database can't be reached: {0}")]
    Unreachable(String),
    /// The answer to a commit was lost: what was written may be kept, or not.
    #[error("whether the database kept what was written is not known, since its answer was lost: {0}")]
    InDoubt(#[source] Box<DatabaseError>),
    /// PostgreSQL did not answer in time.
    #[error("the database did not answer within {0} s")]
    TimedOut(u64),
    /// The PostgreSQL server would lose, or not take, what is written.
    #[error("the database server can't hold a store: {0}")]
    Unsuitable(String),
    /// Made by another version.
    #[error("the database has schema version {found}, this program knows {known}")]
    Version {
        /// Found in the database.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The system gave no randomness for the mark of a change.
    #[error("the system gave no randomness")]
    Randomness,
    /// A row that can't have been written by this program.
    #[error("the database has a malformed row in {0}")]
    Row(&'static str),
    /// An earlier operation panicked.
    #[error("the store must be reopened: an earlier operation did not end")]
    Poisoned,
}

/// A mark of the state of releases, revocations, policies and owners: while it stays, none of them changes, whoever
/// writes, in whatever process. Two are equal or not, and have no order: after a failover to a standby that lacked
/// commits another change has the number of one that was lost, but not its random mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    number: u64,
    mark: i64,
}

/// Where everything but SQLite's audit log is.
pub(crate) enum Database {
    Sqlite(Box<Sqlite>),
    Postgres(Box<Postgres>),
}

impl Database {
    /// A transaction that writes what [`Generation`] does not cover. Transactions of other replicas may run at the same
    /// time: where that matters, take a lock first.
    pub(crate) fn write<T, E: From<DatabaseError>>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        match self {
            Self::Sqlite(sqlite) => sqlite.write(work),
            Self::Postgres(postgres) => postgres.write("BEGIN", work),
        }
    }

    /// A transaction that changes what [`Generation`] covers, and moves it. Of all processes one at a time.
    pub(crate) fn change<T, E: From<DatabaseError>>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.write(|tx| {
            // First, since its row is locked until the end: whoever changes something, too, waits here.
            tx.execute("UPDATE changes SET number = number + 1, mark = ?1", &[Value::Int(random()?)])?;
            own_schema(tx, true)?;
            work(tx)
        })
    }

    /// Reads one state, however long it takes.
    pub(crate) fn snapshot<T, E: From<DatabaseError>>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        match self {
            Self::Sqlite(sqlite) => sqlite.read(work),
            Self::Postgres(postgres) => {
                postgres.write_at_length("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", work)
            }
        }
    }

    /// Reads what is committed; in PostgreSQL each statement for itself.
    pub(crate) fn read<T, E: From<DatabaseError>>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        match self {
            Self::Sqlite(sqlite) => sqlite.read(work),
            Self::Postgres(postgres) => postgres.read(work),
        }
    }
}

/// The present mark, of tables of this program's version: what another one means by them is not known.
pub(crate) fn generation(tx: &mut Tx<'_>) -> Result<Generation, DatabaseError> {
    let sql = match tx {
        Tx::Sqlite(_) => "SELECT number, mark, user_version FROM changes, pragma_user_version",
        Tx::Postgres(_) => "SELECT number, mark, version FROM changes, schema_version",
    };
    let row = tx.first(sql, &[])?.ok_or(DatabaseError::Row("changes"))?;
    own(row.int(2)?)?;
    Ok(Generation { number: row.number(0)?, mark: row.int(1)? })
}

/// A mark that nobody has seen.
pub(crate) fn random() -> Result<i64, DatabaseError> {
    let mut bytes = [0; 8];
    key_wrap::random(&mut bytes).map_err(|_| DatabaseError::Randomness)?;
    Ok(i64::from_be_bytes(bytes))
}

/// Refuses tables that a newer program brought up to date while this one runs. `held`: nobody does until the end of the
/// transaction.
pub(crate) fn own_schema(tx: &mut Tx<'_>, held: bool) -> Result<(), DatabaseError> {
    let sql = match (&*tx, held) {
        // Whoever writes is alone; whoever reads sees one state.
        (Tx::Sqlite(_), _) => "SELECT user_version FROM pragma_user_version",
        (Tx::Postgres(_), false) => "SELECT version FROM schema_version",
        (Tx::Postgres(_), true) => "SELECT version FROM schema_version FOR SHARE",
    };
    own(tx.first(sql, &[])?.ok_or(DatabaseError::Row("schema_version"))?.int(0)?)
}

const fn own(found: i64) -> Result<(), DatabaseError> {
    if found == VERSION { Ok(()) } else { Err(DatabaseError::Version { found, known: VERSION }) }
}

pub(crate) fn put_meta(tx: &mut Tx<'_>, name: &str, value: &[u8]) -> Result<(), DatabaseError> {
    let sql = "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    tx.execute(sql, &[Value::Text(name), Value::Blob(value)]).map(drop)
}

pub(crate) fn meta(tx: &mut Tx<'_>, name: &str) -> Result<Option<Vec<u8>>, DatabaseError> {
    let row = tx.first("SELECT value FROM meta WHERE name = ?1", &[Value::Text(name)])?;
    row.map(|mut row| row.blob(0)).transpose()
}

/// The newest head of the audit log that this database saw.
pub(crate) fn audit_head(tx: &mut Tx<'_>) -> Result<Option<(u64, Sha256Digest)>, DatabaseError> {
    let row = tx.first("SELECT size, root FROM audit_head", &[])?;
    row.map(|mut row| Ok((row.number(0)?, digest("audit_head", &row.blob(1)?)?))).transpose()
}

/// Records the newest head of a log in a directory. Not synced by itself: the log is on disk already, and the next
/// redemption syncs this, too.
pub(crate) fn set_audit_head(sqlite: &Sqlite, size: u64, root: &Sha256Digest) -> Result<(), DatabaseError> {
    sqlite.write_unsynced(SET_HEAD, &[Value::Int(integer("audit_head", size)?), Value::Blob(root.as_bytes())])
}

/// The same in a transaction, with which it is synced.
pub(crate) fn set_audit_head_in(tx: &mut Tx<'_>, size: u64, root: &Sha256Digest) -> Result<(), DatabaseError> {
    tx.execute(SET_HEAD, &[Value::Int(integer("audit_head", size)?), Value::Blob(root.as_bytes())]).map(drop)
}

pub(crate) fn digest(table: &'static str, bytes: &[u8]) -> Result<Sha256Digest, DatabaseError> {
    Sha256Digest::from_slice(bytes).map_err(|_| DatabaseError::Row(table))
}

const SET_HEAD: &str = "INSERT INTO audit_head (one, size, root) VALUES (1, ?1, ?2)
    ON CONFLICT (one) DO UPDATE SET size = excluded.size, root = excluded.root WHERE excluded.size >= size";
