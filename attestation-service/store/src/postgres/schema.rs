// SPDX-License-Identifier: Apache-2.0
//! Making and migrating the tables, of all replicas one at a time.

use super::{Postgres, Session};
use crate::database::DatabaseError;
use crate::schema::{VERSION, steps_from};
use crate::sql::{Tx, Value};

impl Postgres {
    /// Makes the tables in an empty database and fills them by `work`, all or nothing. `None` where there are some.
    pub(crate) fn create<T, E: From<DatabaseError>>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        self.write_at_length(LOCKED, |tx| {
            if version(tx)?.is_some() {
                return Ok(None);
            }
            session(tx)?.batch(
                "CREATE TABLE schema_version (one BIGINT PRIMARY KEY CHECK (one = 1), version BIGINT NOT NULL)",
            )?;
            tx.execute("INSERT INTO schema_version (one, version) VALUES (1, 0)", &[])?;
            advance(tx, 0)?;
            work(tx).map(Some)
        })
    }

    /// Brings the tables up to date; refuses those of a newer program.
    pub(super) fn migrate(&self) -> Result<(), DatabaseError> {
        match self.read(version)? {
            None => Err(DatabaseError::Empty),
            Some(VERSION) => Ok(()),
            Some(_) => self.write_at_length(LOCKED, |tx| {
                let found = version(tx)?.ok_or(DatabaseError::Empty)?;
                advance(tx, found)
            }),
        }
    }
}

fn advance(tx: &mut Tx<'_>, found: i64) -> Result<(), DatabaseError> {
    for step in steps_from(found)? {
        session(tx)?.batch(&step.for_postgres())?;
    }
    tx.execute("UPDATE schema_version SET version = ?1", &[Value::Int(VERSION)]).map(drop)
}

fn version(tx: &mut Tx<'_>) -> Result<Option<i64>, DatabaseError> {
    let there = tx.first("SELECT (to_regclass('schema_version') IS NOT NULL)::text", &[])?;
    if !there.is_some_and(|mut row| row.text(0).is_ok_and(|there| there == "true")) {
        return Ok(None);
    }
    let row = tx.first("SELECT version FROM schema_version", &[])?.ok_or(DatabaseError::Row("schema_version"))?;
    row.int(0).map(Some)
}

fn session<'a>(tx: &'a mut Tx<'_>) -> Result<&'a mut Session, DatabaseError> {
    match tx {
        Tx::Postgres(session) => Ok(session),
        Tx::Sqlite(_) => Err(DatabaseError::Row("schema_version")),
    }
}

/// The number is this program's own, of 64 bits: "chrysa", 1.
const LOCKED: &str = "BEGIN; SELECT pg_advisory_xact_lock(7163101073285120001)";
