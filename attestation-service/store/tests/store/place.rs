// SPDX-License-Identifier: Apache-2.0
//! Where the store under test is, and what its tests share.

use std::fs;
use std::path::{Path, PathBuf};

use store::{AuditEntry, InitOptions, Location, OpenError, OpenOptions, PostgresSettings, RefusalEntry, Store};
use test_postgres::Server;
use types::{Blake3Digest, Document as _, KeyReleaseEntry, ModelId, Sha256Digest};
use zeroize::Zeroizing;

/// An empty place for one store.
pub(crate) struct Place<'a> {
    dir: tempfile::TempDir,
    database: Option<(&'a Server, String)>,
}

impl<'a> Place<'a> {
    pub(crate) fn directory() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), database: None }
    }

    pub(crate) fn postgres(server: &'a Server) -> Self {
        let url = server.database().unwrap();
        Self { dir: tempfile::tempdir().unwrap(), database: Some((server, url)) }
    }

    pub(crate) const fn is_shared(&self) -> bool {
        self.database.is_some()
    }

    pub(crate) fn location(&self) -> Location {
        match &self.database {
            None => Location::from(self.dir.path()),
            Some((_, url)) => PostgresSettings::parse(url, None).unwrap().into(),
        }
    }

    pub(crate) fn kek(&self) -> PathBuf {
        self.dir.path().join("kek")
    }

    pub(crate) fn init(&self) {
        let options = InitOptions { audit_origin: "example.invalid/audit".into(), kek: Some(self.kek().into()) };
        Store::init(self.location(), &options).unwrap();
    }

    /// A new store, opened as the service does.
    pub(crate) fn made(&self) -> Store {
        self.init();
        self.open()
    }

    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions { kek: Some(self.kek().into()), ..OpenOptions::default() }
    }

    pub(crate) fn open(&self) -> Store {
        self.try_open().unwrap()
    }

    pub(crate) fn try_open(&self) -> Result<Store, OpenError> {
        Store::open_with(self.location(), &self.options())
    }

    pub(crate) fn admin(&self) -> Result<Store, OpenError> {
        Store::open_with(self.location(), &OpenOptions { sequencer: false, ..self.options() })
    }

    /// Runs SQL as somebody who has the database and not the key-wrapping key.
    pub(crate) fn tamper(&self, sql: &str) {
        match &self.database {
            None => tamper(self.dir.path(), sql),
            Some((server, url)) => {
                let counted = format!("WITH changed AS ({sql} RETURNING 1) SELECT count(*) FROM changed");
                assert_ne!(server.sql(url, &counted).unwrap(), "0", "{sql}");
            }
        }
    }

    /// One number of the database.
    pub(crate) fn read(&self, sql: &str) -> i64 {
        match &self.database {
            None => {
                let database = rusqlite::Connection::open(self.dir.path().join("store.sqlite")).unwrap();
                database.query_row(sql, [], |row| row.get(0)).unwrap()
            }
            Some((server, url)) => server.sql(url, sql).unwrap().parse().unwrap(),
        }
    }

    /// SQL that ends with these bytes, as this database writes them.
    pub(crate) fn bytes_as(&self, sql: &str, bytes: &[u8]) -> String {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if self.is_shared() { format!("{sql}'\\x{hex}'") } else { format!("{sql}x'{hex}'") }
    }

    /// Says that the tables are of another version.
    pub(crate) fn set_version(&self, version: i64) {
        match &self.database {
            None => {
                let database = rusqlite::Connection::open(self.dir.path().join("store.sqlite")).unwrap();
                database.execute_batch(&format!("PRAGMA user_version = {version}")).unwrap();
            }
            Some(_) => self.tamper(&format!("UPDATE schema_version SET version = {version}")),
        }
    }

    /// Runs SQL in the server; gives what it prints.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let (server, url) = self.database.as_ref().unwrap();
        server.sql(url, sql).unwrap()
    }

    /// The key, when the place is not needed any more.
    pub(crate) fn keep_key(self) -> tempfile::TempDir {
        self.dir
    }

    /// All bytes that somebody finds who has the database.
    pub(crate) fn contents(&self) -> Vec<Vec<u8>> {
        match &self.database {
            None => {
                let files = fs::read_dir(self.dir.path()).unwrap().map(|f| f.unwrap().path()).filter(|p| p.is_file());
                files.map(|file| fs::read(file).unwrap()).collect()
            }
            Some((server, url)) => {
                let sql = "SELECT encode(wrapped, 'hex') FROM model_keys
                    UNION ALL SELECT encode(wrapped, 'hex') FROM secrets";
                let rows = server.sql(url, sql).unwrap();
                let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
                rows.lines().map(|row| row.as_bytes().chunks(2).map(byte).collect()).collect()
            }
        }
    }
}

pub(crate) fn init(dir: &Path) {
    Store::init(dir, &InitOptions { audit_origin: "example.invalid/audit".into(), kek: None }).unwrap();
}

pub(crate) fn model(name: &str) -> ModelId {
    ModelId::new(name, "r1", Blake3Digest::of(name.as_bytes())).unwrap()
}

pub(crate) fn key(byte: u8) -> Zeroizing<[u8; 32]> {
    Zeroizing::new([byte; 32])
}

pub(crate) fn release_entry(number: u64) -> AuditEntry {
    AuditEntry::KeyRelease(KeyReleaseEntry {
        schema: KeyReleaseEntry::SCHEMA.into(),
        unix: NOW + number,
        model: model("m"),
        key_version: 1,
        release: Sha256Digest::of(b"release"),
        evidence: Sha256Digest::of(b"evidence"),
        challenge: Sha256Digest::of(&number.to_be_bytes()),
        platform: Sha256Digest::of(b"platform"),
        tenants: None,
        decision: types::audit::Authorised::Authorised,
    })
}

pub(crate) fn refusal_entry(codes: &[&str]) -> AuditEntry {
    AuditEntry::Refusal(RefusalEntry {
        schema: RefusalEntry::SCHEMA.into(),
        unix: NOW,
        model: None,
        evidence: None,
        challenge: None,
        codes: codes.iter().map(|code| (*code).to_owned()).collect(),
    })
}

/// Runs SQL as somebody who has the database file and not the key-wrapping key.
pub(crate) fn tamper(dir: &Path, sql: &str) {
    assert!(rusqlite::Connection::open(dir.join("store.sqlite")).unwrap().execute(sql, []).unwrap() > 0, "{sql}");
}

pub(crate) fn admin(dir: &Path) -> Result<Store, OpenError> {
    Store::open_with(dir, &OpenOptions { sequencer: false, ..OpenOptions::default() })
}

pub(crate) const NOW: u64 = 1_750_000_000;
