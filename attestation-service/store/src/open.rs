// SPDX-License-Identifier: Apache-2.0
//! Making and opening a store.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use key_wrap::{KekError, KekSource, WrapError};
use release::log::{LogSigner, NoteError, SignedCheckpoint, TileError, TilePath, Tiles as _, verify_consistency};
use tile_log::TileLog;
use types::Sha256Digest;
use zeroize::Zeroizing;

use crate::audit::{Audit, AuditError, FileLog, Log, RowLog};
use crate::database::{self, Database, DatabaseError};
use crate::entry::AuditEntry;
use crate::group::Group;
use crate::keyring::{Keyring, Wrapped};
use crate::postgres::{Postgres, PostgresSettings};
use crate::sql::Tx;
use crate::sqlite::Sqlite;
use crate::{KeyStoreError, Location, Store, changes};

/// How a store is made.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Origin of the audit log: a name without spaces that is this service's alone, as `service.example/audit`.
    pub audit_origin: String,
    /// Where the key-wrapping key goes; `DIR/kek` when it is `None`, which a database server does not have.
    pub kek: Option<KekSource>,
}

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The key that wraps from now on; `DIR/kek` when it is `None`, which a database server does not have.
    pub kek: Option<KekSource>,
    /// Other keys that rows may be wrapped by, while they are wrapped anew.
    pub other_keks: Vec<KekSource>,
    /// Whether to append to the audit log. One process at a time can.
    pub sequencer: bool,
    /// A checkpoint of the audit log kept elsewhere (by a witness): the log must extend it.
    pub known_checkpoint: Option<String>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { kek: None, other_keks: Vec::new(), sequencer: true, known_checkpoint: None }
    }
}

/// Why a store could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one already, or a part of one.
    #[error("{0} exists already")]
    Exists(PathBuf),
    /// The database has tables of a store.
    #[error("the database holds a store already")]
    NotEmpty,
    /// A store in a database server has no directory for it.
    #[error("say where the key-wrapping key goes")]
    NoKek,
    /// A directory could not be made.
    #[error("could not make directory {}: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key-wrapping key.
    #[error(transparent)]
    Kek(#[from] KekError),
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The audit log's origin.
    #[error("the audit log's origin was refused: {0}")]
    Origin(#[from] NoteError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] tile_log::OpenError),
    /// The audit log in a database server.
    #[error(transparent)]
    AuditRows(#[from] AuditError),
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The key-wrapping key.
    #[error(transparent)]
    Kek(#[from] KekError),
    /// The key-wrapping key is not the one of this store, or the database was changed.
    #[error("the key-wrapping key does not open this store")]
    WrongKek,
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// Something that `init` wrote is missing or malformed.
    #[error("the store lacks or has a malformed {0}")]
    Malformed(&'static str),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] tile_log::OpenError),
    /// The audit log could not be read.
    #[error(transparent)]
    AuditFile(#[from] tile_log::FileError),
    /// The audit log's tiles.
    #[error("the audit log is damaged: {0}")]
    AuditTile(#[from] TileError),
    /// The audit log is smaller than it was, or another one: it was restored from an old copy, or changed.
    #[error("the audit log was rolled back or replaced: {known} entries are known, it has {found}")]
    RolledBack {
        /// Entries of the newest head that is known.
        known: u64,
        /// Entries found.
        found: u64,
    },
    /// The database is older than the log beside it: it was restored from an old copy.
    #[error("the database knows {recorded} entries of the audit log, the log has {found}: it was set back")]
    DatabaseSetBack {
        /// Entries that the database recorded.
        recorded: u64,
        /// Entries of the log.
        found: u64,
    },
    /// The log has an entry of a change of the operator that the database lacks: it was restored from an old copy.
    #[error(
        "the database knows {known} changes of the operator, the audit log has entries of {found}: it was set back"
    )]
    ChangesLost {
        /// Changes that the database counted.
        known: i64,
        /// Number of the newest one in the log.
        found: i64,
    },
    /// The audit log in a database server could not be read.
    #[error(transparent)]
    AuditRows(#[from] Box<AuditError>),
    /// A store in a database server has no directory for it.
    #[error("say where the key-wrapping key is")]
    NoKek,
    /// The known checkpoint is not of this log.
    #[error("the known checkpoint was refused: {0}")]
    KnownCheckpoint(release::log::CheckpointError),
}

impl Store {
    /// Makes a store with a new key-wrapping key, an empty database and an empty audit log.
    ///
    /// # Errors
    /// [`InitError`]. A store that was made halfway is refused by [`Store::open`]. In a directory it must be removed by
    /// hand; in a database server there is nothing of it, unless the answer to the commit was lost
    /// ([`DatabaseError::InDoubt`]): then the key-wrapping key stays, and [`Store::open`] tells.
    pub fn init(location: impl Into<Location>, options: &InitOptions) -> Result<(), InitError> {
        Self::init_with(location, options, &[])
    }

    /// [`Store::init`] with secrets of the service itself, by name, in the same transaction: there is no store without
    /// them. [`Store::secret`] gives them.
    ///
    /// # Errors
    /// [`InitError`], as there.
    pub fn init_with(
        location: impl Into<Location>,
        options: &InitOptions,
        secrets: &[(&str, &[u8])],
    ) -> Result<(), InitError> {
        match location.into() {
            Location::Directory(dir) => init_directory(&dir, options, secrets),
            Location::Postgres(settings) => init_postgres(&settings, options, secrets),
        }
    }

    /// Opens a store for the service: with the audit log for appending.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(location: impl Into<Location>) -> Result<Self, OpenError> {
        Self::open_with(location, &OpenOptions::default())
    }

    /// Opens a store. Administration beside a running service opens without `sequencer`.
    ///
    /// # Errors
    /// [`OpenError`]; a rolled-back or damaged audit log is refused.
    pub fn open_with(location: impl Into<Location>, options: &OpenOptions) -> Result<Self, OpenError> {
        let location = location.into();
        let first = match (&options.kek, &location) {
            (Some(source), _) => source.clone(),
            (None, Location::Directory(dir)) => dir.join(KEK).into(),
            (None, Location::Postgres(_)) => return Err(OpenError::NoKek),
        };
        let kek = Keyring::open(&first, &options.other_keks)?;
        let database = match &location {
            Location::Directory(dir) => Database::Sqlite(Box::new(Sqlite::open(&dir.join(DATABASE))?)),
            Location::Postgres(settings) => Database::Postgres(Box::new(Postgres::open(settings)?)),
        };
        let signer = audit_signer(&database, &kek)?;
        let key = signer.public().clone();
        // Before the checkpoint, which another process may move on meanwhile.
        let recorded = database.read(database::audit_head)?;
        let log = match &location {
            Location::Directory(dir) => {
                let another = || audit_signer(&database, &kek);
                Log::Files(Box::new(open_files(&dir.join(AUDIT), signer, options.sequencer, another)?))
            }
            Location::Postgres(_) => {
                Log::Rows(Box::new(RowLog::open(&database, signer, options.sequencer).map_err(rows_refused)?))
            }
        };
        let audit = Audit { log, key, group: Group::new() };
        let store = Self { database, kek, audit, redemptions: Group::new() };
        let checkpoint = match &store.audit.log {
            Log::Files(files) => files.opened_checkpoint()?,
            Log::Rows(rows) => rows.checkpoint(&store.database).map_err(rows_refused)?,
        };
        store.check_history(&checkpoint, recorded, options.known_checkpoint.as_deref())?;
        if let Log::Files(files) = &store.audit.log {
            store.check_changes(files, recorded.map_or(0, |(size, _)| size), checkpoint.head().size())?;
        }
        Ok(store)
    }

    /// The database beside a log in a directory is as old as the log: its record of the head is not far behind, and it has
    /// every change of the operator that the log has since then.
    fn check_changes(&self, files: &FileLog, recorded: u64, found: u64) -> Result<(), OpenError> {
        if found.saturating_sub(recorded) > MOST_AHEAD {
            return Err(OpenError::DatabaseSetBack { recorded, found });
        }
        let mut newest = 0;
        if found > recorded {
            for number in recorded / 256.. {
                let Some(path) = TilePath::entries(number, found) else { break };
                for entry in path.split_entries(&files.tiles().read(&path)?)? {
                    let entry = AuditEntry::parse(entry).map_err(|_| OpenError::Malformed("entry of the audit log"))?;
                    newest = changes::number_of(&entry).max(newest);
                }
            }
        }
        // After the log: what an entry says was committed before it.
        let known = self.database.read(changes::last)?;
        if newest > known {
            return Err(OpenError::ChangesLost { known, found: newest });
        }
        // Where the program ended before it could say so, they are queued still.
        files.found_entered(newest);
        Ok(())
    }

    /// The log in a directory opened for appending, as at a start.
    pub(crate) fn reopened_log(&self, path: &Path) -> Result<TileLog, Box<OpenError>> {
        let reopen = || {
            let recorded = self.database.read(database::audit_head)?;
            let log = TileLog::open(path, audit_signer(&self.database, &self.kek)?)?;
            self.check_history(log.checkpoint(), recorded, None)?;
            // With the log held: nobody enters anything any more that is not seen here.
            if let Log::Files(files) = &self.audit.log {
                self.check_changes(files, recorded.map_or(0, |(size, _)| size), log.checkpoint().head().size())?;
            }
            Ok(log)
        };
        reopen().map_err(Box::new)
    }

    /// The key that signs the log's checkpoints.
    pub(crate) fn audit_signer(&self) -> Result<LogSigner, OpenError> {
        audit_signer(&self.database, &self.kek)
    }

    /// The log must extend the head that the database recorded, and the one that was given.
    fn check_history(
        &self,
        checkpoint: &SignedCheckpoint,
        recorded: Option<(u64, Sha256Digest)>,
        known: Option<&str>,
    ) -> Result<(), OpenError> {
        let mut heads: Vec<_> = recorded.into_iter().collect();
        if let Some(note) = known {
            let known = SignedCheckpoint::verify(note, &self.audit.key).map_err(OpenError::KnownCheckpoint)?;
            heads.push((known.head().size(), *known.head().root()));
        }
        let (found, root) = (checkpoint.head().size(), checkpoint.head().root());
        for (known, known_root) in heads {
            if known > found {
                return Err(OpenError::RolledBack { known, found });
            }
            let proof = self.consistency_proof(known, found)?;
            verify_consistency(known, &known_root, found, root, &proof)
                .map_err(|_| OpenError::RolledBack { known, found })?;
        }
        Ok(())
    }
}

fn init_directory(dir: &Path, options: &InitOptions, secrets: &[(&str, &[u8])]) -> Result<(), InitError> {
    let source = options.kek.clone().unwrap_or_else(|| dir.join(KEK).into());
    let (database, audit) = (dir.join(DATABASE), dir.join(AUDIT));
    let kek_file = if let KekSource::File(path) = &source { Some(path) } else { None };
    if let Some(there) = [&database, &audit].into_iter().chain(kek_file).find(|path| path.exists()) {
        return Err(InitError::Exists(there.clone()));
    }
    make_private_dir(dir).map_err(|source| InitError::Directory { path: dir.to_owned(), source })?;
    let kek = Keyring::new(source.create()?, Vec::new())?;
    let (seed, signer) = new_signer(&options.audit_origin)?;
    let wrapped = wrapped_secrets(&kek, &seed, secrets)?;
    let database = Sqlite::create(&database)?;
    database.write(|tx| put_secrets(tx, &wrapped, &options.audit_origin))?;
    TileLog::create(&audit, signer)?;
    Ok(())
}

fn init_postgres(
    settings: &PostgresSettings,
    options: &InitOptions,
    secrets: &[(&str, &[u8])],
) -> Result<(), InitError> {
    let source = options.kek.as_ref().ok_or(InitError::NoKek)?;
    let (seed, signer) = new_signer(&options.audit_origin)?;
    let database = Postgres::new(settings)?;
    let kek = Keyring::new(source.create()?, Vec::new())?;
    let wrapped = wrapped_secrets(&kek, &seed, secrets)?;
    let created = database.create(|tx| {
        put_secrets(tx, &wrapped, &options.audit_origin)?;
        Ok::<_, InitError>(RowLog::create(tx, &signer)?)
    });
    // It was made here. Where the answer to the commit was lost, the database may hold what only it opens.
    let kept = matches!(created, Ok(Some(())) | Err(InitError::Database(DatabaseError::InDoubt(_))));
    if let (false, KekSource::File(path)) = (kept, source) {
        let _ = fs::remove_file(path);
    }
    created?.ok_or(InitError::NotEmpty)
}

fn new_signer(origin: &str) -> Result<(Zeroizing<[u8; 32]>, LogSigner), InitError> {
    let mut seed = Zeroizing::new([0; 32]);
    key_wrap::random(seed.as_mut_slice()).map_err(KekError::from)?;
    let signer = LogSigner::new(origin, &seed)?;
    Ok((seed, signer))
}

/// The seed of the log's key, and the service's own secrets.
fn wrapped_secrets(
    kek: &Keyring,
    seed: &Zeroizing<[u8; 32]>,
    secrets: &[(&str, &[u8])],
) -> Result<Vec<(String, Wrapped)>, InitError> {
    let own = secrets.iter().map(|(name, secret)| (crate::keys::own_name(name), *secret));
    let all = [(SECRET_AUDIT.to_owned(), seed.as_slice())].into_iter().chain(own);
    let wrap = |(name, secret): (String, &[u8])| {
        let wrapped = crate::keys::wrap_secret(kek, &name, secret).map_err(KekError::from)?;
        Ok((name, wrapped))
    };
    all.map(wrap).collect()
}

fn put_secrets(tx: &mut Tx<'_>, secrets: &[(String, Wrapped)], origin: &str) -> Result<(), InitError> {
    for (name, wrapped) in secrets {
        crate::keys::put_secret(tx, name, wrapped)?;
    }
    Ok(database::put_meta(tx, META_ORIGIN, origin.as_bytes())?)
}

/// The log in a directory. A command that enters what the operator changed may hold it for a moment.
fn open_files(
    path: &Path,
    signer: LogSigner,
    sequencer: bool,
    another: impl Fn() -> Result<LogSigner, OpenError>,
) -> Result<FileLog, OpenError> {
    let until = Instant::now() + PATIENCE;
    let mut opened = FileLog::open(path, signer, sequencer);
    while matches!(opened, Err(OpenError::Audit(tile_log::OpenError::Locked(_)))) && Instant::now() < until {
        std::thread::sleep(AGAIN);
        opened = FileLog::open(path, another()?, sequencer);
    }
    opened
}

fn rows_refused(error: AuditError) -> OpenError {
    match error {
        AuditError::Database(error) => OpenError::Database(error),
        other => OpenError::AuditRows(Box::new(other)),
    }
}

fn audit_signer(database: &Database, kek: &Keyring) -> Result<LogSigner, OpenError> {
    let seed = crate::keys::secret(database, kek, SECRET_AUDIT).map_err(|error| match error {
        KeyStoreError::Database(error) => OpenError::Database(error),
        KeyStoreError::Wrap(WrapError::Open) | KeyStoreError::OtherKek(_) => OpenError::WrongKek,
        KeyStoreError::Wrap(error) => OpenError::Kek(error.into()),
        _ => OpenError::Malformed("audit key"),
    })?;
    let seed = seed.ok_or(OpenError::Malformed("audit key"))?;
    let seed: Zeroizing<[u8; 32]> =
        Zeroizing::new(seed.as_slice().try_into().map_err(|_| OpenError::Malformed("audit key"))?);
    let origin = database.read(|tx| database::meta(tx, META_ORIGIN))?.ok_or(OpenError::Malformed("audit origin"))?;
    let origin = String::from_utf8(origin).map_err(|_| OpenError::Malformed("audit origin"))?;
    LogSigner::new(&origin, &seed).map_err(|_| OpenError::Malformed("audit origin"))
}

pub(crate) fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

/// Entries that the log may have and the database not record: what was written since its last synced commit, before
/// the power failed. Each redemption is one, so these are several times what is ever under way.
const MOST_AHEAD: u64 = 1024;
/// How long a start waits for the log, and between two looks.
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(20);
pub(crate) const KEK: &str = "kek";
pub(crate) const DATABASE: &str = "store.sqlite";
pub(crate) const AUDIT: &str = "audit";
pub(crate) const SECRET_AUDIT: &str = "audit-log-key";
pub(crate) const META_ORIGIN: &str = "audit-origin";
