// SPDX-License-Identifier: Apache-2.0
//! Durable state of the attestation service: wrapped keys, releases, revocations, redeemed challenges, policies and
//! the audit log.
//!
//! Everything but the audit log is in one SQLite database (WAL, every commit synced); the audit log is a tile log in
//! a directory of its own ([`tile_log`]). All functions block: an asynchronous caller wraps them in its
//! `spawn_blocking`. [`Store`] is `Send` and `Sync`.
//!
//! ```text
//! DIR/kek           key that wraps keys, 32 bytes, mode 0600 (may live elsewhere)
//! DIR/store.sqlite  the database
//! DIR/audit/        checkpoint, tile/…, lock
//! ```

mod audit;
mod challenges;
mod database;
mod entry;
mod group;
mod keys;
mod open;
mod owners;
mod policies;
mod releases;
mod wrap;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

pub use audit::{AuditError, AuditSummary, AuditVerifyError};
pub use challenges::RedeemError;
pub use database::DatabaseError;
pub use entry::{AuditEntry, EntryError, OwnerEntry, RefusalEntry, RefusalsEntry};
pub use keys::{KeyStoreError, ModelKey, StoredKey};
pub use open::{InitError, InitOptions, OpenError, OpenOptions};
pub use owners::{Owner, OwnerChange, OwnerError};
pub use policies::PolicyError;
pub use releases::{ReleaseStoreError, StoredRelease};
pub use wrap::{Kek, KekError, WrapError};

/// The store of one attestation service.
pub struct Store {
    /// Writes; reads that must see them in order.
    database: Mutex<rusqlite::Connection>,
    /// Reads what is committed, while another thread waits for the disk.
    reader: Mutex<rusqlite::Connection>,
    kek: Kek,
    audit: audit::Audit,
    redemptions: challenges::Redemptions,
    /// Changes of releases, revocations and policies through this very object.
    changes: AtomicU64,
}

/// A mark of the state of releases, revocations and policies: while it stays, none of them changes, whoever writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// SQLite's `data_version`: moves with every commit of another connection.
    others: i64,
    /// Our own.
    own: u64,
}

impl Store {
    /// Called after every change of releases, revocations and policies.
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// The present mark, on the connection that redeems and records heads: those are no changes.
    fn generation(&self, writer: &rusqlite::Connection) -> Result<Generation, DatabaseError> {
        let own = self.changes.load(Ordering::SeqCst);
        Ok(Generation { others: writer.pragma_query_value(None, "data_version", |row| row.get(0))?, own })
    }
}
