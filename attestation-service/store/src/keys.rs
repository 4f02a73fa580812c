// SPDX-License-Identifier: Apache-2.0
//! Model keys and the service's own secrets, wrapped by the KEK and bound to their names and versions.

use key_wrap::WrapError;
use types::{ModelId, Sha256Digest};
use zeroize::Zeroizing;

use crate::database::{Database, DatabaseError};
use crate::entry::OperatorAct;
use crate::keyring::{Keyring, Wrapped};
use crate::sql::{Row, Tx, Value};
use crate::{Settled, Store, changes, releases};

/// A key that the store holds, without the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// The model.
    pub model: ModelId,
    /// The version.
    pub version: u32,
}

/// A model's key, out of its wrapping, and what goes with it. The key is zeroized when dropped.
pub struct ModelKey {
    /// Its version.
    pub version: u32,
    /// The key.
    pub key: Zeroizing<[u8; 32]>,
    /// The document of the model's tenants, which guests get with the key; `None` where the model has none.
    pub tenants: Option<Vec<u8>>,
    /// Whether the log had every change that was seen when the key was read.
    pub settled: Settled,
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
    /// It was wrapped by a key that this program was not given.
    #[error("a row was wrapped by the key-wrapping key {0}, which was not given")]
    OtherKek(String),
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
    /// The platform that the key would go to was revoked.
    #[error("the platform was revoked")]
    PlatformRevoked,
    /// A row that this program did not write.
    #[error("the database has a malformed key of {0}")]
    Malformed(String),
}

impl Store {
    /// Stores a version of a model's key. A key that is there is never replaced.
    ///
    /// # Errors
    /// [`KeyStoreError::Exists`], [`KeyStoreError::Version`], [`KeyStoreError::Revoked`] for a revoked model, ….
    pub fn import_key(&self, model: &ModelId, version: u32, key: &Zeroizing<[u8; 32]>) -> Result<(), KeyStoreError> {
        if version == 0 {
            return Err(KeyStoreError::Version);
        }
        let wrapped = wrapped(&self.kek, model, version, key)?;
        self.database.change(|tx| {
            import_in(tx, model, version, &wrapped)?;
            let subject = format!("{}/{version}", model.identity());
            Ok(changes::queue(tx, OperatorAct::KeyImported, &subject, None)?)
        })
    }

    /// The newest version of a model's key; `None` where there is none. The whole name must be the imported one.
    ///
    /// # Errors
    /// [`KeyStoreError::Revoked`] for a revoked model; [`KeyStoreError::Wrap`] when the row was changed.
    pub fn key(&self, model: &ModelId) -> Result<Option<ModelKey>, KeyStoreError> {
        self.newest(model, |_| Ok(()))
    }

    /// [`Store::key`] for a guest on this platform, which is named as in verdicts.
    ///
    /// # Errors
    /// [`KeyStoreError::PlatformRevoked`] for a revoked platform, before anything is said of the model.
    pub fn key_for(&self, model: &ModelId, platform: &Sha256Digest) -> Result<Option<ModelKey>, KeyStoreError> {
        self.newest(model, |tx| {
            let revoked = releases::is_platform_revoked_in(tx, platform)?;
            if revoked { Err(KeyStoreError::PlatformRevoked) } else { Ok(()) }
        })
    }

    fn newest(
        &self,
        model: &ModelId,
        before: impl FnOnce(&mut Tx<'_>) -> Result<(), KeyStoreError>,
    ) -> Result<Option<ModelKey>, KeyStoreError> {
        let name = model.to_string();
        let identity = model.identity().to_string();
        let (row, tenants, settled) = self.database.read(|tx| {
            before(tx)?;
            let sql = "SELECT version, wrapped, kek FROM model_keys WHERE model = ?1 ORDER BY version DESC LIMIT 1";
            let row = tx.first(sql, &[Value::Text(&name)])?;
            let tenants = tx.first("SELECT document FROM tenants WHERE model = ?1", &[Value::Text(&identity)])?;
            let tenants = tenants.map(|mut row| row.blob(0)).transpose()?;
            // Last, so that a revocation that came before the answer counts, and no change was seen above that is not
            // seen to wait here.
            let last = tx.first(LAST_LOOK, &[Value::Text(&identity)])?;
            let last = last.ok_or(DatabaseError::Row(LAST_LOOK))?;
            if last.int(0)? > 0 { Err(KeyStoreError::Revoked) } else { Ok((row, tenants, Settled(last.int(1)? == 0))) }
        })?;
        let Some(mut row) = row else { return Ok(None) };
        let malformed = || KeyStoreError::Malformed(name.clone());
        let version = u32::try_from(row.int(0)?).map_err(|_| malformed())?;
        let opened = self.kek.unwrap(&row.text(2)?, &row.blob(1)?, &key_context(model, version))?;
        let key = opened.as_slice().try_into().map_err(|_| malformed())?;
        Ok(Some(ModelKey { version, key: Zeroizing::new(key), tenants, settled }))
    }

    /// Which keys there are, sorted by model and version.
    ///
    /// # Errors
    /// [`KeyStoreError::Database`] or [`KeyStoreError::Malformed`].
    pub fn keys(&self) -> Result<Vec<StoredKey>, KeyStoreError> {
        let rows =
            self.database.read(|tx| tx.query("SELECT model, version FROM model_keys ORDER BY model, version", &[]))?;
        let key = |mut row: Row| {
            let model = row.text(0)?;
            match (model.parse(), u32::try_from(row.int(1)?)) {
                (Ok(model), Ok(version)) => Ok(StoredKey { model, version }),
                _ => Err(KeyStoreError::Malformed(model)),
            }
        };
        rows.into_iter().map(key).collect()
    }

    /// Stores a secret of the service itself (as its TLS key) under `name`, in place of any there.
    ///
    /// # Errors
    /// [`KeyStoreError`].
    pub fn put_secret(&self, name: &str, secret: &[u8]) -> Result<(), KeyStoreError> {
        let name = own_name(name);
        let wrapped = wrap_secret(&self.kek, &name, secret)?;
        Ok(self.database.write(|tx| put_secret(tx, &name, &wrapped))?)
    }

    /// A secret of the service itself.
    ///
    /// # Errors
    /// [`KeyStoreError`].
    pub fn secret(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeyStoreError> {
        secret(&self.database, &self.kek, &own_name(name))
    }
}

/// A model's key as the database keeps it: wrapping may ask another machine, and stays out of transactions.
pub(crate) fn wrapped(
    kek: &Keyring,
    model: &ModelId,
    version: u32,
    key: &Zeroizing<[u8; 32]>,
) -> Result<Wrapped, WrapError> {
    kek.wrap(key.as_slice(), &key_context(model, version))
}

/// Imports a wrapped key inside a transaction of the caller.
pub(crate) fn import_in(
    tx: &mut Tx<'_>,
    model: &ModelId,
    version: u32,
    wrapped: &Wrapped,
) -> Result<(), KeyStoreError> {
    if releases::is_model_revoked_in(tx, &model.identity().to_string())? {
        return Err(KeyStoreError::Revoked);
    }
    let name = model.to_string();
    let sql = "INSERT INTO model_keys (model, version, wrapped, kek) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING";
    let version_value = Value::Int(version.into());
    match tx
        .execute(sql, &[Value::Text(&name), version_value, Value::Blob(&wrapped.bytes), Value::Text(&wrapped.kek)])?
    {
        0 => Err(KeyStoreError::Exists { model: name, version }),
        _ => Ok(()),
    }
}

/// Wraps a secret, before the transaction that writes it: a remote key takes its time.
pub(crate) fn wrap_secret(keyring: &Keyring, name: &str, secret: &[u8]) -> Result<Wrapped, WrapError> {
    keyring.wrap(secret, &secret_context(name))
}

pub(crate) fn put_secret(tx: &mut Tx<'_>, name: &str, wrapped: &Wrapped) -> Result<(), DatabaseError> {
    let sql = "INSERT INTO secrets (name, wrapped, kek) VALUES (?1, ?2, ?3)
        ON CONFLICT (name) DO UPDATE SET wrapped = excluded.wrapped, kek = excluded.kek";
    tx.execute(sql, &[Value::Text(name), Value::Blob(&wrapped.bytes), Value::Text(&wrapped.kek)]).map(drop)
}

/// [`put_secret`] where there is none yet.
pub(crate) fn put_secret_once(tx: &mut Tx<'_>, name: &str, wrapped: &Wrapped) -> Result<(), DatabaseError> {
    let sql = "INSERT INTO secrets (name, wrapped, kek) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    tx.execute(sql, &[Value::Text(name), Value::Blob(&wrapped.bytes), Value::Text(&wrapped.kek)]).map(drop)
}

pub(crate) fn secret(
    database: &Database,
    keyring: &Keyring,
    name: &str,
) -> Result<Option<Zeroizing<Vec<u8>>>, KeyStoreError> {
    let sql = "SELECT wrapped, kek FROM secrets WHERE name = ?1";
    let row = database.read(|tx| tx.first(sql, &[Value::Text(name)]))?;
    row.map(|mut row| keyring.unwrap(&row.text(1)?, &row.blob(0)?, &secret_context(name))).transpose()
}

/// Callers' names can't meet the store's own.
pub(crate) fn own_name(name: &str) -> String {
    format!("service/{name}")
}

/// Identity, labels and version: a row moved to another model or version does not open.
pub(crate) fn key_context(model: &ModelId, version: u32) -> Vec<u8> {
    let mut context = b"chrysalis/store/model-key/v1".to_vec();
    context.extend_from_slice(model.identity().as_bytes());
    context.extend_from_slice(&version.to_be_bytes());
    context.extend_from_slice(model.to_string().as_bytes());
    context
}

pub(crate) fn secret_context(name: &str) -> Vec<u8> {
    [b"chrysalis/store/secret/v1".as_slice(), name.as_bytes()].concat()
}

/// Whether a model is revoked, and how many changes wait for the log.
const LAST_LOOK: &str = "SELECT (SELECT count(*) FROM revoked WHERE kind = 'model' AND subject = ?1),
    (SELECT count(*) FROM operator_changes)";
