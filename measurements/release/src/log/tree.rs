// SPDX-License-Identifier: Apache-2.0
//! Proofs made from tiles.

use std::collections::{BTreeMap, btree_map::Entry};

use types::Sha256Digest;

use super::merkle::{empty_root, node_hash};
use super::tile::{TileError, TilePath, Tiles};

/// The tree of the first `size` entries behind a set of tiles.
///
/// The hashes are taken from the tiles as they are; whoever does not trust them compares [`Tree::root`] with a
/// signed checkpoint.
#[derive(Debug)]
pub struct Tree<'a, T: Tiles + ?Sized> {
    tiles: &'a T,
    tiles_size: u64,
    size: u64,
}

impl<'a, T: Tiles + ?Sized> Tree<'a, T> {
    /// The tree of `size` entries; `tiles` must hold exactly the tiles of this size.
    pub const fn new(tiles: &'a T, size: u64) -> Self {
        Self { tiles, tiles_size: size, size }
    }

    /// An earlier state of this tree, read from the same tiles.
    ///
    /// # Errors
    /// [`TileError::Range`] when `size` is more than this tree has.
    pub const fn earlier(&self, size: u64) -> Result<Self, TileError> {
        if size > self.size {
            return Err(TileError::Range);
        }
        Ok(Self { tiles: self.tiles, tiles_size: self.tiles_size, size })
    }

    /// Number of entries.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The root hash.
    ///
    /// # Errors
    /// [`TileError`] when a tile is missing or malformed.
    pub fn root(&self) -> Result<Sha256Digest, TileError> {
        if self.size == 0 { Ok(empty_root()) } else { self.look().range(0, self.size) }
    }

    /// The leaf hash of entry `index`.
    ///
    /// # Errors
    /// [`TileError`]; [`TileError::Range`] beyond the tree.
    pub fn leaf(&self, index: u64) -> Result<Sha256Digest, TileError> {
        self.look().leaf(index)
    }

    /// The inclusion path of entry `index`, leaf's sibling first (RFC 6962 section 2.1.1).
    ///
    /// # Errors
    /// [`TileError`]; [`TileError::Range`] beyond the tree.
    pub fn inclusion_proof(&self, index: u64) -> Result<Vec<Sha256Digest>, TileError> {
        self.look().path(index)
    }

    /// [`Tree::leaf`] and [`Tree::inclusion_proof`] of several entries: no tile is read, and no subtree hashed, twice.
    ///
    /// # Errors
    /// [`TileError`]; [`TileError::Range`] beyond the tree.
    pub fn inclusion_proofs(
        &self,
        indexes: impl IntoIterator<Item = u64>,
    ) -> Result<Vec<(Sha256Digest, Vec<Sha256Digest>)>, TileError> {
        let mut look = self.look();
        indexes.into_iter().map(|index| Ok((look.leaf(index)?, look.path(index)?))).collect()
    }

    /// The proof that this tree extends its own first `old` entries (RFC 6962 section 2.1.2).
    ///
    /// # Errors
    /// [`TileError`]; [`TileError::Range`] when `old` is more than this tree has.
    pub fn consistency_proof(&self, old: u64) -> Result<Vec<Sha256Digest>, TileError> {
        if old > self.size {
            return Err(TileError::Range);
        }
        if old == 0 || old == self.size {
            return Ok(Vec::new());
        }
        let mut look = self.look();
        let (mut start, mut end, mut proof) = (0, self.size, Vec::new());
        // Descend to where the old tree ends. `start` moves only past subtrees that lie wholly in the old tree.
        while end != old {
            let middle = start + split(end - start);
            if old <= middle {
                proof.push(look.range(middle, end)?);
                end = middle;
            } else {
                proof.push(look.range(start, middle)?);
                start = middle;
            }
        }
        if start != 0 {
            proof.push(look.range(start, end)?);
        }
        proof.reverse();
        Ok(proof)
    }

    const fn look(&self) -> Look<'_, T> {
        Look { tree: self, tiles: BTreeMap::new(), nodes: BTreeMap::new() }
    }
}

/// What was read of a tree, and hashed, while something was made of it.
struct Look<'a, T: Tiles + ?Sized> {
    tree: &'a Tree<'a, T>,
    tiles: BTreeMap<TilePath, Vec<Sha256Digest>>,
    /// Complete subtrees by height and number.
    nodes: BTreeMap<(u32, u64), Sha256Digest>,
}

impl<T: Tiles + ?Sized> Look<'_, T> {
    fn leaf(&mut self, index: u64) -> Result<Sha256Digest, TileError> {
        if index >= self.tree.size {
            return Err(TileError::Range);
        }
        self.complete(0, index)
    }

    fn path(&mut self, index: u64) -> Result<Vec<Sha256Digest>, TileError> {
        if index >= self.tree.size {
            return Err(TileError::Range);
        }
        let (mut start, mut end, mut path) = (0, self.tree.size, Vec::new());
        while end - start > 1 {
            let middle = start + split(end - start);
            if index < middle {
                path.push(self.range(middle, end)?);
                end = middle;
            } else {
                path.push(self.range(start, middle)?);
                start = middle;
            }
        }
        path.reverse();
        Ok(path)
    }

    /// Hash of the entries from `start` to before `end`, which a split of this tree made.
    fn range(&mut self, start: u64, end: u64) -> Result<Sha256Digest, TileError> {
        let length = end - start;
        if length.is_power_of_two() {
            let level = length.trailing_zeros();
            return self.complete(level, start >> level);
        }
        let middle = start + split(length);
        Ok(node_hash(&self.range(start, middle)?, &self.range(middle, end)?))
    }

    /// Hash of the complete subtree `index` of height `level`.
    fn complete(&mut self, level: u32, index: u64) -> Result<Sha256Digest, TileError> {
        if let Some(node) = self.nodes.get(&(level, index)) {
            return Ok(*node);
        }
        let (tile_level, height) = (level / 8, level % 8);
        let first = index.checked_shl(height).ok_or(TileError::Range)?;
        let tile_level = u8::try_from(tile_level).map_err(|_| TileError::Range)?;
        let path = TilePath::in_tree(tile_level, first / WIDTH, self.tree.tiles_size).ok_or(TileError::Range)?;
        let hashes = match self.tiles.entry(path) {
            Entry::Occupied(read) => read.into_mut(),
            Entry::Vacant(place) => place.insert(path.hashes(&self.tree.tiles.read(&path)?)?),
        };
        let offset = usize::try_from(first % WIDTH).map_err(|_| TileError::Range)?;
        let mut row = hashes.get(offset..offset + (1 << height)).ok_or(TileError::Range)?.to_vec();
        while row.len() > 1 {
            row = row
                .chunks(2)
                .filter_map(|pair| if let [left, right] = pair { Some(node_hash(left, right)) } else { None })
                .collect();
        }
        let node = row.first().copied().ok_or(TileError::Range)?;
        self.nodes.insert((level, index), node);
        Ok(node)
    }
}

/// Largest power of two below `length`, for `length` of at least 2.
const fn split(length: u64) -> u64 {
    1 << (length - 1).ilog2()
}

const WIDTH: u64 = super::tile::TILE_WIDTH as u64;
