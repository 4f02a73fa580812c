// SPDX-License-Identifier: Apache-2.0
//! Owners of models: their keys, the order of their commands, and what they demand.

use std::collections::BTreeSet;

use types::{Blake3Digest, Hex32, ModelId, Sha256Digest};
use zeroize::Zeroizing;

use crate::database::DatabaseError;
use crate::entry::OperatorAct;
use crate::keys::{self, KeyStoreError};
use crate::sql::{Row, Value, integer};
use crate::{Store, changes, releases};

/// The owner of a model: one key, or several of which a number must sign each command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Ed25519 keys, 1 to [`MAX_OWNER_KEYS`], sorted.
    pub keys: Vec<Hex32>,
    /// How many of them must sign a command.
    pub threshold: u32,
    /// Sequence of the newest command; 0 where there was none.
    pub sequence: u64,
}

/// What a command of the owner changes.
#[derive(Debug)]
pub enum OwnerChange {
    /// The policy is this one from now on. It says everything: releases that were admitted to the one before are not.
    Policy(Vec<u8>),
    /// The model is revoked for good.
    Revoke,
    /// The policy in force accepts this release where it accepts its predecessor.
    Successor(Successor),
    /// A new version of the model's key.
    Key {
        /// The version.
        version: u32,
        /// The key.
        key: Zeroizing<[u8; 32]>,
    },
    /// Guests get this document of tenants with the model's key from now on; `None`: none.
    Tenants(Option<Vec<u8>>),
}

/// A release that an owner admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Successor {
    /// The release that the owner's policy lists, or that was admitted before.
    pub predecessor: Sha256Digest,
    /// The release that counts as listed, too.
    pub successor: Sha256Digest,
}

/// Why an owner was not registered, or a command not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// The model has an owner; an owner is never replaced.
    #[error("the model has an owner already")]
    Exists,
    /// Keys and threshold do not fit each other.
    #[error("an owner has 1 to {MAX_OWNER_KEYS} keys, each once, and a threshold of 1 up to their number")]
    Keys,
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
    /// The model's key.
    #[error(transparent)]
    Key(#[from] KeyStoreError),
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
        self.register_owners(model, core::slice::from_ref(key), 1)
    }

    /// Registers an owner of several keys, `threshold` of which must sign each command, for good.
    ///
    /// # Errors
    /// [`OwnerError::Exists`], [`OwnerError::Keys`].
    pub fn register_owners(&self, model: &ModelId, keys: &[Hex32], threshold: u32) -> Result<(), OwnerError> {
        let distinct: BTreeSet<_> = keys.iter().map(Hex32::as_bytes).collect();
        let number = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        let [first, ..] = keys else { return Err(OwnerError::Keys) };
        if keys.len() > MAX_OWNER_KEYS || distinct.len() != keys.len() || !(1..=number).contains(&threshold) {
            return Err(OwnerError::Keys);
        }
        self.database.change(|tx| {
            let identity = model.identity().to_string();
            let sql = "INSERT INTO owners (model, key, sequence, threshold) VALUES (?1, ?2, 0, ?3)
                ON CONFLICT DO NOTHING";
            let values = [Value::Text(&identity), Value::Blob(first.as_bytes()), Value::Int(threshold.into())];
            if tx.execute(sql, &values)? == 0 {
                return Err(OwnerError::Exists);
            }
            for key in distinct.iter().copied() {
                let sql = "INSERT INTO owner_keys (model, key) VALUES (?1, ?2)";
                tx.execute(sql, &[Value::Text(&identity), Value::Blob(key)])?;
            }
            let threshold = threshold.to_be_bytes();
            let parts: Vec<&[u8]> =
                [threshold.as_slice()].into_iter().chain(distinct.iter().map(|key| key.as_slice())).collect();
            let content = Sha256Digest::of_parts(&parts);
            Ok(changes::queue(tx, OperatorAct::OwnersRegistered, &identity, Some(content))?)
        })
    }

    /// The owner of a model.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn owner(&self, model: &Blake3Digest) -> Result<Option<Owner>, DatabaseError> {
        let identity = model.to_string();
        // One state, of this program's version: another one may keep the keys elsewhere.
        let read = self.database.snapshot(|tx| {
            crate::database::own_schema(tx, false)?;
            let sql = "SELECT sequence, threshold FROM owners WHERE model = ?1";
            let Some(row) = tx.first(sql, &[Value::Text(&identity)])? else { return Ok(None) };
            let sql = "SELECT key FROM owner_keys WHERE model = ?1 ORDER BY key";
            Ok::<_, DatabaseError>(Some((row, tx.query(sql, &[Value::Text(&identity)])?)))
        })?;
        let Some((row, keys)) = read else { return Ok(None) };
        let key = |mut row: Row| Ok(Hex32::new(row.blob(0)?.try_into().map_err(|_| row.malformed())?));
        let keys = keys.into_iter().map(key).collect::<Result<Vec<_>, DatabaseError>>()?;
        let threshold = u32::try_from(row.number(1)?).map_err(|_| row.malformed())?;
        Ok(Some(Owner { keys, threshold, sequence: row.number(0)? }))
    }

    /// Carries out a command whose signature was verified, and its sequence with it, or neither.
    ///
    /// # Errors
    /// [`OwnerError`].
    pub fn command_of_owner(&self, model: &ModelId, sequence: u64, change: &OwnerChange) -> Result<(), OwnerError> {
        let identity = model.identity().to_string();
        let number = integer("owners", sequence)?;
        let wrapped = match change {
            OwnerChange::Key { version: 0, .. } => return Err(KeyStoreError::Version.into()),
            OwnerChange::Key { version, key } => {
                Some(keys::wrapped(&self.kek, model, *version, key).map_err(KeyStoreError::from)?)
            }
            _ => None,
        };
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
                    tx.execute("DELETE FROM successors WHERE model = ?1", &[Value::Text(&identity)])?;
                }
                OwnerChange::Successor(Successor { predecessor, successor }) => {
                    let sql = "INSERT INTO successors (model, sequence, predecessor, successor)
                        VALUES (?1, ?2, ?3, ?4)";
                    let [predecessor, successor] = [predecessor, successor].map(ToString::to_string);
                    let values = [
                        Value::Text(&identity),
                        Value::Int(number),
                        Value::Text(&predecessor),
                        Value::Text(&successor),
                    ];
                    tx.execute(sql, &values)?;
                }
                OwnerChange::Key { version, .. } => {
                    let wrapped = wrapped.as_ref().ok_or(DatabaseError::Row("model_keys"))?;
                    keys::import_in(tx, model, *version, wrapped)?;
                }
                OwnerChange::Revoke => releases::revoke_model_in(tx, &identity)?,
                OwnerChange::Tenants(None) => {
                    tx.execute("DELETE FROM tenants WHERE model = ?1", &[Value::Text(&identity)])?;
                }
                OwnerChange::Tenants(Some(document)) => {
                    let sql = "INSERT INTO tenants (model, document) VALUES (?1, ?2)
                        ON CONFLICT (model) DO UPDATE SET document = excluded.document";
                    tx.execute(sql, &[Value::Text(&identity), Value::Blob(document)])?;
                }
            }
            // Counted as the operator's own changes are: a store that was set back to before it is found by its log.
            let content = if let OwnerChange::Tenants(Some(document)) = change { Some(document) } else { None };
            let content = content.map(|document| Sha256Digest::of(document));
            Ok(changes::queue(tx, OperatorAct::OwnerCommanded, &format!("{identity}/{sequence}"), content)?)
        })
    }

    /// The releases that owners admitted to their policies, by the identities of their models, in the order of the
    /// commands.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn successors(&self) -> Result<Vec<(Blake3Digest, Successor)>, DatabaseError> {
        let sql = "SELECT model, predecessor, successor FROM successors ORDER BY model, sequence";
        let rows = self.database.read(|tx| tx.query(sql, &[]))?;
        let admitted = |mut row: Row| {
            let malformed = row.malformed();
            let mut digest = |column| row.text(column)?.parse::<Sha256Digest>().map_err(|_| DatabaseError::Row(sql));
            let (predecessor, successor) = (digest(1)?, digest(2)?);
            Ok((row.text(0)?.parse().map_err(|_| malformed)?, Successor { predecessor, successor }))
        };
        rows.into_iter().map(admitted).collect()
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

/// Most keys of one owner.
pub const MAX_OWNER_KEYS: usize = 8;
