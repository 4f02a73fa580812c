// SPDX-License-Identifier: Apache-2.0
//! Verification of a whole log: everything is computed again from its entries.

use release::log::{CheckpointError, Edge, EdgeError, LogKey, SignedCheckpoint, TileError, TilePath, Tiles};

use crate::TileDir;
use crate::files::FileError;

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
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), String>,
) -> Result<(), VerifyError> {
    let size = checkpoint.head().size();
    let mut edge = Edge::empty();
    for number in 0.. {
        let Some(path) = TilePath::entries(number, size) else { break };
        let bundle = tiles.read(&path)?;
        for entry in path.split_entries(&bundle)? {
            let (index, _) = edge.append(entry)?;
            visit(index, entry).map_err(|rule| VerifyError::Entry { index, rule })?;
        }
        let last = edge.size() == size;
        for (tile, computed) in edge.take_files() {
            // Between bundles only full tiles are of the final tree.
            if (tile.is_full() || last) && tiles.read(&tile)? != computed {
                return Err(VerifyError::Differs(tile));
            }
        }
    }
    if edge.size() != size || &edge.root() != checkpoint.head().root() {
        return Err(VerifyError::Root);
    }
    Ok(())
}
