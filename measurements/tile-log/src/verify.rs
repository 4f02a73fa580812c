// SPDX-License-Identifier: Apache-2.0
//! Verification of a whole log: everything is computed again from its entries.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use release::log::{CheckpointError, Edge, EdgeError, LogKey, SignedCheckpoint, TileError, TilePath, Tiles};

use crate::files::{self, FileError, Writer};
use crate::{CHECKPOINT, TileDir};

/// Why a log was refused.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The checkpoint file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The checkpoint.
    #[error("the checkpoint was refused: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// A tile or entry bundle is missing or malformed.
    #[error(transparent)]
    Tile(#[from] TileError),
    /// A tile holds other hashes than the entries give.
    #[error("the tile {0} is not what the entries give")]
    Differs(TilePath),
    /// The entries give another root.
    #[error("the entries give another root than the checkpoint's")]
    Root,
    /// An entry can't be in a log.
    #[error(transparent)]
    Edge(#[from] EdgeError),
    /// An entry was refused by the caller.
    #[error("entry {index} was refused: {rule}")]
    Entry {
        /// Its index.
        index: u64,
        /// The caller's rule.
        rule: String,
    },
}

/// Recomputes every tile and the root of the log in `dir` from its entries and compares them with what is on disk
/// and with the signed checkpoint. `visit` sees every entry in order and may refuse it.
///
/// What it does not establish: that the log was never longer, or other, than now. For that compare with a checkpoint
/// kept elsewhere, or with witnesses.
///
/// # Errors
/// [`VerifyError`].
pub fn verify(
    dir: &TileDir,
    key: &LogKey,
    visit: impl FnMut(u64, &[u8]) -> Result<(), String>,
) -> Result<SignedCheckpoint, VerifyError> {
    let checkpoint = SignedCheckpoint::verify(&dir.checkpoint()?, key)?;
    verify_tiles(dir, &checkpoint, visit)?;
    Ok(checkpoint)
}

/// [`verify`] of tiles that are kept elsewhere than in a directory, against a checkpoint whose signature was verified.
///
/// # Errors
/// [`VerifyError`].
pub fn verify_tiles<T: Tiles + ?Sized>(
    tiles: &T,
    checkpoint: &SignedCheckpoint,
    visit: impl FnMut(u64, &[u8]) -> Result<(), String>,
) -> Result<(), VerifyError> {
    walk(tiles, checkpoint, visit, |_, _| Ok(()))
}

/// Why a log was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is a log already, where one was to be written.
    #[error("{0} holds a log already")]
    Exists(PathBuf),
    /// The log itself was refused.
    #[error(transparent)]
    Refused(#[from] VerifyError),
    /// Writing failed.
    #[error(transparent)]
    File(FileError),
}

/// Verifies the tiles and writes them, with the checkpoint, as a log in the directory `out`, which must hold none. The
/// checkpoint is written last: without one a directory is no log.
///
/// # Errors
/// [`ExportError`].
pub fn export<T: Tiles + ?Sized>(tiles: &T, checkpoint: &SignedCheckpoint, out: &Path) -> Result<(), ExportError> {
    files::create_dirs(out).map_err(ExportError::File)?;
    if out.join(CHECKPOINT).exists() {
        return Err(ExportError::Exists(out.to_owned()));
    }
    let mut synced = files::SyncedDirs::default();
    let mut writer = Writer::new(out, &mut synced);
    let stage =
        |path: &TilePath, bytes: &[u8]| writer.stage(Path::new(&path.to_string()), bytes).map_err(ExportError::File);
    walk(tiles, checkpoint, |_, _| Ok(()), stage)?;
    writer.sync().map_err(ExportError::File)?;
    writer.replace(Path::new(CHECKPOINT), checkpoint.note().as_bytes()).map_err(ExportError::File)
}

fn walk<T: Tiles + ?Sized, E: From<VerifyError>>(
    tiles: &T,
    checkpoint: &SignedCheckpoint,
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), String>,
    mut write: impl FnMut(&TilePath, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let size = checkpoint.head().size();
    let mut edge = Edge::empty();
    let mut check = |tile: TilePath, computed: &[u8]| {
        if tiles.read(&tile).map_err(VerifyError::from)? != computed {
            return Err(VerifyError::Differs(tile).into());
        }
        write(&tile, computed)
    };
    // By level, the newest unfinished tile: it is of the final tree only if nothing was added to it later.
    let mut unfinished = BTreeMap::new();
    for number in 0.. {
        let Some(path) = TilePath::entries(number, size) else { break };
        let bundle = tiles.read(&path).map_err(VerifyError::from)?;
        for entry in path.split_entries(&bundle).map_err(VerifyError::from)? {
            let (index, _) = edge.append(entry).map_err(VerifyError::from)?;
            visit(index, entry).map_err(|rule| VerifyError::Entry { index, rule })?;
        }
        for (tile, computed) in edge.take_files() {
            if tile.is_full() {
                check(tile, &computed)?;
            } else {
                unfinished.insert(tile.level(), (tile, computed));
            }
        }
    }
    for (tile, computed) in unfinished.into_values() {
        let last = match tile.level() {
            None => TilePath::entries(tile.index(), size),
            Some(level) => TilePath::in_tree(level, tile.index(), size),
        };
        if last == Some(tile) {
            check(tile, &computed)?;
        }
    }
    if edge.size() != size || &edge.root() != checkpoint.head().root() {
        return Err(VerifyError::Root.into());
    }
    Ok(())
}
