// SPDX-License-Identifier: Apache-2.0
//! The tables, as steps from version to version. Each step is written once, in SQLite's dialect; what one database
//! needs beside it stands by itself. A step that was released is never changed.

use crate::database::DatabaseError;

/// What makes one version from the one before.
pub(crate) struct Step {
    /// For both databases.
    both: &'static str,
    /// For PostgreSQL alone, in its own dialect.
    postgres: &'static str,
}

impl Step {
    pub(crate) fn for_sqlite(&self) -> String {
        self.both.to_owned()
    }

    /// PostgreSQL has other names for the types, and orders text by locale unless it is told not to.
    pub(crate) fn for_postgres(&self) -> String {
        let both = self
            .both
            .replace(" STRICT, WITHOUT ROWID", "")
            .replace(" STRICT", "")
            .replace("BLOB", "BYTEA")
            .replace("INTEGER", "BIGINT")
            .replace("TEXT", "TEXT COLLATE \"C\"");
        [&both, self.postgres].concat()
    }
}

/// The steps that a database of version `found` lacks; 0 is an empty one.
pub(crate) fn steps_from(found: i64) -> Result<&'static [Step], DatabaseError> {
    let missing = usize::try_from(found).ok().and_then(|found| STEPS.get(found..));
    missing.ok_or(DatabaseError::Version { found, known: VERSION })
}

/// The version that this program knows.
#[allow(clippy::cast_possible_wrap, reason = "a handful")]
pub(crate) const VERSION: i64 = STEPS.len() as i64;

const STEPS: &[Step] = &[
    // 1
    Step {
        both: "
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE secrets (name TEXT PRIMARY KEY, wrapped BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE model_keys (
    model TEXT NOT NULL, version INTEGER NOT NULL CHECK (version BETWEEN 1 AND 4294967295), wrapped BLOB NOT NULL,
    PRIMARY KEY (model, version)) STRICT, WITHOUT ROWID;
CREATE TABLE releases (digest BLOB PRIMARY KEY CHECK (length(digest) = 32), bundle BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE revoked (
    kind TEXT NOT NULL CHECK (kind IN ('release', 'platform', 'model')), subject TEXT NOT NULL,
    PRIMARY KEY (kind, subject)) STRICT, WITHOUT ROWID;
CREATE TABLE redeemed (
    token BLOB PRIMARY KEY CHECK (length(token) = 32), expires INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX redeemed_by_expiry ON redeemed (expires);
CREATE TABLE policies (name TEXT PRIMARY KEY, document BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE audit_head (
    one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL, root BLOB NOT NULL CHECK (length(root) = 32)) STRICT;
",
        postgres: "",
    },
    // 2: owners of models.
    Step {
        both: "
CREATE TABLE owners (
    model TEXT PRIMARY KEY, key BLOB NOT NULL CHECK (length(key) = 32), sequence INTEGER NOT NULL CHECK (sequence >= 0),
    policy BLOB) STRICT, WITHOUT ROWID;
",
        postgres: "",
    },
    // 3: a number that every change moves; which key wrapped a row (empty: the one of the time before); for PostgreSQL
    // the audit log, and the replicas that make challenges.
    Step {
        both: "
CREATE TABLE changes (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL) STRICT;
INSERT INTO changes (one, number) VALUES (1, 0);
ALTER TABLE secrets ADD COLUMN kek TEXT NOT NULL DEFAULT '';
ALTER TABLE model_keys ADD COLUMN kek TEXT NOT NULL DEFAULT '';
",
        postgres: "
ALTER TABLE audit_head ADD COLUMN note TEXT NOT NULL;
CREATE TABLE audit_entries (number BIGINT PRIMARY KEY CHECK (number >= 0), entry BYTEA NOT NULL);
CREATE TABLE audit_tiles (
    level BIGINT NOT NULL CHECK (level BETWEEN 0 AND 7), number BIGINT NOT NULL CHECK (number >= 0),
    hashes BYTEA NOT NULL CHECK (length(hashes) = 8192), root BYTEA NOT NULL CHECK (length(root) = 32),
    PRIMARY KEY (level, number));
CREATE TABLE replicas (
    id BYTEA PRIMARY KEY CHECK (length(id) = 8), name TEXT NOT NULL, beat BIGINT NOT NULL);
",
    },
    // 4: several keys of one owner, of which a number must sign; releases that an owner's policy accepts in place of one
    // that it lists.
    Step {
        both: "
CREATE TABLE owner_keys (
    model TEXT NOT NULL, key BLOB NOT NULL CHECK (length(key) = 32), PRIMARY KEY (model, key)) STRICT, WITHOUT ROWID;
INSERT INTO owner_keys (model, key) SELECT model, key FROM owners;
ALTER TABLE owners ADD COLUMN threshold INTEGER NOT NULL DEFAULT 1 CHECK (threshold >= 1);
CREATE TABLE successors (
    model TEXT NOT NULL, sequence INTEGER NOT NULL, predecessor TEXT NOT NULL, successor TEXT NOT NULL,
    PRIMARY KEY (model, sequence)) STRICT, WITHOUT ROWID;
",
        postgres: "",
    },
    // 5: what tells a change from one with the same number that a failover lost.
    Step {
        both: "
ALTER TABLE changes ADD COLUMN mark INTEGER NOT NULL DEFAULT 0;
",
        postgres: "",
    },
    // 6: entries of what the operator changed, on their way into the audit log.
    Step {
        both: "
CREATE TABLE operator_changes (number INTEGER PRIMARY KEY, entry BLOB NOT NULL) STRICT;
",
        postgres: "",
    },
    // 7: who may ask a model, by its identity.
    Step {
        both: "
CREATE TABLE tenants (model TEXT PRIMARY KEY, document BLOB NOT NULL) STRICT, WITHOUT ROWID;
",
        postgres: "",
    },
];
