// SPDX-License-Identifier: Apache-2.0
//! One dialect of SQL for both databases: values go in as `?1`, `?2`, …; columns are 64-bit integers, text and bytes.
//!
//! A statement may use what SQLite and PostgreSQL have in common, `ON CONFLICT` and `RETURNING` included.

use crate::database::DatabaseError;
use crate::{postgres, sqlite};

/// A value for a parameter.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'a> {
    /// Where the column may be empty.
    Null,
    /// `INTEGER`.
    Int(i64),
    /// `TEXT`.
    Text(&'a str),
    /// `BLOB`.
    Blob(&'a [u8]),
}

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cell {
    Null,
    Int(i64),
    Text(String),
    Blob(Vec<u8>),
}

/// A row of an answer.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) cells: Vec<Cell>,
    /// The statement, to name a row that is malformed.
    pub(crate) sql: &'static str,
}

/// A transaction, or single statements that each see what is committed.
pub(crate) enum Tx<'a> {
    Sqlite(&'a rusqlite::Connection),
    Postgres(&'a mut postgres::Session),
}

impl Tx<'_> {
    /// Runs a statement and gives the number of rows that it changed.
    pub(crate) fn execute(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<u64, DatabaseError> {
        match self {
            Self::Sqlite(connection) => sqlite::execute(connection, sql, values),
            Self::Postgres(session) => session.execute(sql, values),
        }
    }

    /// All rows of an answer.
    pub(crate) fn query(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<Vec<Row>, DatabaseError> {
        match self {
            Self::Sqlite(connection) => sqlite::query(connection, sql, values),
            Self::Postgres(session) => session.query(sql, values),
        }
    }

    /// The first row of an answer.
    pub(crate) fn first(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<Option<Row>, DatabaseError> {
        Ok(self.query(sql, values)?.into_iter().next())
    }
}

impl Row {
    /// An integer.
    pub(crate) fn int(&self, column: usize) -> Result<i64, DatabaseError> {
        match self.cells.get(column) {
            Some(Cell::Int(value)) => Ok(*value),
            _ => Err(self.malformed()),
        }
    }

    /// An integer that is not negative.
    pub(crate) fn number(&self, column: usize) -> Result<u64, DatabaseError> {
        u64::try_from(self.int(column)?).map_err(|_| self.malformed())
    }

    /// Text, which is taken out of the row.
    pub(crate) fn text(&mut self, column: usize) -> Result<String, DatabaseError> {
        match self.cells.get_mut(column) {
            Some(Cell::Text(value)) => Ok(core::mem::take(value)),
            _ => Err(self.malformed()),
        }
    }

    /// Bytes, which are taken out of the row.
    pub(crate) fn blob(&mut self, column: usize) -> Result<Vec<u8>, DatabaseError> {
        match self.cells.get_mut(column) {
            Some(Cell::Blob(value)) => Ok(core::mem::take(value)),
            _ => Err(self.malformed()),
        }
    }

    /// What a column that this program did not write comes to.
    pub(crate) const fn malformed(&self) -> DatabaseError {
        DatabaseError::Row(self.sql)
    }
}

impl Cell {
    /// The same as a parameter.
    pub(crate) fn value(&self) -> Value<'_> {
        match self {
            Self::Null => Value::Null,
            Self::Int(value) => Value::Int(*value),
            Self::Text(value) => Value::Text(value),
            Self::Blob(value) => Value::Blob(value),
        }
    }
}

/// An unsigned number as the databases keep it.
pub(crate) fn integer(table: &'static str, value: u64) -> Result<i64, DatabaseError> {
    i64::try_from(value).map_err(|_| DatabaseError::Row(table))
}
