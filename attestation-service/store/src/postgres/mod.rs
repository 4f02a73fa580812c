// SPDX-License-Identifier: Apache-2.0
//! PostgreSQL, shared by several replicas: a few connections that are made anew when they break.
//!
//! Every call blocks and ends: a whole call, whatever its statements, waits for the server a bounded time ([`CALL`]), but
//! for those that read or write a whole store, whose statements are limited one by one. When the server did not answer
//! one call, no other call waits on the connections that were idle meanwhile. While the server can't be reached, calls
//! fail at once; the next one after [`PAUSE`] tries again.

mod schema;
mod session;
mod settings;
mod tls;
mod wait;

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::database::DatabaseError;
use crate::sql::Tx;

pub(crate) use session::Session;
pub use settings::{PostgresSettings, SettingsError};

/// The connections of one process to one database.
pub(crate) struct Postgres {
    settings: PostgresSettings,
    /// Drives the connections; always there until the end.
    runtime: Option<Runtime>,
    pool: Mutex<Pool>,
    freed: Condvar,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Session>,
    /// Idle ones and those in use.
    open: usize,
    /// The newest failure to connect.
    failed: Option<(Instant, String)>,
}

/// A transaction that holds a lock and does nothing else. It ends when this is dropped.
pub(crate) struct Held<'a>(Lease<'a>);

/// A connection in use. Given back when dropped, unless it broke.
struct Lease<'a> {
    owner: &'a Postgres,
    session: Option<Session>,
}

impl Postgres {
    /// Connects to a store that is there, and brings it up to date.
    pub(crate) fn open(settings: &PostgresSettings) -> Result<Self, DatabaseError> {
        let postgres = Self::new(settings)?;
        postgres.migrate()?;
        Ok(postgres)
    }

    /// Connects to a database that may be empty.
    pub(crate) fn new(settings: &PostgresSettings) -> Result<Self, DatabaseError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|e| DatabaseError::Unreachable(e.to_string()))?;
        let postgres =
            Self { settings: settings.clone(), runtime: Some(runtime), pool: Mutex::default(), freed: Condvar::new() };
        drop(postgres.lease(Some(Instant::now() + CALL))?);
        Ok(postgres)
    }

    /// A transaction that `begin` begins. It is committed when `work` succeeds; when the commit's answer is lost, it may
    /// have been committed nevertheless.
    pub(crate) fn write<T, E: From<DatabaseError>>(
        &self,
        begin: &str,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.transaction(Some(Instant::now() + CALL), begin, work)
    }

    /// [`Postgres::write`] that takes as long as its statements, each of which is limited.
    pub(crate) fn write_at_length<T, E: From<DatabaseError>>(
        &self,
        begin: &str,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.transaction(None, begin, work)
    }

    fn transaction<T, E: From<DatabaseError>>(
        &self,
        until: Option<Instant>,
        begin: &str,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut lease = self.lease(until)?;
        let session = lease.session()?;
        session.begin(begin)?;
        match work(&mut Tx::Postgres(session)) {
            Ok(result) => {
                session.commit()?;
                Ok(result)
            }
            Err(error) => {
                session.roll_back();
                Err(error)
            }
        }
    }

    /// Statements that each read what is committed.
    pub(crate) fn read<T, E: From<DatabaseError>>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut lease = self.lease(Some(Instant::now() + CALL))?;
        work(&mut Tx::Postgres(lease.session()?))
    }

    /// Begins a transaction by `begin`, which takes a lock.
    pub(crate) fn hold(&self, begin: &str) -> Result<Held<'_>, DatabaseError> {
        let mut lease = self.lease(Some(Instant::now() + CALL))?;
        let session = lease.session()?;
        session.begin(begin)?;
        // What is done meanwhile is done on other connections.
        session.end_by(None);
        Ok(Held(lease))
    }

    /// A connection for a call that ends at `end`.
    fn lease(&self, end: Option<Instant>) -> Result<Lease<'_>, DatabaseError> {
        let until = Instant::now() + PATIENCE;
        let mut pool = self.pool();
        loop {
            while let Some(mut session) = pool.idle.pop() {
                if session.usable() {
                    session.end_by(end);
                    return Ok(Lease { owner: self, session: Some(session) });
                }
                pool.open = pool.open.saturating_sub(1);
            }
            if pool.open < MOST {
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(DatabaseError::Unreachable("all connections are busy".to_owned()));
            }
            pool = self.freed.wait_timeout(pool, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if let Some((_, error)) = pool.failed.as_ref().filter(|(at, _)| at.elapsed() < PAUSE) {
            return Err(DatabaseError::Unreachable(error.clone()));
        }
        pool.open = pool.open.saturating_add(1);
        drop(pool);
        // A place is taken: whatever happens below, the lease gives it back.
        let mut lease = Lease { owner: self, session: None };
        let runtime = self.runtime.as_ref().ok_or(DatabaseError::Poisoned)?;
        match Session::connect(&self.settings, runtime.handle()) {
            Ok(mut session) => {
                self.pool().failed = None;
                session.end_by(end);
                lease.session = Some(session);
                Ok(lease)
            }
            Err(error) => {
                self.pool().failed = Some((Instant::now(), error.to_string()));
                Err(error)
            }
        }
    }

    /// Whole between any two of its changes: a panic of another thread leaves nothing half done.
    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Not waiting for it: this may be a thread of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Lease<'_> {
    fn session(&mut self) -> Result<&mut Session, DatabaseError> {
        self.session.as_mut().ok_or(DatabaseError::Poisoned)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.0.session.as_mut() {
            session.roll_back();
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut pool = self.owner.pool();
        let emptied = self.session.as_ref().is_some_and(Session::timed_out);
        if emptied {
            // Those that were idle meanwhile lead to the same server: nobody else shall find that out by waiting.
            pool.open = pool.open.saturating_sub(pool.idle.len());
            pool.idle.clear();
            pool.failed = Some((Instant::now(), "it did not answer just now".to_owned()));
        }
        match self.session.take().filter(Session::usable) {
            Some(session) => pool.idle.push(session),
            None => pool.open = pool.open.saturating_sub(1),
        }
        drop(pool);
        if emptied {
            self.owner.freed.notify_all();
        } else {
            self.owner.freed.notify_one();
        }
    }
}

/// Begins a transaction that redeems. Nothing is pruned meanwhile: what was forgotten must not be redeemed again. The
/// lock's number is this program's own, of 64 bits: "chrysa", 2.
pub(crate) const REDEEMING: &str = "BEGIN; SELECT pg_advisory_xact_lock_shared(7163101073285120002)";
/// Begins a transaction that prunes: alone.
pub(crate) const PRUNING: &str = "BEGIN; SELECT pg_advisory_xact_lock(7163101073285120002)";
/// A whole call, the wait for a connection included.
const CALL: Duration = Duration::from_secs(12);
/// Most connections of one process.
const MOST: usize = 8;
/// How long a call waits for one of them.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long calls fail at once after a connection could not be made.
const PAUSE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    /// What a commit promises is not left to the database's own settings.
    #[test]
    fn commits_are_synced_whatever_the_database_asks_for() {
        let Some(server) = test_postgres::Server::start("commits that are synced").unwrap() else { return };
        let url = server.database().unwrap();
        let settings = PostgresSettings::parse(&url, None).unwrap();
        for (asked, found) in [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")] {
            let name = server.sql(&url, "SELECT current_database()").unwrap();
            server.sql(&url, &format!("ALTER DATABASE {name} SET synchronous_commit = {asked}")).unwrap();
            let postgres = Postgres::new(&settings).unwrap();
            let shown = postgres.read(|tx| {
                let row = tx.first("SELECT current_setting('synchronous_commit')", &[])?;
                row.ok_or(DatabaseError::Empty)?.text(0)
            });
            assert_eq!(shown.unwrap(), found, "{asked}");
        }
    }

    /// Each of its statements is quick enough by itself.
    #[test]
    fn a_call_of_many_statements_ends() {
        let Some(server) = test_postgres::Server::start("the end of a call").unwrap() else { return };
        let settings = PostgresSettings::parse(&server.database().unwrap(), None).unwrap();
        let postgres = Postgres::new(&settings).unwrap();
        drop([postgres.lease(None).unwrap(), postgres.lease(None).unwrap()]);
        assert_eq!(postgres.pool().idle.len(), 2);
        let long = postgres.write("BEGIN", |tx| {
            for _ in 0..20 {
                tx.query("SELECT pg_sleep(1)::text", &[])?;
            }
            Ok::<_, DatabaseError>(())
        });
        assert!(matches!(long, Err(DatabaseError::TimedOut(_))), "{long:?}");
        // The other connection is not waited on by anybody.
        let pool = postgres.pool();
        assert_eq!((pool.idle.len(), pool.open), (0, 0));
        assert!(pool.failed.is_some());
    }
}
