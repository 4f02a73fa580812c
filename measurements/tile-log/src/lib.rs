// SPDX-License-Identifier: Apache-2.0
//! An append-only tile log in a directory (C2SP tlog-tiles): durable appends, crash recovery, full verification.
//!
//! The directory holds `checkpoint`, `tile/…` and `lock`, and can be served as it is.
//!
//! Durability: an append writes the new tiles under names that the current checkpoint does not use, syncs them and
//! their directories, and then replaces the checkpoint by rename. So the checkpoint alone decides what the log
//! holds: a crash before the rename leaves the old log, files beyond it are overwritten by the next append; a crash
//! after it leaves the new one. An append that returned is never lost.

mod files;
mod verify;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use release::log::{
    Checkpoint, CheckpointError, Edge, EdgeError, EntryProof, LogKey, LogSigner, SignedCheckpoint, TileError, TilePath,
    Tiles, Tree,
};
use types::Sha256Digest;

pub use files::FileError;
use files::{SyncedDirs, Writer};
pub use verify::{ExportError, VerifyError, export, verify, verify_tiles};

/// A log's directory, for reading.
#[derive(Debug, Clone)]
pub struct TileDir {
    dir: PathBuf,
}

/// A log opened for appending. There is one at a time: the sequencer.
pub struct TileLog {
    dir: TileDir,
    signer: LogSigner,
    edge: Edge,
    checkpoint: SignedCheckpoint,
    /// The newest unfinished tiles: the proofs of new entries need them.
    recent: BTreeMap<TilePath, Vec<u8>>,
    /// Directories that are synced, as their names are.
    synced: SyncedDirs,
    poisoned: bool,
    /// Held as long as the log is open.
    _lock: File,
}

/// An entry that was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Its index.
    pub index: u64,
    /// Its leaf hash.
    pub leaf: Sha256Digest,
}

/// Why a log could not be opened or made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is a log already.
    #[error("{0} holds a log already")]
    Exists(PathBuf),
    /// There is no log.
    #[error("{0} holds no log (no checkpoint)")]
    NoLog(PathBuf),
    /// Another process appends to it.
    #[error("another process has {0} open for appending")]
    Locked(PathBuf),
    /// The checkpoint on disk was refused.
    #[error("the log's checkpoint was refused: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// A tile that the checkpoint needs is missing or malformed.
    #[error("the log is damaged: {0}")]
    Tile(#[from] TileError),
    /// The tiles do not have the root that the checkpoint says.
    #[error("the log is damaged: the tiles' root is not the checkpoint's")]
    Root,
}

/// Why an append failed. Nothing was appended, unless the log says that it must be reopened.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The entry or the log is too large.
    #[error(transparent)]
    Edge(#[from] EdgeError),
    /// Writing failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Signing failed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// An earlier append failed after its checkpoint may have been replaced.
    #[error("the log must be reopened: an earlier append ended in doubt")]
    Poisoned,
}

/// Why no proof was made.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A tile could not be read, or the index is beyond the log.
    #[error(transparent)]
    Tile(#[from] TileError),
    /// The checkpoint could not be read.
    #[error(transparent)]
    File(#[from] FileError),
}

impl TileDir {
    /// The log in `dir`. Nothing is read yet.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The text of the current checkpoint, **not verified**.
    ///
    /// # Errors
    /// [`FileError`] when it is missing, too large or not text.
    pub fn checkpoint(&self) -> Result<String, FileError> {
        files::read_text(&self.dir.join(CHECKPOINT), release::log::note::MAX_NOTE)
    }

    fn read_exact(&self, path: &TilePath) -> Result<Vec<u8>, TileError> {
        files::read_capped(&self.dir.join(path.to_string()), MAX_TILE).map_err(|error| {
            if error.is_not_found() {
                TileError::Missing(*path)
            } else {
                TileError::Read { path: *path, source: error.into() }
            }
        })
    }
}

impl Tiles for TileDir {
    /// A partial tile may have been dropped since the checkpoint was read: then the full one has its content.
    fn read(&self, path: &TilePath) -> Result<Vec<u8>, TileError> {
        match self.read_exact(path) {
            Err(TileError::Missing(_)) if !path.is_full() => match self.read_exact(&path.full()) {
                Err(TileError::Missing(_)) => Err(TileError::Missing(*path)),
                Err(other) => Err(other),
                Ok(full) => path.cut_from_full(&full),
            },
            result => result,
        }
    }
}

impl TileLog {
    /// Makes an empty log in `dir`, which may exist.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn create(dir: &Path, signer: LogSigner) -> Result<Self, OpenError> {
        files::create_dirs(dir)?;
        let lock = lock(dir)?;
        let tiles = TileDir::new(dir);
        if dir.join(CHECKPOINT).exists() {
            return Err(OpenError::Exists(dir.to_owned()));
        }
        let edge = Edge::empty();
        let note = Checkpoint::new(signer.public().origin(), 0, edge.root()).sign(&signer)?;
        let checkpoint = SignedCheckpoint::verify(&note, signer.public())?;
        Writer::new(dir, &mut SyncedDirs::default()).replace(Path::new(CHECKPOINT), note.as_bytes())?;
        Ok(Self::with(tiles, signer, edge, checkpoint, lock))
    }

    /// Opens the log in `dir` and checks the checkpoint's signature and the right edge of the tree against it.
    /// Older tiles are checked by [`verify()`].
    ///
    /// # Errors
    /// [`OpenError`]. A damaged log is refused, never repaired by forgetting entries.
    pub fn open(dir: &Path, signer: LogSigner) -> Result<Self, OpenError> {
        if !dir.join(CHECKPOINT).exists() {
            return Err(OpenError::NoLog(dir.to_owned()));
        }
        let lock = lock(dir)?;
        let tiles = TileDir::new(dir);
        let checkpoint = SignedCheckpoint::verify(&tiles.checkpoint()?, signer.public())?;
        let edge = Edge::load(&tiles, checkpoint.head().size())?;
        // The edge alone gives the root; full tiles to its left are covered by the hashes in it.
        if &edge.root() != checkpoint.head().root() {
            return Err(OpenError::Root);
        }
        Ok(Self::with(tiles, signer, edge, checkpoint, lock))
    }

    /// Appends all of `entries`, or none. On return they, their tiles and the new checkpoint are on disk.
    ///
    /// # Errors
    /// [`AppendError`].
    pub fn append(&mut self, entries: &[&[u8]]) -> Result<Vec<Appended>, AppendError> {
        if self.poisoned {
            return Err(AppendError::Poisoned);
        }
        let mut edge = self.edge.clone();
        let mut appended = Vec::with_capacity(entries.len());
        for entry in entries {
            let (index, leaf) = edge.append(entry)?;
            appended.push(Appended { index, leaf });
        }
        let note = Checkpoint::new(self.origin(), edge.size(), edge.root()).sign(&self.signer)?;
        let checkpoint = SignedCheckpoint::verify(&note, self.signer.public())?;
        let files = edge.take_files();
        let mut writer = Writer::new(&self.dir.dir, &mut self.synced);
        for (path, bytes) in &files {
            writer.stage(Path::new(&path.to_string()), bytes)?;
        }
        writer.sync()?;
        // From here on a failure leaves open which checkpoint is on disk.
        self.poisoned = true;
        writer.replace(Path::new(CHECKPOINT), note.as_bytes())?;
        self.poisoned = false;
        (self.edge, self.checkpoint) = (edge, checkpoint);
        self.drop_partials(&files);
        self.keep(files);
        Ok(appended)
    }

    /// Replaces the checkpoint by the same head with more cosignatures.
    ///
    /// # Errors
    /// [`AppendError::Checkpoint`] when it is another head.
    pub fn set_cosigned(&mut self, cosigned: SignedCheckpoint) -> Result<(), AppendError> {
        if self.poisoned {
            return Err(AppendError::Poisoned);
        }
        let verified = SignedCheckpoint::verify(cosigned.note(), self.signer.public())?;
        if verified.head() != self.checkpoint.head() {
            return Err(CheckpointError::Form("another head than the log's").into());
        }
        Writer::new(&self.dir.dir, &mut self.synced).replace(Path::new(CHECKPOINT), verified.note().as_bytes())?;
        self.checkpoint = verified;
        Ok(())
    }

    /// Proof that entry `index` stands in the log as of the current checkpoint.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn proof(&self, index: u64) -> Result<EntryProof, ReadError> {
        self.proofs(&[index])?.pop().ok_or(ReadError::Tile(TileError::Range))
    }

    /// [`TileLog::proof`] of several entries; what the newest ones need is at hand.
    ///
    /// # Errors
    /// [`ReadError`], when one of them can't be made.
    pub fn proofs(&self, indexes: &[u64]) -> Result<Vec<EntryProof>, ReadError> {
        let tiles = Recent { tiles: &self.recent, below: &self.dir };
        let tree = Tree::new(&tiles, self.edge.size());
        let proofs = tree.inclusion_proofs(indexes.iter().copied())?;
        let proof = |(index, (leaf, path)): (&u64, _)| EntryProof {
            index: *index,
            leaf,
            tree_size: tree.size(),
            path,
            checkpoint: self.checkpoint.note().to_owned(),
        };
        Ok(indexes.iter().zip(proofs).map(proof).collect())
    }

    /// The tree of the current checkpoint.
    #[must_use]
    pub fn tree(&self) -> Tree<'_, TileDir> {
        Tree::new(&self.dir, self.edge.size())
    }

    /// The current checkpoint.
    #[must_use]
    pub const fn checkpoint(&self) -> &SignedCheckpoint {
        &self.checkpoint
    }

    /// The log's public key.
    #[must_use]
    pub const fn key(&self) -> &LogKey {
        self.signer.public()
    }

    /// The directory, for reading.
    #[must_use]
    pub const fn dir(&self) -> &TileDir {
        &self.dir
    }

    fn with(dir: TileDir, signer: LogSigner, edge: Edge, checkpoint: SignedCheckpoint, lock: File) -> Self {
        let (recent, synced) = (BTreeMap::new(), SyncedDirs::default());
        Self { dir, signer, edge, checkpoint, recent, synced, poisoned: false, _lock: lock }
    }

    /// Keeps the unfinished tiles of the newest size, and no other.
    fn keep(&mut self, files: Vec<(TilePath, Vec<u8>)>) {
        let size = self.edge.size();
        self.recent.extend(files.into_iter().filter(|(path, _)| path.level().is_some()));
        self.recent.retain(|path, _| {
            let level = path.level().unwrap_or_default();
            !path.is_full() && TilePath::in_tree(level, path.index(), size) == Some(*path)
        });
    }

    fn origin(&self) -> &str {
        self.signer.public().origin()
    }

    /// Partial tiles are of no use once the full one exists. What can't be removed does no harm.
    fn drop_partials(&self, files: &[(TilePath, Vec<u8>)]) {
        for (path, _) in files.iter().filter(|(path, _)| path.is_full()) {
            let _ = std::fs::remove_dir_all(self.dir.dir.join(format!("{path}.p")));
        }
    }
}

/// Tiles that are at hand, and the others.
struct Recent<'a> {
    tiles: &'a BTreeMap<TilePath, Vec<u8>>,
    below: &'a TileDir,
}

impl Tiles for Recent<'_> {
    fn read(&self, path: &TilePath) -> Result<Vec<u8>, TileError> {
        self.tiles.get(path).map_or_else(|| self.below.read(path), |bytes| Ok(bytes.clone()))
    }
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = files::open_lock(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::Locked(dir.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(FileError::new("lock", &path, source).into()),
    }
}

const CHECKPOINT: &str = "checkpoint";
/// A full bundle of entries of the largest size.
const MAX_TILE: usize = 256 * (2 + 65_535);
