// SPDX-License-Identifier: Apache-2.0
//! The embedded database: one file, WAL, every commit synced.

use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, TransactionBehavior};

use crate::database::DatabaseError;
use crate::schema::{self, VERSION};
use crate::sql::{Cell, Row, Tx, Value};

/// Two connections to one file.
pub(crate) struct Sqlite {
    /// Writes; reads that must see them in order.
    writer: Mutex<Connection>,
    /// Reads what is committed, while another thread waits for the disk.
    reader: Mutex<Connection>,
}

impl Sqlite {
    pub(crate) fn create(path: &Path) -> Result<Self, DatabaseError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        // SQLite gives its WAL the mode of the database file.
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        made.map_err(|source| DatabaseError::Create { path: path.to_owned(), source })?;
        Self::open(path)
    }

    pub(crate) fn open(path: &Path) -> Result<Self, DatabaseError> {
        if !path.is_file() {
            return Err(DatabaseError::Missing(path.to_owned()));
        }
        let mut writer = connect(path)?;
        migrate(&mut writer)?;
        Ok(Self { writer: Mutex::new(writer), reader: Mutex::new(connect(path)?) })
    }

    /// Moves everything into the one file, which is synced.
    pub(crate) fn close(self) -> Result<(), DatabaseError> {
        let reader = self.reader.into_inner().map_err(|_| DatabaseError::Poisoned)?;
        reader.close().map_err(|(_, error)| error)?;
        let writer = self.writer.into_inner().map_err(|_| DatabaseError::Poisoned)?;
        writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(writer.close().map_err(|(_, error)| error)?)
    }

    /// A transaction that writes; of several processes one at a time.
    pub(crate) fn write<T, E: From<DatabaseError>>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let connection = lock(&self.writer)?;
        let transaction = Begun::begin(&connection, "BEGIN IMMEDIATE")?;
        let result = work(&mut Tx::Sqlite(&connection))?;
        transaction.commit()?;
        Ok(result)
    }

    /// A transaction that reads one state.
    pub(crate) fn read<T, E: From<DatabaseError>>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let connection = lock(&self.reader)?;
        let transaction = Begun::begin(&connection, "BEGIN")?;
        let result = work(&mut Tx::Sqlite(&connection));
        drop(transaction);
        result
    }

    /// A write that is not synced by itself, but with the next one.
    pub(crate) fn write_unsynced(&self, sql: &'static str, values: &[Value<'_>]) -> Result<(), DatabaseError> {
        let connection = lock(&self.writer)?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let written = execute(&connection, sql, values);
        connection.pragma_update(None, "synchronous", "FULL")?;
        written.map(drop)
    }
}

/// A transaction, rolled back unless it was committed. As `rusqlite`'s own, with statements that are prepared once.
struct Begun<'a> {
    connection: &'a Connection,
}

impl<'a> Begun<'a> {
    fn begin(connection: &'a Connection, sql: &'static str) -> Result<Self, DatabaseError> {
        execute(connection, sql, &[])?;
        Ok(Self { connection })
    }

    fn commit(self) -> Result<(), DatabaseError> {
        execute(self.connection, "COMMIT", &[]).map(drop)
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        // Over already where it was committed, or where an error ended it.
        if !self.connection.is_autocommit() {
            let _ = execute(self.connection, "ROLLBACK", &[]);
        }
    }
}

pub(crate) fn execute(connection: &Connection, sql: &'static str, values: &[Value<'_>]) -> Result<u64, DatabaseError> {
    let changed = connection.prepare_cached(sql)?.execute(rusqlite::params_from_iter(values))?;
    Ok(u64::try_from(changed).unwrap_or(u64::MAX))
}

pub(crate) fn query(
    connection: &Connection,
    sql: &'static str,
    values: &[Value<'_>],
) -> Result<Vec<Row>, DatabaseError> {
    let mut statement = connection.prepare_cached(sql)?;
    let columns = statement.column_count();
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let mut cells = Vec::with_capacity(columns);
        for column in 0..columns {
            cells.push(match row.get_ref(column)? {
                ValueRef::Null => Cell::Null,
                ValueRef::Integer(value) => Cell::Int(value),
                ValueRef::Text(text) => {
                    Cell::Text(String::from_utf8(text.to_vec()).map_err(|_| DatabaseError::Row(sql))?)
                }
                ValueRef::Blob(bytes) => Cell::Blob(bytes.to_vec()),
                ValueRef::Real(_) => return Err(DatabaseError::Row(sql)),
            });
        }
        all.push(Row { cells, sql });
    }
    Ok(all)
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Int(value) => ValueRef::Integer(*value),
            Self::Text(value) => ValueRef::Text(value.as_bytes()),
            Self::Blob(value) => ValueRef::Blob(value),
        }))
    }
}

fn connect(path: &Path) -> Result<Connection, DatabaseError> {
    use rusqlite::OpenFlags;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "trusted_schema", "OFF")?;
    connection.pragma_update(None, "cell_size_check", "ON")?;
    connection.pragma_update(None, "secure_delete", "ON")?;
    Ok(connection)
}

/// From whatever older version. Another process may do the same at the same time.
fn migrate(connection: &mut Connection) -> Result<(), DatabaseError> {
    if version(connection)? == VERSION {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in schema::steps_from(version(&transaction)?)? {
        transaction.execute_batch(&step.for_sqlite())?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    Ok(())
}

fn version(connection: &Connection) -> Result<i64, DatabaseError> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

fn lock(database: &Mutex<Connection>) -> Result<MutexGuard<'_, Connection>, DatabaseError> {
    database.lock().map_err(|_| DatabaseError::Poisoned)
}

/// More than there are different statements.
const STATEMENTS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    /// 2 is FULL: each commit is synced, after a write that was not, too.
    #[test]
    fn commits_are_synced() {
        let dir = tempfile::tempdir().unwrap();
        let sqlite = Sqlite::create(&dir.path().join("db")).unwrap();
        let synchronous = || -> Vec<i64> {
            let read = |connection: &Mutex<Connection>| {
                lock(connection).unwrap().pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap()
            };
            [&sqlite.writer, &sqlite.reader].map(read).to_vec()
        };
        assert_eq!(synchronous(), [2, 2]);
        sqlite.write_unsynced("UPDATE changes SET number = number + 1", &[]).unwrap();
        assert_eq!(synchronous(), [2, 2]);
        sqlite.write_unsynced("UPDATE changes SET one = 7", &[]).unwrap_err();
        assert_eq!(synchronous(), [2, 2], "where it was refused, too");
    }
}
