// SPDX-License-Identifier: Apache-2.0
//! Imported releases, and what was revoked.

use release::{Bundle, BundleError, VerifiedRelease};
use rusqlite::{Connection, OptionalExtension as _, params};
use types::{ModelId, Sha256Digest};

use crate::Store;
use crate::database::{self, DatabaseError};

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
        let connection = database::lock(&self.database)?;
        if is_revoked(&connection, RELEASE, &digest.to_string())? {
            return Err(ReleaseStoreError::Revoked);
        }
        connection
            .execute(
                "INSERT OR REPLACE INTO releases (digest, bundle) VALUES (?1, ?2)",
                params![digest.as_bytes(), bundle],
            )
            .map_err(DatabaseError::from)?;
        drop(connection);
        self.changed();
        Ok(())
    }

    /// All imported releases, revoked ones included and marked, sorted by digest.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn releases(&self) -> Result<Vec<StoredRelease>, DatabaseError> {
        let connection = database::lock(&self.reader)?;
        let mut statement = connection.prepare("SELECT digest, bundle FROM releases ORDER BY digest")?;
        let rows = statement
            .query_map([], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?)))?
            .collect::<Result<Vec<_>, _>>()?;
        rows.into_iter().map(|(digest, bundle)| stored(&connection, &digest, bundle)).collect()
    }

    /// One imported release.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn release(&self, digest: &Sha256Digest) -> Result<Option<StoredRelease>, DatabaseError> {
        let connection = database::lock(&self.reader)?;
        let bundle: Option<Vec<u8>> = connection
            .query_row("SELECT bundle FROM releases WHERE digest = ?1", params![digest.as_bytes()], |row| row.get(0))
            .optional()?;
        bundle.map(|bundle| stored(&connection, digest.as_bytes(), bundle)).transpose()
    }

    /// Revokes a release, imported or not, for good.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn revoke_release(&self, digest: &Sha256Digest) -> Result<(), DatabaseError> {
        self.revoke(RELEASE, &digest.to_string())
    }

    /// Whether a release was revoked.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn is_release_revoked(&self, digest: &Sha256Digest) -> Result<bool, DatabaseError> {
        is_revoked(&*database::lock(&self.reader)?, RELEASE, &digest.to_string())
    }

    /// Revokes a platform for good, by its name as verdicts and audit entries show it.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn revoke_platform(&self, name: &Sha256Digest) -> Result<(), DatabaseError> {
        self.revoke(PLATFORM, &name.to_string())
    }

    /// Whether a platform was revoked.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn is_platform_revoked(&self, name: &Sha256Digest) -> Result<bool, DatabaseError> {
        is_revoked(&*database::lock(&self.reader)?, PLATFORM, &name.to_string())
    }

    /// Revokes a model by its identity, under whatever name, for good.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn revoke_model(&self, model: &ModelId) -> Result<(), DatabaseError> {
        self.revoke(MODEL, &model.identity().to_string())
    }

    /// Whether a model was revoked.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn is_model_revoked(&self, model: &ModelId) -> Result<bool, DatabaseError> {
        is_revoked(&*database::lock(&self.reader)?, MODEL, &model.identity().to_string())
    }

    fn revoke(&self, kind: &str, subject: &str) -> Result<(), DatabaseError> {
        database::lock(&self.database)?
            .execute("INSERT OR IGNORE INTO revoked (kind, subject) VALUES (?1, ?2)", params![kind, subject])?;
        self.changed();
        Ok(())
    }
}

/// Revokes a model inside a transaction of the caller.
pub(crate) fn revoke_model_in(connection: &Connection, identity: &str) -> Result<(), DatabaseError> {
    connection.execute("INSERT OR IGNORE INTO revoked (kind, subject) VALUES (?1, ?2)", params![MODEL, identity])?;
    Ok(())
}

fn stored(connection: &Connection, digest: &[u8], bundle: Vec<u8>) -> Result<StoredRelease, DatabaseError> {
    let digest = database::digest("releases", digest)?;
    let revoked = is_revoked(connection, RELEASE, &digest.to_string())?;
    Ok(StoredRelease { digest, bundle, revoked })
}

fn is_revoked(connection: &Connection, kind: &str, subject: &str) -> Result<bool, DatabaseError> {
    let found = connection
        .query_row("SELECT 1 FROM revoked WHERE kind = ?1 AND subject = ?2", params![kind, subject], |_| Ok(()))
        .optional()?;
    Ok(found.is_some())
}

const RELEASE: &str = "release";
const PLATFORM: &str = "platform";
const MODEL: &str = "model";
