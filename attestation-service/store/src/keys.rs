// SPDX-License-Identifier: Apache-2.0
//! Model keys and the service's own secrets, wrapped by the KEK and bound to their names and versions.

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};
use types::ModelId;
use zeroize::Zeroizing;

use crate::Store;
use crate::database::{self, DatabaseError};
use crate::wrap::{Kek, WrapError};

/// A key that the store holds, without the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// The model.
    pub model: ModelId,
    /// The version.
    pub version: u32,
}

/// A model's key, out of its wrapping. Zeroized when dropped.
pub struct ModelKey {
    /// Its version.
    pub version: u32,
    /// The key.
    pub key: Zeroizing<[u8; 32]>,
}

/// Why a key could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// Wrapping or opening failed.
    #[error(transparent)]
    Wrap(#[from] WrapError),
    /// Versions begin at 1.
    #[error("a key's version must be 1 or more")]
    Version,
    /// This version of the model's key is there already; keys are never replaced.
    #[error("version {version} of the key of {model} is there already; import it as a new version")]
    Exists {
        /// The model.
        model: String,
        /// The version.
        version: u32,
    },
    /// The model was revoked.
    #[error("the model was revoked")]
    Revoked,
    /// A row that this program did not write.
    #[error("the database has a malformed key of {0}")]
    Malformed(String),
}

impl Store {
    /// Stores a version of a model's key. A key that is there is never replaced.
    ///
    /// # Errors
    /// [`KeyStoreError::Exists`], [`KeyStoreError::Version`], ….
    pub fn import_key(&self, model: &ModelId, version: u32, key: &Zeroizing<[u8; 32]>) -> Result<(), KeyStoreError> {
        if version == 0 {
            return Err(KeyStoreError::Version);
        }
        let wrapped = self.kek.wrap(key.as_slice(), &key_context(model, version))?;
        let connection = database::lock(&self.database)?;
        let inserted = connection.execute(
            "INSERT INTO model_keys (model, version, wrapped) VALUES (?1, ?2, ?3)",
            params![model.to_string(), version, wrapped],
        );
        match inserted {
            Ok(_) => Ok(()),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                Err(KeyStoreError::Exists { model: model.to_string(), version })
            }
            Err(error) => Err(DatabaseError::from(error).into()),
        }
    }

    /// The newest version of a model's key; `None` where there is none. The whole name must be the imported one.
    ///
    /// # Errors
    /// [`KeyStoreError::Revoked`] for a revoked model; [`KeyStoreError::Wrap`] when the row was changed.
    pub fn key(&self, model: &ModelId) -> Result<Option<ModelKey>, KeyStoreError> {
        if self.is_model_revoked(model)? {
            return Err(KeyStoreError::Revoked);
        }
        let connection = database::lock(&self.reader)?;
        let row: Option<(u32, Vec<u8>)> = connection
            .query_row(
                "SELECT version, wrapped FROM model_keys WHERE model = ?1 ORDER BY version DESC LIMIT 1",
                [model.to_string()],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()
            .map_err(DatabaseError::from)?;
        drop(connection);
        let Some((version, wrapped)) = row else { return Ok(None) };
        let opened = self.kek.open(&wrapped, &key_context(model, version))?;
        let key = opened.as_slice().try_into().map_err(|_| KeyStoreError::Malformed(model.to_string()))?;
        Ok(Some(ModelKey { version, key: Zeroizing::new(key) }))
    }

    /// Which keys there are, sorted by model and version.
    ///
    /// # Errors
    /// [`KeyStoreError::Database`] or [`KeyStoreError::Malformed`].
    pub fn keys(&self) -> Result<Vec<StoredKey>, KeyStoreError> {
        let connection = database::lock(&self.reader)?;
        let mut statement = connection
            .prepare("SELECT model, version FROM model_keys ORDER BY model, version")
            .map_err(DatabaseError::from)?;
        let rows = statement
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(DatabaseError::from)?;
        rows.into_iter()
            .map(|(model, version)| match model.parse() {
                Ok(model) => Ok(StoredKey { model, version }),
                Err(_) => Err(KeyStoreError::Malformed(model)),
            })
            .collect()
    }

    /// Stores a secret of the service itself (as its TLS key) under `name`, in place of any there.
    ///
    /// # Errors
    /// [`KeyStoreError`].
    pub fn put_secret(&self, name: &str, secret: &[u8]) -> Result<(), KeyStoreError> {
        put_secret(&*database::lock(&self.database)?, &self.kek, &own_name(name), secret)
    }

    /// A secret of the service itself.
    ///
    /// # Errors
    /// [`KeyStoreError`].
    pub fn secret(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeyStoreError> {
        secret(&*database::lock(&self.database)?, &self.kek, &own_name(name))
    }
}

pub(crate) fn put_secret(database: &Connection, kek: &Kek, name: &str, secret: &[u8]) -> Result<(), KeyStoreError> {
    let wrapped = kek.wrap(secret, &secret_context(name))?;
    database
        .execute("INSERT OR REPLACE INTO secrets (name, wrapped) VALUES (?1, ?2)", params![name, wrapped])
        .map_err(DatabaseError::from)?;
    Ok(())
}

pub(crate) fn secret(
    database: &Connection,
    kek: &Kek,
    name: &str,
) -> Result<Option<Zeroizing<Vec<u8>>>, KeyStoreError> {
    let wrapped: Option<Vec<u8>> = database
        .query_row("SELECT wrapped FROM secrets WHERE name = ?1", [name], |row| row.get(0))
        .optional()
        .map_err(DatabaseError::from)?;
    wrapped.map(|wrapped| Ok(kek.open(&wrapped, &secret_context(name))?)).transpose()
}

/// Callers' names can't meet the store's own.
fn own_name(name: &str) -> String {
    format!("service/{name}")
}

/// Identity, labels and version: a row moved to another model or version does not open.
fn key_context(model: &ModelId, version: u32) -> Vec<u8> {
    let mut context = b"chrysalis/store/model-key/v1".to_vec();
    context.extend_from_slice(model.identity().as_bytes());
    context.extend_from_slice(&version.to_be_bytes());
    context.extend_from_slice(model.to_string().as_bytes());
    context
}

fn secret_context(name: &str) -> Vec<u8> {
    [b"chrysalis/store/secret/v1".as_slice(), name.as_bytes()].concat()
}
