// SPDX-License-Identifier: Apache-2.0
//! Making and opening a store.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use release::log::{LogSigner, NoteError, SignedCheckpoint, TileError, verify_consistency};
use tile_log::{TileDir, TileLog};
use types::Sha256Digest;
use zeroize::Zeroizing;

use crate::audit::Audit;
use crate::database::{self, DatabaseError};
use crate::group::Group;
use crate::wrap::{Kek, KekError, WrapError};
use crate::{KeyStoreError, Store};

/// How a store is made.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Origin of the audit log: a name without spaces that is this service's alone, as `service.example/audit`.
    pub audit_origin: String,
    /// Where the key-wrapping key goes; `DIR/kek` when it is `None`.
    pub kek: Option<PathBuf>,
}

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Where the key-wrapping key is; `DIR/kek` when it is `None`.
    pub kek: Option<PathBuf>,
    /// Whether to append to the audit log. One process at a time can.
    pub sequencer: bool,
    /// A checkpoint of the audit log kept elsewhere (by a witness): the log must extend it.
    pub known_checkpoint: Option<String>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { kek: None, sequencer: true, known_checkpoint: None }
    }
}

/// Why a store could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one already, or a part of one.
    #[error("{0} exists already")]
    Exists(PathBuf),
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
    /// A key could not be wrapped.
    #[error(transparent)]
    Key(#[from] KeyStoreError),
    /// The audit log's origin.
    #[error("the audit log's origin was refused: {0}")]
    Origin(#[from] NoteError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] tile_log::OpenError),
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
    /// The known checkpoint is not of this log.
    #[error("the known checkpoint was refused: {0}")]
    KnownCheckpoint(release::log::CheckpointError),
}

impl Store {
    /// Makes a store in `dir`, with a new key-wrapping key, an empty database and an empty audit log.
    ///
    /// # Errors
    /// [`InitError`]. A store that was made halfway is refused by [`Store::open`] and must be removed by hand.
    pub fn init(dir: &Path, options: &InitOptions) -> Result<(), InitError> {
        let kek_path = options.kek.clone().unwrap_or_else(|| dir.join(KEK));
        let (database, audit) = (dir.join(DATABASE), dir.join(AUDIT));
        if let Some(there) = [&kek_path, &database, &audit].into_iter().find(|path| path.exists()) {
            return Err(InitError::Exists(there.clone()));
        }
        make_private_dir(dir).map_err(|source| InitError::Directory { path: dir.to_owned(), source })?;
        let kek = Kek::create(&kek_path)?;
        let connection = database::create(&database)?;
        let mut seed = Zeroizing::new([0; 32]);
        crate::wrap::random(seed.as_mut_slice()).map_err(KekError::from)?;
        let signer = LogSigner::new(&options.audit_origin, &seed)?;
        crate::keys::put_secret(&connection, &kek, SECRET_AUDIT, seed.as_slice())?;
        database::put_meta(&connection, META_ORIGIN, options.audit_origin.as_bytes())?;
        TileLog::create(&audit, signer)?;
        Ok(())
    }

    /// Opens a store for the service: with the audit log for appending.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::open_with(dir, &OpenOptions::default())
    }

    /// Opens a store. Administration beside a running service opens without `sequencer`.
    ///
    /// # Errors
    /// [`OpenError`]; a rolled-back or damaged audit log is refused.
    pub fn open_with(dir: &Path, options: &OpenOptions) -> Result<Self, OpenError> {
        let kek = Kek::read(&options.kek.clone().unwrap_or_else(|| dir.join(KEK)))?;
        let connection = database::open(&dir.join(DATABASE))?;
        let signer = audit_signer(&connection, &kek)?;
        let key = signer.public().clone();
        let audit_dir = TileDir::new(&dir.join(AUDIT));
        // Before the checkpoint, which another process may move on meanwhile.
        let recorded = database::audit_head(&connection)?;
        let (log, checkpoint) = if options.sequencer {
            let log = TileLog::open(&dir.join(AUDIT), signer)?;
            let checkpoint = log.checkpoint().clone();
            (Some(log), checkpoint)
        } else {
            let note = audit_dir.checkpoint()?;
            let checkpoint = SignedCheckpoint::verify(&note, &key).map_err(tile_log::OpenError::Checkpoint)?;
            (None, checkpoint)
        };
        let store = Self {
            database: Mutex::new(connection),
            reader: Mutex::new(database::open(&dir.join(DATABASE))?),
            kek,
            audit: Audit {
                log: log.map(|log| Mutex::new(Some(log))),
                dir: audit_dir,
                path: dir.join(AUDIT),
                key,
                group: Group::new(),
            },
            redemptions: Group::new(),
            changes: AtomicU64::new(0),
        };
        store.check_history(&checkpoint, recorded, options.known_checkpoint.as_deref())?;
        Ok(store)
    }

    /// The log opened for appending, as at a start.
    pub(crate) fn reopened_log(&self) -> Result<TileLog, Box<OpenError>> {
        let reopen = || {
            let connection = database::lock(&self.reader)?;
            let recorded = database::audit_head(&connection)?;
            let log = TileLog::open(&self.audit.path, audit_signer(&connection, &self.kek)?)?;
            drop(connection);
            self.check_history(log.checkpoint(), recorded, None)?;
            Ok(log)
        };
        reopen().map_err(Box::new)
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
            let proof = release::log::Tree::new(&self.audit.dir, found).consistency_proof(known)?;
            verify_consistency(known, &known_root, found, root, &proof)
                .map_err(|_| OpenError::RolledBack { known, found })?;
        }
        Ok(())
    }
}

fn audit_signer(connection: &rusqlite::Connection, kek: &Kek) -> Result<LogSigner, OpenError> {
    let seed = crate::keys::secret(connection, kek, SECRET_AUDIT).map_err(|error| match error {
        KeyStoreError::Database(error) => OpenError::Database(error),
        KeyStoreError::Wrap(WrapError::Open) => OpenError::WrongKek,
        _ => OpenError::Malformed("audit key"),
    })?;
    let seed = seed.ok_or(OpenError::Malformed("audit key"))?;
    let seed: Zeroizing<[u8; 32]> =
        Zeroizing::new(seed.as_slice().try_into().map_err(|_| OpenError::Malformed("audit key"))?);
    let origin = database::meta(connection, META_ORIGIN)?.ok_or(OpenError::Malformed("audit origin"))?;
    let origin = String::from_utf8(origin).map_err(|_| OpenError::Malformed("audit origin"))?;
    LogSigner::new(&origin, &seed).map_err(|_| OpenError::Malformed("audit origin"))
}

fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

const KEK: &str = "kek";
const DATABASE: &str = "store.sqlite";
const AUDIT: &str = "audit";
const SECRET_AUDIT: &str = "audit-log-key";
const META_ORIGIN: &str = "audit-origin";
