// SPDX-License-Identifier: Apache-2.0
//! Policy documents by name. The store keeps bytes; their readers check them.

use rusqlite::{OptionalExtension as _, params};

use crate::Store;
use crate::database::{self, DatabaseError};

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
        database::lock(&self.database)?
            .execute("INSERT OR REPLACE INTO policies (name, document) VALUES (?1, ?2)", params![name, document])
            .map_err(DatabaseError::from)?;
        self.changed();
        Ok(())
    }

    /// A policy document.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn policy(&self, name: &str) -> Result<Option<Vec<u8>>, DatabaseError> {
        let connection = database::lock(&self.reader)?;
        Ok(connection
            .query_row("SELECT document FROM policies WHERE name = ?1", [name], |row| row.get(0))
            .optional()?)
    }

    /// The policies' names, sorted.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn policies(&self) -> Result<Vec<String>, DatabaseError> {
        let connection = database::lock(&self.reader)?;
        let mut statement = connection.prepare("SELECT name FROM policies ORDER BY name")?;
        let names = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(names)
    }
}

const MAX_POLICY: usize = 1024 * 1024;
