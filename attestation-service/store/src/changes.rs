// SPDX-License-Identifier: Apache-2.0
//! What the operator changes, and what owners' commands did, on its way into the audit log: each change queues its entry
//! in its own transaction, and whoever appends to the log next puts it first. So what was decided by a change stands
//! behind it in the log, and a checkpoint that is kept elsewhere shows that a store was set back to before the change.
//!
//! An entry is removed from the queue once it stands in the log. In PostgreSQL both are one transaction; where a program
//! ends in between beside a log in a directory, whoever opens the log next finds the entry there.
//!
//! Whoever can write the database can queue rows, too. The log signs nothing of that but entries of changes, each under
//! a number that was counted for it and that the database does not know to stand in the log.

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
    number_in(tx, META_CHANGES)
}

/// What waits behind the change `after`, in order; no more than fits into one write ([`is_full`]). Refused where a newer
/// program brought the tables up to date, and for a row that is no entry of a change that was counted and not entered.
pub(crate) fn queued(tx: &mut Tx<'_>, after: i64) -> Result<Vec<Queued>, AuditError> {
    database::own_schema(tx, true)?;
    // Before the rows: what is entered meanwhile is no fault of theirs.
    let done = number_in(tx, META_ENTERED)?;
    let rows = tx.query(QUEUED, &[Value::Int(after), Value::Int(done), Value::Int(MOST_QUEUED)])?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let counted = last(tx)?;
    let checked = |mut row: crate::sql::Row| {
        let number = row.int(0)?;
        let refused = |rule: &str| AuditError::Queued { number, rule: rule.to_owned() };
        if number <= done {
            return Err(refused("the entry of the change with this number stands in the log already"));
        }
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

/// Whether more may wait behind what [`queued`] gave.
pub(crate) fn is_full(queued: &[Queued]) -> bool {
    i64::try_from(queued.len()).is_ok_and(|count| count >= MOST_QUEUED)
}

/// How many wait.
pub(crate) fn waiting(tx: &mut Tx<'_>) -> Result<u64, DatabaseError> {
    let sql = "SELECT count(*) FROM operator_changes";
    tx.first(sql, &[])?.ok_or(DatabaseError::Row(sql))?.number(0)
}

/// Forgets what stands in the log: everything up to `number`. No row under one of these numbers is taken any more.
pub(crate) fn entered(tx: &mut Tx<'_>, number: i64) -> Result<(), DatabaseError> {
    tx.execute("DELETE FROM operator_changes WHERE number <= ?1", &[Value::Int(number)])?;
    let newest = number_in(tx, META_ENTERED)?.max(number);
    database::put_meta(tx, META_ENTERED, &newest.to_be_bytes())
}

/// The number of an entry of the log, if it is of a change.
pub(crate) fn number_of(entry: &AuditEntry) -> i64 {
    match entry {
        // Larger than any that this program made: it counts as missing from the tables.
        AuditEntry::Operator(entry) => i64::try_from(entry.number).unwrap_or(i64::MAX),
        _ => 0,
    }
}

/// A number that stands in `meta`; 0 where it does not.
fn number_in(tx: &mut Tx<'_>, name: &'static str) -> Result<i64, DatabaseError> {
    match database::meta(tx, name)? {
        None => Ok(0),
        Some(bytes) => bytes.try_into().map(i64::from_be_bytes).map_err(|_| MALFORMED),
    }
}

/// What waits, and before it what should not be there. Longer ones are not even read.
const QUEUED: &str = "SELECT number, CASE WHEN length(entry) <= 8192 THEN entry END FROM operator_changes
    WHERE number > ?1 OR number <= ?2 ORDER BY number LIMIT ?3";
/// Entries of changes that are written together.
const MOST_QUEUED: i64 = 256;
const META_CHANGES: &str = "operator-changes";
/// Number of the newest change whose entry is known to stand in the log.
const META_ENTERED: &str = "operator-changes-entered";
const MALFORMED: DatabaseError = DatabaseError::Row("operator_changes");
