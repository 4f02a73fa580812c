// SPDX-License-Identifier: Apache-2.0
//! Imported releases, and what was revoked.

use release::{Bundle, BundleError, VerifiedRelease};
use types::{ModelId, Sha256Digest};

use crate::database::{self, DatabaseError};
use crate::entry::OperatorAct;
use crate::sql::{Row, Tx, Value};
use crate::{Store, changes};

/// An imported release. The bundle was verified when it was imported; verify it again before use, since keys,
/// witnesses and the time may have changed, and the database is only a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRelease {
    /// SHA-256 of the statement.
    pub digest: Sha256Digest,
    /// The bundle's bytes as they were imported.
    pub bundle: Vec<u8>,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// Why a release was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseStoreError {
    /// The bytes are not a bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The bytes are not the bundle of the verified release.
    #[error("the bundle is not that of the verified release")]
    Mismatch,
    /// It was revoked.
    #[error("the release was revoked")]
    Revoked,
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Store {
    /// Stores the bundle of a verified release, in place of an older bundle of the same statement.
    ///
    /// # Errors
    /// [`ReleaseStoreError`].
    pub fn import_release(&self, bundle: &[u8], verified: &VerifiedRelease) -> Result<(), ReleaseStoreError> {
        let digest = Bundle::from_json(bundle)?.digest();
        if &digest != verified.digest() {
            return Err(ReleaseStoreError::Mismatch);
        }
        self.database.change(|tx| {
            if is_revoked(tx, RELEASE, &digest.to_string())? {
                return Err(ReleaseStoreError::Revoked);
            }
            let sql = "INSERT INTO releases (digest, bundle) VALUES (?1, ?2)
                ON CONFLICT (digest) DO UPDATE SET bundle = excluded.bundle";
            tx.execute(sql, &[Value::Blob(digest.as_bytes()), Value::Blob(bundle)])?;
            let content = Sha256Digest::of(bundle);
            Ok(changes::queue(tx, OperatorAct::ReleaseImported, &digest.to_string(), Some(content))?)
        })
    }

    /// All imported releases, revoked ones included and marked, sorted by digest.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn releases(&self) -> Result<Vec<StoredRelease>, DatabaseError> {
        self.database.read(|tx| {
            // First the releases: one that is revoked between the two statements is marked.
            let rows = tx.query("SELECT digest, bundle FROM releases ORDER BY digest", &[])?;
            rows.into_iter().map(|row| stored(tx, row)).collect()
        })
    }

    /// One imported release.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn release(&self, digest: &Sha256Digest) -> Result<Option<StoredRelease>, DatabaseError> {
        self.database.read(|tx| {
            let sql = "SELECT digest, bundle FROM releases WHERE digest = ?1";
            let row = tx.first(sql, &[Value::Blob(digest.as_bytes())])?;
            row.map(|row| stored(tx, row)).transpose()
        })
    }

    /// Revokes a release, imported or not, for good.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn revoke_release(&self, digest: &Sha256Digest) -> Result<(), DatabaseError> {
        self.revoke(RELEASE, OperatorAct::ReleaseRevoked, &digest.to_string())
    }

    /// Whether a release was revoked.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn is_release_revoked(&self, digest: &Sha256Digest) -> Result<bool, DatabaseError> {
        self.is_revoked(RELEASE, &digest.to_string())
    }

    /// Revokes a platform for good, by its name as verdicts and audit entries show it.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn revoke_platform(&self, name: &Sha256Digest) -> Result<(), DatabaseError> {
        self.revoke(PLATFORM, OperatorAct::PlatformRevoked, &name.to_string())
    }

    /// Whether a platform was revoked.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn is_platform_revoked(&self, name: &Sha256Digest) -> Result<bool, DatabaseError> {
        self.is_revoked(PLATFORM, &name.to_string())
    }

    /// Revokes a model by its identity, under whatever name, for good.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn revoke_model(&self, model: &ModelId) -> Result<(), DatabaseError> {
        self.revoke(MODEL, OperatorAct::ModelRevoked, &model.identity().to_string())
    }

    /// Whether a model was revoked.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn is_model_revoked(&self, model: &ModelId) -> Result<bool, DatabaseError> {
        self.is_revoked(MODEL, &model.identity().to_string())
    }

    fn revoke(&self, kind: &str, act: OperatorAct, subject: &str) -> Result<(), DatabaseError> {
        self.database.change(|tx| {
            revoke(tx, kind, subject)?;
            changes::queue(tx, act, subject, None)
        })
    }

    fn is_revoked(&self, kind: &str, subject: &str) -> Result<bool, DatabaseError> {
        self.database.read(|tx| is_revoked(tx, kind, subject))
    }
}

/// Revokes a model inside a change of the caller.
pub(crate) fn revoke_model_in(tx: &mut Tx<'_>, identity: &str) -> Result<(), DatabaseError> {
    revoke(tx, MODEL, identity)
}

/// Whether a model was revoked, inside a transaction of the caller.
pub(crate) fn is_model_revoked_in(tx: &mut Tx<'_>, identity: &str) -> Result<bool, DatabaseError> {
    is_revoked(tx, MODEL, identity)
}

/// Whether a platform was revoked, inside a transaction of the caller.
pub(crate) fn is_platform_revoked_in(tx: &mut Tx<'_>, name: &Sha256Digest) -> Result<bool, DatabaseError> {
    is_revoked(tx, PLATFORM, &name.to_string())
}

fn revoke(tx: &mut Tx<'_>, kind: &str, subject: &str) -> Result<(), DatabaseError> {
    let sql = "INSERT INTO revoked (kind, subject) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    tx.execute(sql, &[Value::Text(kind), Value::Text(subject)]).map(drop)
}

fn is_revoked(tx: &mut Tx<'_>, kind: &str, subject: &str) -> Result<bool, DatabaseError> {
    let sql = "SELECT kind FROM revoked WHERE kind = ?1 AND subject = ?2";
    Ok(tx.first(sql, &[Value::Text(kind), Value::Text(subject)])?.is_some())
}

fn stored(tx: &mut Tx<'_>, mut row: Row) -> Result<StoredRelease, DatabaseError> {
    let digest = database::digest("releases", &row.blob(0)?)?;
    let revoked = is_revoked(tx, RELEASE, &digest.to_string())?;
    Ok(StoredRelease { digest, bundle: row.blob(1)?, revoked })
}

const RELEASE: &str = "release";
const PLATFORM: &str = "platform";
const MODEL: &str = "model";
