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
mod keys;
mod open;
mod policies;
mod releases;
mod wrap;

use std::sync::Mutex;

pub use audit::{AuditError, AuditSummary, AuditVerifyError};
pub use challenges::RedeemError;
pub use database::DatabaseError;
pub use entry::{AuditEntry, EntryError, RefusalEntry};
pub use keys::{KeyStoreError, ModelKey, StoredKey};
pub use open::{InitError, InitOptions, OpenError, OpenOptions};
pub use policies::PolicyError;
pub use releases::{ReleaseStoreError, StoredRelease};
pub use wrap::{Kek, KekError, WrapError};

/// The store of one attestation service.
pub struct Store {
    database: Mutex<rusqlite::Connection>,
    kek: Kek,
    audit: audit::Audit,
}
