// SPDX-License-Identifier: Apache-2.0
//! Owners of models: their keys, the order of their commands, and what they demand.

use types::{Blake3Digest, Hex32, ModelId};

use crate::database::DatabaseError;
use crate::sql::{Row, Value, integer};
use crate::{Store, releases};

/// The owner of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Ed25519 key.
    pub key: Hex32,
    /// Sequence of the newest command; 0 where there was none.
    pub sequence: u64,
}

/// What a command of the owner changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerChange {
    /// The policy is this one from now on.
    Policy(Vec<u8>),
    /// The model is revoked for good.
    Revoke,
}

/// Why an owner was not registered, or a command not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// The model has an owner; an owner is never replaced.
    #[error("the model has an owner already")]
    Exists,
    /// The model has none.
    #[error("the model has no owner here")]
    Unknown,
    /// The command is not newer than the newest one.
    #[error("the command has the sequence {found}, the newest one that was carried out has {known}")]
    Sequence {
        /// Of the newest command.
        known: u64,
        /// Of this one.
        found: u64,
    },
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Store {
    /// Registers the owner of a model, by its identity, for good.
    ///
    /// # Errors
    /// [`OwnerError::Exists`].
    pub fn register_owner(&self, model: &ModelId, key: &Hex32) -> Result<(), OwnerError> {
        self.database.change(|tx| {
            let sql = "INSERT INTO owners (model, key, sequence) VALUES (?1, ?2, 0) ON CONFLICT DO NOTHING";
            let identity = model.identity().to_string();
            match tx.execute(sql, &[Value::Text(&identity), Value::Blob(key.as_bytes())])? {
                0 => Err(OwnerError::Exists),
                _ => Ok(()),
            }
        })
    }

    /// The owner of a model.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn owner(&self, model: &Blake3Digest) -> Result<Option<Owner>, DatabaseError> {
        let sql = "SELECT key, sequence FROM owners WHERE model = ?1";
        let row = self.database.read(|tx| tx.first(sql, &[Value::Text(&model.to_string())]))?;
        let Some(mut row) = row else { return Ok(None) };
        let key = row.blob(0)?.try_into().map_err(|_| row.malformed())?;
        Ok(Some(Owner { key: Hex32::new(key), sequence: row.number(1)? }))
    }

    /// Carries out a command whose signature was verified, and its sequence with it, or neither.
    ///
    /// # Errors
    /// [`OwnerError`].
    pub fn command_of_owner(&self, model: &ModelId, sequence: u64, change: &OwnerChange) -> Result<(), OwnerError> {
        let identity = model.identity().to_string();
        let number = integer("owners", sequence)?;
        self.database.change(|tx| {
            let row = tx.first("SELECT sequence FROM owners WHERE model = ?1", &[Value::Text(&identity)])?;
            let known = row.ok_or(OwnerError::Unknown)?.number(0)?;
            if sequence <= known {
                return Err(OwnerError::Sequence { known, found: sequence });
            }
            let sql = "UPDATE owners SET sequence = ?2 WHERE model = ?1";
            tx.execute(sql, &[Value::Text(&identity), Value::Int(number)])?;
            match change {
                OwnerChange::Policy(policy) => {
                    let sql = "UPDATE owners SET policy = ?2 WHERE model = ?1";
                    tx.execute(sql, &[Value::Text(&identity), Value::Blob(policy)])?;
                }
                OwnerChange::Revoke => releases::revoke_model_in(tx, &identity)?,
            }
            Ok(())
        })
    }

    /// The policies that owners demand, by the identities of their models.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn owner_policies(&self) -> Result<Vec<(Blake3Digest, Vec<u8>)>, DatabaseError> {
        let sql = "SELECT model, policy FROM owners WHERE policy IS NOT NULL ORDER BY model";
        let rows = self.database.read(|tx| tx.query(sql, &[]))?;
        let policy = |mut row: Row| Ok((row.text(0)?.parse().map_err(|_| row.malformed())?, row.blob(1)?));
        rows.into_iter().map(policy).collect()
    }
}
