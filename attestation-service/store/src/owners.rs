// SPDX-License-Identifier: Apache-2.0
//! Owners of models: their keys, the order of their commands, and what they demand.

use rusqlite::{ErrorCode, OptionalExtension as _, TransactionBehavior, params};
use types::{Blake3Digest, Hex32, ModelId};

use crate::database::{self, DatabaseError};
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

impl From<rusqlite::Error> for OwnerError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.into())
    }
}

impl Store {
    /// Registers the owner of a model, by its identity, for good.
    ///
    /// # Errors
    /// [`OwnerError::Exists`].
    pub fn register_owner(&self, model: &ModelId, key: &Hex32) -> Result<(), OwnerError> {
        let inserted = database::lock(&self.database)?.execute(
            "INSERT INTO owners (model, key, sequence) VALUES (?1, ?2, 0)",
            params![model.identity().to_string(), key.as_bytes()],
        );
        match inserted {
            Ok(_) => {
                self.changed();
                Ok(())
            }
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => Err(OwnerError::Exists),
            Err(error) => Err(error.into()),
        }
    }

    /// The owner of a model.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn owner(&self, model: &Blake3Digest) -> Result<Option<Owner>, DatabaseError> {
        let row = database::lock(&self.reader)?
            .query_row("SELECT key, sequence FROM owners WHERE model = ?1", [model.to_string()], |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?))
            })
            .optional()?;
        let Some((key, sequence)) = row else { return Ok(None) };
        let key = key.try_into().map_err(|_| DatabaseError::Row("owners"))?;
        Ok(Some(Owner { key: Hex32::new(key), sequence: database::number("owners", sequence)? }))
    }

    /// Carries out a command whose signature was verified, and its sequence with it, or neither.
    ///
    /// # Errors
    /// [`OwnerError`].
    pub fn command_of_owner(&self, model: &ModelId, sequence: u64, change: &OwnerChange) -> Result<(), OwnerError> {
        let identity = model.identity().to_string();
        let number = i64::try_from(sequence).map_err(|_| DatabaseError::Row("owners"))?;
        let mut connection = database::lock(&self.database)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let known: Option<i64> = transaction
            .query_row("SELECT sequence FROM owners WHERE model = ?1", [&identity], |row| row.get(0))
            .optional()?;
        let known = database::number("owners", known.ok_or(OwnerError::Unknown)?)?;
        if sequence <= known {
            return Err(OwnerError::Sequence { known, found: sequence });
        }
        transaction.execute("UPDATE owners SET sequence = ?2 WHERE model = ?1", params![identity, number])?;
        match change {
            OwnerChange::Policy(policy) => {
                transaction.execute("UPDATE owners SET policy = ?2 WHERE model = ?1", params![identity, policy])?;
            }
            OwnerChange::Revoke => releases::revoke_model_in(&transaction, &identity)?,
        }
        transaction.commit()?;
        drop(connection);
        self.changed();
        Ok(())
    }

    /// The policies that owners demand, by the identities of their models.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn owner_policies(&self) -> Result<Vec<(Blake3Digest, Vec<u8>)>, DatabaseError> {
        let connection = database::lock(&self.reader)?;
        let mut statement = connection.prepare("SELECT model, policy FROM owners WHERE policy IS NOT NULL")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        rows.into_iter()
            .map(|(model, policy)| Ok((model.parse().map_err(|_| DatabaseError::Row("owners"))?, policy)))
            .collect()
    }
}
