// SPDX-License-Identifier: Apache-2.0
//! One connection: statements, each with a time limit, and what a server must promise before it is used.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::runtime::Handle;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Row as PostgresRow, Statement};

use super::settings::PostgresSettings;
use super::wait::wait;
use crate::database::DatabaseError;
use crate::sql::{Cell, Row, Value};

/// A connection that was checked. After a failure that leaves its state in doubt it is not used again.
pub(crate) struct Session {
    client: Client,
    handle: Handle,
    statements: HashMap<&'static str, Statement>,
    /// When the call that uses it must be done.
    end: Option<Instant>,
    state: State,
}

/// What is known of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    /// Its state is in doubt: it is not used again.
    Broken,
    /// Broken, because the server did not answer in time.
    TimedOut,
}

impl Session {
    /// Connects, and refuses a server that may lose what it said it wrote.
    pub(super) fn connect(settings: &PostgresSettings, handle: &Handle) -> Result<Self, DatabaseError> {
        let connected = wait(handle, CONNECT, async {
            let (client, connection) = settings.config.connect(settings.connector()).await?;
            // It ends with the client, or with the server; its error shows in the client's calls.
            tokio::spawn(connection);
            Ok(client)
        });
        let client = connected.ok_or(DatabaseError::TimedOut(CONNECT.as_secs()))?.map_err(|e| failure(&e))?;
        let (handle, statements) = (handle.clone(), HashMap::new());
        let mut session = Self { client, handle, statements, end: None, state: State::Good };
        session.check()?;
        session.batch(SETTINGS)?;
        Ok(session)
    }

    /// Whether another transaction may begin on it.
    pub(super) fn usable(&self) -> bool {
        self.state == State::Good && !self.client.is_closed()
    }

    /// Whether the server did not answer in time.
    pub(super) fn timed_out(&self) -> bool {
        self.state == State::TimedOut
    }

    /// From here on everything must be done by `end`.
    pub(super) const fn end_by(&mut self, end: Option<Instant>) {
        self.end = end;
    }

    /// Runs statements without parameters.
    pub(crate) fn batch(&mut self, sql: &str) -> Result<(), DatabaseError> {
        let future = self.client.batch_execute(sql);
        run(&self.handle, self.end, &mut self.state, future)
    }

    /// Begins a transaction, and takes a lock with it where `sql` says so.
    pub(super) fn begin(&mut self, sql: &str) -> Result<(), DatabaseError> {
        let begun = self.batch(sql);
        if begun.is_err() {
            self.roll_back();
        }
        begun
    }

    pub(super) fn commit(&mut self) -> Result<(), DatabaseError> {
        let committed = self.batch("COMMIT");
        // Nothing goes on upon this connection.
        if committed.is_err() && self.state == State::Good {
            self.state = State::Broken;
        }
        committed.map_err(|error| if rolled_back(&error) { error } else { DatabaseError::InDoubt(Box::new(error)) })
    }

    pub(super) fn roll_back(&mut self) {
        // Of a call whose time is over, too.
        self.end = None;
        if self.state == State::Good {
            let rolled_back = self.batch("ROLLBACK");
            if rolled_back.is_err() && self.state == State::Good {
                self.state = State::Broken;
            }
        }
    }

    pub(crate) fn execute(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<u64, DatabaseError> {
        self.execute_with(sql, &parameters(values))
    }

    pub(crate) fn query(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<Vec<Row>, DatabaseError> {
        let rows = self.query_with(sql, &parameters(values))?;
        rows.iter().map(|row| Ok(Row { cells: cells(row, sql)?, sql })).collect()
    }

    /// [`Session::execute`] with parameters of other types.
    pub(crate) fn execute_with(
        &mut self,
        sql: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, DatabaseError> {
        let statement = self.prepared(sql)?;
        let future = self.client.execute(&statement, values);
        run(&self.handle, self.end, &mut self.state, future)
    }

    /// [`Session::query`] with parameters and columns of other types.
    pub(crate) fn query_with(
        &mut self,
        sql: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<PostgresRow>, DatabaseError> {
        let statement = self.prepared(sql)?;
        let future = self.client.query(&statement, values);
        run(&self.handle, self.end, &mut self.state, future)
    }

    /// Inserts redeemed tokens and gives those that were not there.
    pub(crate) fn insert_tokens(&mut self, tokens: &[([u8; 32], i64)]) -> Result<HashSet<Vec<u8>>, DatabaseError> {
        let (tokens, ends): (Vec<&[u8]>, Vec<i64>) = tokens.iter().map(|(token, end)| (token.as_slice(), *end)).unzip();
        let rows = self.query_with(INSERT_TOKENS, &[&tokens, &ends])?;
        rows.iter().map(|row| row.try_get(0).map_err(|_| DatabaseError::Row(INSERT_TOKENS))).collect()
    }

    fn prepared(&mut self, sql: &'static str) -> Result<Statement, DatabaseError> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        // Ours have no other question marks.
        let theirs = sql.replace('?', "$");
        let future = self.client.prepare(&theirs);
        let statement = run(&self.handle, self.end, &mut self.state, future)?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }

    fn check(&mut self) -> Result<(), DatabaseError> {
        let unsuitable = |what: &str| Err(DatabaseError::Unsuitable(what.to_owned()));
        let mut rows = self.query(PROMISES, &[])?;
        let row = rows.first_mut().ok_or(DatabaseError::Row(PROMISES))?;
        let version = row.text(0)?.parse::<u32>().map_err(|_| DatabaseError::Row(PROMISES))?;
        if version < OLDEST {
            return unsuitable("it is older than version 13");
        }
        if row.text(1)? != "on" {
            return unsuitable("fsync is off: what it says is written may be lost");
        }
        if row.text(2)? != "on" {
            return unsuitable("full_page_writes is off: a crash may damage what was written");
        }
        if row.text(3)? == "true" {
            return unsuitable("it is a standby, or takes no writes");
        }
        if row.text(4)? != "UTF8" {
            return unsuitable("the database's encoding is not UTF8");
        }
        // `on` and `remote_apply` promise at least the server's own disk, and what its administrator asked for beside it.
        if !matches!(row.text(5)?.as_str(), "on" | "remote_apply") {
            self.batch("SET synchronous_commit TO on")?;
        }
        Ok(())
    }
}

fn run<T>(
    handle: &Handle,
    end: Option<Instant>,
    state: &mut State,
    future: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, DatabaseError> {
    let left = end.map_or(ANSWER, |end| end.saturating_duration_since(Instant::now()).min(ANSWER));
    match wait(handle, left, future) {
        Some(Ok(result)) => Ok(result),
        Some(Err(error)) => {
            // Without words of the server the connection itself failed.
            if error.as_db_error().is_none() {
                *state = State::Broken;
            }
            Err(failure(&error))
        }
        None => {
            *state = State::TimedOut;
            Err(DatabaseError::TimedOut(ANSWER.as_secs()))
        }
    }
}

fn failure(error: &tokio_postgres::Error) -> DatabaseError {
    match error.as_db_error() {
        // Without details: those quote values.
        Some(said) => {
            DatabaseError::Postgres { code: said.code().code().to_owned(), message: said.message().to_owned() }
        }
        None => {
            let mut text = error.to_string();
            let mut source = core::error::Error::source(error);
            while let Some(inner) = source {
                text = format!("{text}: {inner}");
                source = inner.source();
            }
            DatabaseError::Unreachable(text)
        }
    }
}

/// Whether the server itself said that a transaction ended without effect: classes 23, 25 and 40 of its appendix A.
fn rolled_back(error: &DatabaseError) -> bool {
    let DatabaseError::Postgres { code, .. } = error else { return false };
    code != COMPLETION_UNKNOWN && ["23", "25", "40"].iter().any(|class| code.starts_with(class))
}

fn parameters<'a>(values: &'a [Value<'a>]) -> Vec<&'a (dyn ToSql + Sync)> {
    values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

fn cells(row: &PostgresRow, sql: &'static str) -> Result<Vec<Cell>, DatabaseError> {
    let malformed = |_| DatabaseError::Row(sql);
    let cell = |(index, kind): (usize, &Type)| {
        Ok(match *kind {
            Type::INT8 => row.try_get::<_, Option<i64>>(index).map_err(malformed)?.map(Cell::Int),
            Type::TEXT => row.try_get::<_, Option<String>>(index).map_err(malformed)?.map(Cell::Text),
            Type::BYTEA => row.try_get::<_, Option<Vec<u8>>>(index).map_err(malformed)?.map(Cell::Blob),
            _ => return Err(DatabaseError::Row(sql)),
        }
        .unwrap_or(Cell::Null))
    };
    row.columns().iter().map(tokio_postgres::Column::type_).enumerate().map(cell).collect()
}

impl ToSql for Value<'_> {
    fn to_sql(&self, kind: &Type, to: &mut BytesMut) -> Result<IsNull, Box<dyn core::error::Error + Sync + Send>> {
        match (self, kind) {
            (Self::Null, _) => Ok(IsNull::Yes),
            (Self::Int(value), &Type::INT8) => value.to_sql(kind, to),
            (Self::Text(value), &Type::TEXT) => value.to_sql(kind, to),
            (Self::Blob(value), &Type::BYTEA) => value.to_sql(kind, to),
            _ => Err(format!("a parameter for {kind} has another type").into()),
        }
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::INT8 | Type::TEXT | Type::BYTEA)
    }

    to_sql_checked!();
}

/// `statement_completion_unknown`.
const COMPLETION_UNKNOWN: &str = "40003";
const INSERT_TOKENS: &str = "INSERT INTO redeemed (token, expires)
    SELECT * FROM unnest(?1::bytea[], ?2::bigint[]) ON CONFLICT DO NOTHING RETURNING token";
const PROMISES: &str = "SELECT current_setting('server_version_num'), current_setting('fsync'),
    current_setting('full_page_writes'),
    (pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on')::text,
    current_setting('server_encoding'), current_setting('synchronous_commit')";
/// The server gives up before we do; and what a process that hangs has locked is free again.
const SETTINGS: &str = "SET statement_timeout TO '10s'; SET lock_timeout TO '8s';
    SET idle_in_transaction_session_timeout TO '15s'; SET default_transaction_isolation TO 'read committed';
    SET standard_conforming_strings TO on; SET client_min_messages TO error";
/// Version 13 is the oldest that is kept up when this is written.
const OLDEST: u32 = 130_000;
/// One connection, TLS and log-in included.
const CONNECT: Duration = Duration::from_secs(5);
/// One statement.
const ANSWER: Duration = Duration::from_secs(12);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_failed_only_where_the_server_says_so() {
        let said = |code: &str| DatabaseError::Postgres { code: code.to_owned(), message: String::new() };
        for code in ["23505", "25P02", "40001", "40P01"] {
            assert!(rolled_back(&said(code)), "{code}");
        }
        for code in ["40003", "57P01", "57014", "08007", "XX000"] {
            assert!(!rolled_back(&said(code)), "{code}");
        }
        assert!(!rolled_back(&DatabaseError::TimedOut(12)));
        assert!(!rolled_back(&DatabaseError::Unreachable("connection closed".to_owned())));
    }
}
