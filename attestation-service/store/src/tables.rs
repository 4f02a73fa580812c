// SPDX-License-Identifier: Apache-2.0
//! The tables that a backup holds, as JSON: rows in the order of their keys, integers as numbers, bytes in base64.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value as Json;

use crate::database::DatabaseError;
use crate::sql::{Cell, Tx};

/// A table of a backup.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    kinds: &'static [Kind],
    select: &'static str,
    insert: &'static str,
}

/// What a column holds.
#[derive(Clone, Copy)]
enum Kind {
    Int,
    Text,
    Blob,
    /// Bytes, or nothing.
    Optional,
}

/// In the order in which they stand in an archive. Redeemed challenges are left out: a restored store voids them all.
pub(crate) const TABLES: &[Table] = &[
    Table {
        name: "meta",
        kinds: &[Kind::Text, Kind::Blob],
        select: "SELECT name, value FROM meta ORDER BY name",
        insert: "INSERT INTO meta (name, value) VALUES (?1, ?2)",
    },
    Table {
        name: "secrets",
        kinds: &[Kind::Text, Kind::Blob, Kind::Text],
        select: "SELECT name, wrapped, kek FROM secrets ORDER BY name",
        insert: "INSERT INTO secrets (name, wrapped, kek) VALUES (?1, ?2, ?3)",
    },
    Table {
        name: "model_keys",
        kinds: &[Kind::Text, Kind::Int, Kind::Blob, Kind::Text],
        select: "SELECT model, version, wrapped, kek FROM model_keys ORDER BY model, version",
        insert: "INSERT INTO model_keys (model, version, wrapped, kek) VALUES (?1, ?2, ?3, ?4)",
    },
    Table {
        name: "releases",
        kinds: &[Kind::Blob, Kind::Blob],
        select: "SELECT digest, bundle FROM releases ORDER BY digest",
        insert: "INSERT INTO releases (digest, bundle) VALUES (?1, ?2)",
    },
    Table {
        name: "revoked",
        kinds: &[Kind::Text, Kind::Text],
        select: "SELECT kind, subject FROM revoked ORDER BY kind, subject",
        insert: "INSERT INTO revoked (kind, subject) VALUES (?1, ?2)",
    },
    Table {
        name: "policies",
        kinds: &[Kind::Text, Kind::Blob],
        select: "SELECT name, document FROM policies ORDER BY name",
        insert: "INSERT INTO policies (name, document) VALUES (?1, ?2)",
    },
    Table {
        name: "owners",
        kinds: &[Kind::Text, Kind::Blob, Kind::Int, Kind::Optional, Kind::Int],
        select: "SELECT model, key, sequence, policy, threshold FROM owners ORDER BY model",
        insert: "INSERT INTO owners (model, key, sequence, policy, threshold) VALUES (?1, ?2, ?3, ?4, ?5)",
    },
    Table {
        name: "owner_keys",
        kinds: &[Kind::Text, Kind::Blob],
        select: "SELECT model, key FROM owner_keys ORDER BY model, key",
        insert: "INSERT INTO owner_keys (model, key) VALUES (?1, ?2)",
    },
    Table {
        name: "successors",
        kinds: &[Kind::Text, Kind::Int, Kind::Text, Kind::Text],
        select: "SELECT model, sequence, predecessor, successor FROM successors ORDER BY model, sequence",
        insert: "INSERT INTO successors (model, sequence, predecessor, successor) VALUES (?1, ?2, ?3, ?4)",
    },
    Table {
        name: "tenants",
        kinds: &[Kind::Text, Kind::Blob],
        select: "SELECT model, document FROM tenants ORDER BY model",
        insert: "INSERT INTO tenants (model, document) VALUES (?1, ?2)",
    },
    Table {
        name: "operator_changes",
        kinds: &[Kind::Int, Kind::Blob],
        select: "SELECT number, entry FROM operator_changes ORDER BY number",
        insert: "INSERT INTO operator_changes (number, entry) VALUES (?1, ?2)",
    },
];

/// Tables that no backup holds: the challenges, what only the running store knows, and the log, which stands in an
/// archive as its entries.
#[cfg(test)]
const LEFT_OUT: &[&str] =
    &["redeemed", "changes", "audit_head", "audit_entries", "audit_tiles", "replicas", "schema_version"];

impl Table {
    /// The table's rows.
    pub(crate) fn read(&self, tx: &mut Tx<'_>) -> Result<Vec<u8>, DatabaseError> {
        let row = |row: crate::sql::Row| Json::Array(row.cells.into_iter().map(to_json).collect());
        let rows: Vec<_> = tx.query(self.select, &[])?.into_iter().map(row).collect();
        serde_json::to_vec(&rows).map_err(|_| DatabaseError::Row(self.name))
    }

    /// Rows out of what [`Table::read`] gave; `None` for anything else.
    pub(crate) fn parse(&self, bytes: &[u8]) -> Option<Vec<Vec<Cell>>> {
        let rows: Vec<Vec<Json>> = serde_json::from_slice(bytes).ok()?;
        let row = |row: Vec<Json>| {
            if row.len() != self.kinds.len() {
                return None;
            }
            row.into_iter().zip(self.kinds).map(|(json, kind)| from_json(json, *kind)).collect()
        };
        rows.into_iter().map(row).collect()
    }

    /// Writes rows into the empty table.
    pub(crate) fn write(&self, tx: &mut Tx<'_>, rows: &[Vec<Cell>]) -> Result<(), DatabaseError> {
        for row in rows {
            let values: Vec<_> = row.iter().map(Cell::value).collect();
            tx.execute(self.insert, &values)?;
        }
        Ok(())
    }
}

fn to_json(cell: Cell) -> Json {
    match cell {
        Cell::Null => Json::Null,
        Cell::Int(value) => value.into(),
        Cell::Text(text) => text.into(),
        Cell::Blob(bytes) => STANDARD.encode(bytes).into(),
    }
}

fn from_json(json: Json, kind: Kind) -> Option<Cell> {
    match (kind, json) {
        (Kind::Int, Json::Number(number)) => Some(Cell::Int(number.as_i64()?)),
        (Kind::Text, Json::String(text)) if !text.contains('\0') => Some(Cell::Text(text)),
        (Kind::Blob | Kind::Optional, Json::String(text)) => Some(Cell::Blob(STANDARD.decode(text).ok()?)),
        (Kind::Optional, Json::Null) => Some(Cell::Null),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sqlite::Sqlite;

    /// Whoever adds a table says whether backups hold it, and with which columns.
    #[test]
    fn every_table_and_column_is_in_a_backup_or_left_out_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let sqlite = Sqlite::create(&dir.path().join("db")).unwrap();
        let sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
        let found: BTreeSet<String> = sqlite
            .read(|tx| tx.query(sql, &[])?.into_iter().map(|mut row| row.text(0)).collect::<Result<_, DatabaseError>>())
            .unwrap();
        let known = TABLES.iter().map(|table| table.name).chain(LEFT_OUT.iter().copied());
        let known: BTreeSet<String> = known.map(str::to_owned).collect();
        assert_eq!(found.difference(&known).collect::<Vec<_>>(), Vec::<&String>::new());
        for table in TABLES {
            let sql: &'static str =
                Box::leak(format!("SELECT count(*) FROM pragma_table_info('{}')", table.name).into());
            let columns: i64 = sqlite.read(|tx| tx.first(sql, &[])?.unwrap().int(0)).unwrap();
            assert_eq!(usize::try_from(columns).unwrap(), table.kinds.len(), "{}", table.name);
        }
    }

    #[test]
    fn rows_of_another_form_are_refused() {
        let table = &TABLES[6];
        assert!(table.parse(br#"[["m","AAAA",1,null,2],["m","AAAA",1,"AA==",1]]"#).is_some());
        for bad in [
            &b""[..],
            b"{}",
            br#"[["m","AAAA",1,null]]"#,
            br#"[["m","AAAA",1,null,1,1]]"#,
            br#"[["m","not base64!",1,null,1]]"#,
            br#"[["m","AAAA",1.5,null,1]]"#,
            br#"[["m","AAAA",9223372036854775808,null,1]]"#,
            br#"[[null,"AAAA",1,null,1]]"#,
            br#"[["m","AAAA",1,null,1]] "x""#,
        ] {
            assert!(table.parse(bad).is_none(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
