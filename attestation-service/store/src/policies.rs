// SPDX-License-Identifier: Apache-2.0
//! Policy documents by name. The store keeps bytes; their readers check them.

use types::Sha256Digest;

use crate::database::DatabaseError;
use crate::entry::OperatorAct;
use crate::sql::Value;
use crate::{Store, changes};

/// Why a policy was not stored.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The name.
    #[error("a policy's name has 1 to 128 characters of A-Z a-z 0-9 . _ - @ :")]
    Name,
    /// The size.
    #[error("a policy has at most {MAX_POLICY} bytes")]
    TooLarge,
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Store {
    /// Stores a policy document in place of any of this name.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn set_policy(&self, name: &str, document: &[u8]) -> Result<(), PolicyError> {
        let named = (1..=128).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@' | b':'));
        if !named {
            return Err(PolicyError::Name);
        }
        if document.len() > MAX_POLICY {
            return Err(PolicyError::TooLarge);
        }
        self.database.change(|tx| {
            let sql = "INSERT INTO policies (name, document) VALUES (?1, ?2)
                ON CONFLICT (name) DO UPDATE SET document = excluded.document";
            tx.execute(sql, &[Value::Text(name), Value::Blob(document)])?;
            Ok(changes::queue(tx, OperatorAct::PolicySet, name, Some(Sha256Digest::of(document)))?)
        })
    }

    /// A policy document.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn policy(&self, name: &str) -> Result<Option<Vec<u8>>, DatabaseError> {
        self.database.read(|tx| {
            let row = tx.first("SELECT document FROM policies WHERE name = ?1", &[Value::Text(name)])?;
            row.map(|mut row| row.blob(0)).transpose()
        })
    }

    /// The policies' names, sorted.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn policies(&self) -> Result<Vec<String>, DatabaseError> {
        self.database.read(|tx| {
            let rows = tx.query("SELECT name FROM policies ORDER BY name", &[])?;
            rows.into_iter().map(|mut row| row.text(0)).collect()
        })
    }
}

const MAX_POLICY: usize = 1024 * 1024;
