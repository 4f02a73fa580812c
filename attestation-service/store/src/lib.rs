// SPDX-License-Identifier: Apache-2.0
//! Durable state of the attestation service: wrapped keys, releases, revocations, redeemed challenges, policies and
//! the audit log.
//!
//! A store is a directory with an embedded database (SQLite, WAL, every commit synced) and the audit log as a tile log
//! ([`tile_log`]), for one service; or a PostgreSQL database, for one or several replicas. What is promised is the same.
//! All functions block: an asynchronous caller wraps them in its `spawn_blocking`. [`Store`] is `Send` and `Sync`.
//!
//! ```text
//! DIR/kek           key that wraps keys, 32 bytes, mode 0600 (may live elsewhere)
//! DIR/store.sqlite  the database
//! DIR/audit/        checkpoint, tile/…, lock
//! ```

mod archive;
mod audit;
mod backup;
mod challenges;
mod changes;
mod database;
mod entry;
mod group;
mod keyring;
mod keys;
mod location;
mod open;
mod owners;
mod policies;
mod postgres;
mod releases;
mod replicas;
mod restore;
mod rewrap;
mod schema;
mod sql;
mod sqlite;
mod tables;

pub use archive::ArchiveError;
pub use audit::{AuditError, AuditSummary, AuditVerifyError};
pub use backup::{BackupError, BackupSummary};
pub use challenges::RedeemError;
pub use changes::Settled;
pub use database::{DatabaseError, Generation};
pub use entry::{AuditEntry, EntryError, OperatorAct, OperatorEntry, OwnerEntry, RefusalEntry, RefusalsEntry};
pub use key_wrap::{KekError, KekSource, KekSourceError, WrapError};
pub use keys::{KeyStoreError, ModelKey, StoredKey};
pub use location::Location;
pub use open::{InitError, InitOptions, OpenError, OpenOptions};
pub use owners::{MAX_OWNER_KEYS, Owner, OwnerChange, OwnerError, Successor};
pub use policies::PolicyError;
pub use postgres::{PostgresSettings, SettingsError};
pub use releases::{ReleaseStoreError, StoredRelease};
pub use replicas::{CommandsHeld, REPLICA_SECONDS, ReplicaId};
pub use restore::{RestoreError, RestoreOptions};
pub use rewrap::Rewrapped;
pub use tile_log::{AppendError, ExportError};

/// The store of one attestation service.
pub struct Store {
    database: database::Database,
    kek: keyring::Keyring,
    audit: audit::Audit,
    redemptions: challenges::Redemptions,
}
