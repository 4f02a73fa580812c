// SPDX-License-Identifier: Apache-2.0
//! Everything that is wrapped, under another key: row by row, each of which says which key opens it. A program that ends
//! on the way leaves rows of both keys; the next run goes on.

use types::ModelId;

use crate::keys::{KeyStoreError, key_context, secret_context};
use crate::sql::{Row, Value};
use crate::{DatabaseError, Store};

/// What [`Store::rewrap`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rewrapped {
    /// Rows that are wrapped by the first key now.
    pub changed: u64,
    /// Rows that were so already.
    pub kept: u64,
}

/// A row: its name, and for a model's key its version.
struct Place {
    name: String,
    version: Option<u32>,
}

impl Store {
    /// Wraps every secret and every model key by the first of the keys that the store was opened with, which opens them
    /// by whichever key wrapped them. `progress` sees each row that is done. Services that have both keys go on meanwhile.
    ///
    /// # Errors
    /// [`KeyStoreError`]; what was done stays.
    pub fn rewrap(&self, mut progress: impl FnMut(Rewrapped)) -> Result<Rewrapped, KeyStoreError> {
        let mut done = Rewrapped::default();
        for place in self.wrapped_rows()? {
            if self.rewrap_row(&place)? {
                done.changed = done.changed.saturating_add(1);
            } else {
                done.kept = done.kept.saturating_add(1);
            }
            progress(done);
        }
        Ok(done)
    }

    /// The names of the keys that rows are wrapped by, sorted; empty for rows of the time before keys had names.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn keks_in_use(&self) -> Result<Vec<String>, DatabaseError> {
        let sql = "SELECT kek FROM secrets UNION SELECT kek FROM model_keys ORDER BY 1";
        self.database.read(|tx| tx.query(sql, &[])?.into_iter().map(|mut row| row.text(0)).collect())
    }

    fn wrapped_rows(&self) -> Result<Vec<Place>, DatabaseError> {
        self.database.read(|tx| {
            let secret = |mut row: Row| Ok(Place { name: row.text(0)?, version: None });
            let rows = tx.query("SELECT name FROM secrets ORDER BY name", &[])?;
            let mut all: Vec<_> = rows.into_iter().map(secret).collect::<Result<_, DatabaseError>>()?;
            let key = |mut row: Row| {
                let version = u32::try_from(row.int(1)?).map_err(|_| row.malformed())?;
                Ok(Place { name: row.text(0)?, version: Some(version) })
            };
            let rows = tx.query("SELECT model, version FROM model_keys ORDER BY model, version", &[])?;
            all.extend(rows.into_iter().map(key).collect::<Result<Vec<_>, DatabaseError>>()?);
            Ok(all)
        })
    }

    /// Whether the row was wrapped anew.
    fn rewrap_row(&self, place: &Place) -> Result<bool, KeyStoreError> {
        let row = self.database.read(|tx| match place.version {
            None => tx.first("SELECT wrapped, kek FROM secrets WHERE name = ?1", &[Value::Text(&place.name)]),
            Some(version) => tx.first(
                "SELECT wrapped, kek FROM model_keys WHERE model = ?1 AND version = ?2",
                &[Value::Text(&place.name), Value::Int(version.into())],
            ),
        })?;
        let Some(mut row) = row else { return Ok(false) };
        let (old, kek) = (row.blob(0)?, row.text(1)?);
        if kek == self.kek.first() {
            return Ok(false);
        }
        let context = match place.version {
            None => secret_context(&place.name),
            Some(version) => {
                let model: ModelId = place.name.parse().map_err(|_| KeyStoreError::Malformed(place.name.clone()))?;
                key_context(&model, version)
            }
        };
        let secret = self.kek.unwrap(&kek, &old, &context)?;
        let new = self.kek.wrap(&secret, &context)?;
        // Where somebody replaced the secret meanwhile, theirs stays: they wrapped it by a key of their own choice.
        let (name, bytes, by, was) =
            (Value::Text(&place.name), Value::Blob(&new.bytes), Value::Text(&new.kek), Value::Blob(&old));
        let changed = self.database.write(|tx| match place.version {
            None => tx.execute(
                "UPDATE secrets SET wrapped = ?2, kek = ?3 WHERE name = ?1 AND wrapped = ?4",
                &[name, bytes, by, was],
            ),
            Some(version) => tx.execute(
                "UPDATE model_keys SET wrapped = ?2, kek = ?3 WHERE model = ?1 AND wrapped = ?4 AND version = ?5",
                &[name, bytes, by, was, Value::Int(version.into())],
            ),
        })?;
        Ok(changed > 0)
    }
}
