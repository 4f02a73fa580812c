// SPDX-License-Identifier: Apache-2.0
//! What the operator changes, and what owners' commands did, on its way into the audit log: each change queues its entry
//! in its own transaction, and whoever appends to the log next puts it first. So what was decided by a change stands
//! behind it in the log, and a checkpoint that is kept elsewhere shows that a store was set back to before the change.
//!
//! An entry is removed from the queue once it stands in the log. A program that ends in between may enter it once more,
//! with the same number.
//!
//! Whoever can write the database can queue rows, too. The log signs nothing of that but entries of changes, each under
//! the number that was counted for it.

use std::time::{SystemTime, UNIX_EPOCH};

use types::Sha256Digest;

use crate::audit::AuditError;
use crate::database::{self, DatabaseError};
use crate::entry::{AuditEntry, OperatorAct, OperatorEntry};
use crate::sql::{Tx, Value};

/// Whether every change that a read of the store saw stood in the log already. What was decided by that read alone is
/// entered without another look at what waits: a change that came later decided nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled(pub(crate) bool);

/// An entry that waits for the log.
pub(crate) struct Queued {
    pub(crate) number: i64,
    pub(crate) entry: Vec<u8>,
}

/// Queues the entry of a change, in the transaction that makes it: [`crate::database::Database::change`].
pub(crate) fn queue(
    tx: &mut Tx<'_>,
    act: OperatorAct,
    subject: &str,
    content: Option<Sha256Digest>,
) -> Result<(), DatabaseError> {
    let number = last(tx)?.checked_add(1).ok_or(MALFORMED)?;
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let entry = OperatorEntry {
        schema: <OperatorEntry as types::Document>::SCHEMA.to_owned(),
        unix,
        number: u64::try_from(number).map_err(|_| MALFORMED)?,
        act,
        subject: subject.to_owned(),
        content,
    };
    let bytes = AuditEntry::Operator(entry).to_bytes().map_err(|_| MALFORMED)?;
    let sql = "INSERT INTO operator_changes (number, entry) VALUES (?1, ?2)";
    tx.execute(sql, &[Value::Int(number), Value::Blob(&bytes)])?;
    database::put_meta(tx, META_CHANGES, &number.to_be_bytes())
}

/// Number of the newest change; 0 where there was none.
pub(crate) fn last(tx: &mut Tx<'_>) -> Result<i64, DatabaseError> {
    match database::meta(tx, META_CHANGES)? {
        None => Ok(0),
        Some(bytes) => bytes.try_into().map(i64::from_be_bytes).map_err(|_| MALFORMED),
    }
}

/// What waits behind the change `after`, in order; no more than fits into one write. Refused where a newer program brought
/// the tables up to date, and for a row that is no entry of a change that was counted.
pub(crate) fn queued(tx: &mut Tx<'_>, after: i64) -> Result<Vec<Queued>, AuditError> {
    database::own_schema(tx, true)?;
    let rows = tx.query(QUEUED, &[Value::Int(after)])?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let counted = last(tx)?;
    let checked = |mut row: crate::sql::Row| {
        let number = row.int(0)?;
        let refused = |rule: &str| AuditError::Queued { number, rule: rule.to_owned() };
        let entry = row.blob(1).map_err(|_| refused("it has more than 8,192 bytes"))?;
        match AuditEntry::parse(&entry).map_err(|error| refused(&error.to_string()))? {
            found @ AuditEntry::Operator(_) if number_of(&found) == number && number <= counted => {
                Ok(Queued { number, entry })
            }
            AuditEntry::Operator(_) => Err(refused("it has another number, or one that was not counted")),
            _ => Err(refused("it is an entry of something else")),
        }
    };
    rows.into_iter().map(checked).collect()
}

/// How many wait.
pub(crate) fn waiting(tx: &mut Tx<'_>) -> Result<u64, DatabaseError> {
    let sql = "SELECT count(*) FROM operator_changes";
    tx.first(sql, &[])?.ok_or(DatabaseError::Row(sql))?.number(0)
}

/// Forgets what stands in the log: everything up to `number`.
pub(crate) fn entered(tx: &mut Tx<'_>, number: i64) -> Result<(), DatabaseError> {
    tx.execute("DELETE FROM operator_changes WHERE number <= ?1", &[Value::Int(number)]).map(drop)
}

/// The number of an entry of the log, if it is of a change.
pub(crate) fn number_of(entry: &AuditEntry) -> i64 {
    match entry {
        // Larger than any that this program made: it counts as missing from the tables.
        AuditEntry::Operator(entry) => i64::try_from(entry.number).unwrap_or(i64::MAX),
        _ => 0,
    }
}

/// Longer ones are not even read.
const QUEUED: &str = "SELECT number, CASE WHEN length(entry) <= 8192 THEN entry END FROM operator_changes
    WHERE number > ?1 ORDER BY number LIMIT 256";
const META_CHANGES: &str = "operator-changes";
const MALFORMED: DatabaseError = DatabaseError::Row("operator_changes");
