// SPDX-License-Identifier: Apache-2.0
//! The replicas of one service that run now: a challenge that one made can be redeemed at another, as long as the one
//! that made it runs. A service on an embedded database is the only one, and is not listed.

use zeroize::Zeroizing;

use crate::database::{Database, DatabaseError};
use crate::keys::{self, KeyStoreError};
use crate::sql::{Tx, Value};
use crate::{Store, postgres};

/// Names a replica from its start to its end; random.
pub type ReplicaId = [u8; 8];

impl Store {
    /// Whether several services may run on this store.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        matches!(self.database, Database::Postgres(_))
    }

    /// Takes the place of whatever replica had this name: what it made is void from here.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn enter_replica(&self, id: &ReplicaId, name: &str) -> Result<(), DatabaseError> {
        self.database.write(|tx| {
            tx.execute("DELETE FROM replicas WHERE name = ?1", &[Value::Text(name)])?;
            beat(tx, id, name)
        })
    }

    /// Says that the replica runs; to be called every few seconds ([`REPLICA_SECONDS`] without it void what it made).
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn beat_replica(&self, id: &ReplicaId, name: &str) -> Result<(), DatabaseError> {
        self.database.write(|tx| {
            beat(tx, id, name)?;
            let sql = "DELETE FROM replicas WHERE beat < extract(epoch FROM clock_timestamp())::bigint - 600";
            tx.execute(sql, &[]).map(drop)
        })
    }

    /// Says that the replica ends.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn leave_replica(&self, id: &ReplicaId) -> Result<(), DatabaseError> {
        self.database.write(|tx| tx.execute("DELETE FROM replicas WHERE id = ?1", &[Value::Blob(id)]).map(drop))
    }

    /// The secret that all replicas make their challenges' keys from. Made by the first one that asks.
    ///
    /// # Errors
    /// [`KeyStoreError`].
    pub fn challenge_secret(&self) -> Result<Zeroizing<[u8; 32]>, KeyStoreError> {
        let mut fresh = Zeroizing::new([0; 32]);
        let mut secret = keys::secret(&self.database, &self.kek, SECRET)?;
        if secret.is_none() {
            key_wrap::random(fresh.as_mut_slice())?;
            let wrapped = keys::wrap_secret(&self.kek, SECRET, fresh.as_slice())?;
            // Of several replicas that come first one makes it.
            self.database.write(|tx| keys::put_secret_once(tx, SECRET, &wrapped))?;
            secret = keys::secret(&self.database, &self.kek, SECRET)?;
        }
        let malformed = || KeyStoreError::Malformed(SECRET.to_owned());
        let secret: [u8; 32] = secret.ok_or_else(malformed)?.as_slice().try_into().map_err(|_| malformed())?;
        Ok(Zeroizing::new(secret))
    }
}

impl Store {
    /// Waits until no other replica carries out a command of an owner, and keeps them waiting. Services of one store that
    /// is not shared keep the order themselves.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn hold_commands(&self) -> Result<CommandsHeld<'_>, DatabaseError> {
        Ok(CommandsHeld(match &self.database {
            Database::Sqlite(_) => None,
            Database::Postgres(postgres) => Some(postgres.hold(COMMANDS)?),
        }))
    }
}

/// Keeps commands of owners waiting until it is dropped; at most for a quarter of a minute.
#[must_use = "dropped, it keeps nobody waiting"]
pub struct CommandsHeld<'a>(#[allow(dead_code, reason = "held for its end")] Option<postgres::Held<'a>>);

/// By the database server's clock, which is the same for all.
fn beat(tx: &mut Tx<'_>, id: &ReplicaId, name: &str) -> Result<(), DatabaseError> {
    let sql = "INSERT INTO replicas (id, name, beat) VALUES (?1, ?2, extract(epoch FROM clock_timestamp())::bigint)
        ON CONFLICT (id) DO UPDATE SET name = excluded.name, beat = excluded.beat";
    tx.execute(sql, &[Value::Blob(id), Value::Text(name)]).map(drop)
}

/// Those that said so lately.
pub(crate) fn running(tx: &mut Tx<'_>) -> Result<Vec<ReplicaId>, DatabaseError> {
    let Tx::Postgres(_) = tx else { return Ok(Vec::new()) };
    let sql = "SELECT id FROM replicas WHERE beat >= extract(epoch FROM clock_timestamp())::bigint - ?1 LIMIT 1000";
    let rows = tx.query(sql, &[Value::Int(REPLICA_SECONDS)])?;
    rows.into_iter().map(|mut row| row.blob(0)?.try_into().map_err(|_| row.malformed())).collect()
}

/// After so many seconds without a word a replica counts as stopped.
pub const REPLICA_SECONDS: i64 = 15;
/// The lock's number is this program's own, of 64 bits: "chrysa", 3.
const COMMANDS: &str = "BEGIN; SELECT pg_advisory_xact_lock(7163101073285120003)";
const SECRET: &str = "challenge-secret";
