// SPDX-License-Identifier: Apache-2.0
//! Appending: the right edge of the tree, and the files that an append makes.

use types::Sha256Digest;

use super::merkle::{empty_root, leaf_hash, node_hash};
use super::tile::{MAX_ENTRY, TILE_WIDTH, TileError, TilePath, Tiles};

/// The unfinished tiles at the right edge of a log.
#[derive(Debug, Clone, Default)]
pub struct Edge {
    size: u64,
    /// Per level the hashes of its unfinished tile, fewer than 256 each.
    levels: Vec<Vec<Sha256Digest>>,
    /// The unfinished entry bundle.
    entries: Vec<u8>,
    /// Tiles and bundles finished since the last [`Edge::take_files`].
    finished: Vec<(TilePath, Vec<u8>)>,
    /// Size of the tree at the last [`Edge::take_files`].
    taken: u64,
}

/// Why nothing was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EdgeError {
    /// The entry does not fit in an entry bundle.
    #[error("an entry has at most {MAX_ENTRY} bytes, found {0}")]
    EntryTooLarge(usize),
    /// The log is at its largest size.
    #[error("the log is full")]
    Full,
}

impl Edge {
    /// The edge of an empty log.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Loads the edge of the tree with `size` entries.
    ///
    /// The caller compares [`Edge::root`] with a signed checkpoint.
    ///
    /// # Errors
    /// [`TileError`] when a tile of the edge is missing or malformed.
    pub fn load<T: Tiles + ?Sized>(tiles: &T, size: u64) -> Result<Self, TileError> {
        let mut edge = Self { size, taken: size, ..Self::default() };
        let mut nodes = size;
        for level in 0.. {
            if nodes == 0 {
                break;
            }
            let hashes = match TilePath::in_tree(level, nodes / WIDTH, size) {
                Some(path) => path.hashes(&tiles.read(&path)?)?,
                None => Vec::new(),
            };
            edge.levels.push(hashes);
            nodes /= WIDTH;
        }
        if let Some(path) = TilePath::entries(size / WIDTH, size) {
            edge.entries = tiles.read(&path)?;
            let entries = path.split_entries(&edge.entries)?;
            let leaves: Vec<_> = entries.into_iter().map(leaf_hash).collect();
            if edge.levels.first() != Some(&leaves) {
                return Err(TileError::Form(path));
            }
        }
        Ok(edge)
    }

    /// Number of entries.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Appends one entry and gives its index and leaf hash.
    ///
    /// # Errors
    /// [`EdgeError`]; then nothing changed.
    pub fn append(&mut self, entry: &[u8]) -> Result<(u64, Sha256Digest), EdgeError> {
        let length = u16::try_from(entry.len()).map_err(|_| EdgeError::EntryTooLarge(entry.len()))?;
        if self.size >= MAX_SIZE {
            return Err(EdgeError::Full);
        }
        let (index, leaf) = (self.size, leaf_hash(entry));
        self.size += 1;
        self.entries.extend_from_slice(&length.to_be_bytes());
        self.entries.extend_from_slice(entry);
        if self.size.is_multiple_of(WIDTH)
            && let Some(path) = TilePath::entries(index / WIDTH, self.size)
        {
            self.finished.push((path, core::mem::take(&mut self.entries)));
        }
        self.push(leaf);
        Ok((index, leaf))
    }

    /// The tiles and bundles of this size that were not there at the last call: finished ones first, then unfinished ones.
    pub fn take_files(&mut self) -> Vec<(TilePath, Vec<u8>)> {
        let mut files = core::mem::take(&mut self.finished);
        if self.size == self.taken {
            return files;
        }
        if let Some(path) = TilePath::entries(self.size / WIDTH, self.size) {
            files.push((path, self.entries.clone()));
        }
        let (mut nodes, mut before) = (self.size, self.taken);
        for (level, hashes) in (0u8..).zip(&self.levels) {
            if nodes != before
                && let Some(path) = TilePath::in_tree(level, nodes / WIDTH, self.size)
            {
                files.push((path, tile_bytes(hashes)));
            }
            nodes /= WIDTH;
            before /= WIDTH;
        }
        self.taken = self.size;
        files
    }

    /// The root hash of the tree.
    #[must_use]
    pub fn root(&self) -> Sha256Digest {
        let mut root: Option<Sha256Digest> = None;
        // From the smallest complete subtree at the right to the largest at the left.
        for hashes in &self.levels {
            let mut rest = hashes.as_slice();
            while !rest.is_empty() {
                let (left, last) = rest.split_at(rest.len() - (1 << rest.len().trailing_zeros()));
                let subtree = fold(last);
                root = Some(root.map_or(subtree, |right| node_hash(&subtree, &right)));
                rest = left;
            }
        }
        root.unwrap_or_else(empty_root)
    }

    fn push(&mut self, leaf: Sha256Digest) {
        let (mut hash, mut nodes) = (leaf, self.size);
        for level in 0u8.. {
            let slot = usize::from(level);
            if self.levels.len() <= slot {
                self.levels.push(Vec::new());
            }
            let Some(hashes) = self.levels.get_mut(slot) else { return };
            hashes.push(hash);
            if hashes.len() < usize::from(TILE_WIDTH) {
                return;
            }
            let full = core::mem::take(hashes);
            if let Some(path) = TilePath::in_tree(level, nodes / WIDTH - 1, self.size) {
                self.finished.push((path, tile_bytes(&full)));
            }
            hash = fold(&full);
            nodes /= WIDTH;
        }
    }
}

fn tile_bytes(hashes: &[Sha256Digest]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| *hash.as_bytes()).collect()
}

/// Root of a complete subtree; `hashes` has a power of two of them.
fn fold(hashes: &[Sha256Digest]) -> Sha256Digest {
    match hashes {
        [] => empty_root(),
        [one] => *one,
        more => {
            let (left, right) = more.split_at(more.len() / 2);
            node_hash(&fold(left), &fold(right))
        }
    }
}

/// Signed 64-bit, as many readers keep it.
const MAX_SIZE: u64 = i64::MAX as u64;
const WIDTH: u64 = TILE_WIDTH as u64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::log::tree::Tree;
    use crate::log::{verify_consistency, verify_inclusion};

    #[derive(Default)]
    struct Memory(BTreeMap<String, Vec<u8>>);

    impl Tiles for Memory {
        fn read(&self, path: &TilePath) -> Result<Vec<u8>, TileError> {
            self.0.get(&path.to_string()).cloned().ok_or(TileError::Missing(*path))
        }
    }

    fn entry(index: u64) -> Vec<u8> {
        format!("entry {index}").into_bytes()
    }

    fn root_by_definition(leaves: &[Sha256Digest]) -> Sha256Digest {
        match leaves {
            [] => empty_root(),
            [one] => *one,
            more => {
                let k = 1 << (more.len() - 1).ilog2();
                node_hash(&root_by_definition(&more[..k]), &root_by_definition(&more[k..]))
            }
        }
    }

    /// A log grown one entry at a time, with the root at each size.
    fn grown(size: u64) -> (Memory, Vec<Sha256Digest>, Vec<Sha256Digest>) {
        let (mut memory, mut edge) = (Memory::default(), Edge::empty());
        let (mut roots, mut leaves) = (vec![empty_root()], Vec::new());
        for index in 0..size {
            leaves.push(edge.append(&entry(index)).unwrap().1);
            memory.0.extend(edge.take_files().into_iter().map(|(path, bytes)| (path.to_string(), bytes)));
            roots.push(edge.root());
        }
        (memory, roots, leaves)
    }

    #[test]
    fn every_proof_of_every_small_size_holds_and_no_other() {
        let (memory, roots, leaves) = grown(70);
        for size in 0..=70u64 {
            let tree = Tree::new(&memory, size);
            let root = roots[size as usize];
            assert_eq!(root, root_by_definition(&leaves[..size as usize]), "size {size}");
            assert_eq!(tree.root().unwrap(), root);
            for index in 0..size {
                let (leaf, path) = (leaves[index as usize], tree.inclusion_proof(index).unwrap());
                assert_eq!(verify_inclusion(&leaf, index, size, &path, &root), Ok(()));
                assert!(verify_inclusion(&leaf, (index + 1) % size, size, &path, &root).is_err() || size == 1);
                assert!(verify_inclusion(&leaf_hash(b"other"), index, size, &path, &root).is_err());
                if let Some((_, shorter)) = path.split_last() {
                    assert!(verify_inclusion(&leaf, index, size, shorter, &root).is_err());
                }
                let longer: Vec<_> = path.iter().copied().chain([leaf]).collect();
                assert!(verify_inclusion(&leaf, index, size, &longer, &root).is_err());
            }
            for old in 0..=size {
                let (old_root, proof) = (roots[old as usize], tree.consistency_proof(old).unwrap());
                assert_eq!(verify_consistency(old, &old_root, size, &root, &proof), Ok(()), "{old} to {size}");
                assert!(verify_consistency(old, &leaf_hash(b"fork"), size, &root, &proof).is_err());
                if old > 0 {
                    assert!(verify_consistency(old, &old_root, size, &leaf_hash(b"fork"), &proof).is_err());
                }
                let longer: Vec<_> = proof.iter().copied().chain([root]).collect();
                assert!(verify_consistency(old, &old_root, size, &root, &longer).is_err());
            }
            assert!(tree.inclusion_proof(size).is_err());
        }
    }

    #[test]
    fn proofs_cross_tiles_and_levels() {
        let size = 66_000;
        let (mut memory, mut edge) = (Memory::default(), Edge::empty());
        let leaves: Vec<_> = (0..size).map(|index| edge.append(&entry(index)).unwrap().1).collect();
        memory.0.extend(edge.take_files().into_iter().map(|(path, bytes)| (path.to_string(), bytes)));
        let root = edge.root();
        assert_eq!(root, root_by_definition(&leaves));
        assert!(memory.0.contains_key("tile/1/000") && memory.0.contains_key("tile/2/000.p/1"));
        let tree = Tree::new(&memory, size);
        for index in [0, 255, 256, 257, 65_535, 65_536, 65_999] {
            let path = tree.inclusion_proof(index).unwrap();
            assert_eq!(verify_inclusion(&leaves[index as usize], index, size, &path, &root), Ok(()));
        }
        for old in [1, 255, 256, 257, 65_535, 65_536, 65_537, 65_999] {
            let (proof, old_root) = (tree.consistency_proof(old).unwrap(), root_by_definition(&leaves[..old as usize]));
            assert_eq!(verify_consistency(old, &old_root, size, &root, &proof), Ok(()));
            assert_eq!(tree.earlier(old).unwrap().root().unwrap(), old_root);
        }
    }

    #[test]
    fn a_loaded_edge_goes_on_where_it_stopped() {
        let (memory, roots, _) = grown(600);
        for size in [0u64, 1, 255, 256, 257, 511, 512, 599] {
            let mut edge = Edge::load(&memory, size).unwrap();
            assert_eq!((edge.size(), edge.root()), (size, roots[size as usize]));
            assert_eq!(edge.append(&entry(size)).unwrap().0, size);
            assert_eq!(edge.root(), roots[size as usize + 1]);
        }
    }

    #[test]
    fn an_edge_whose_entries_are_not_its_leaves_is_refused() {
        let (mut memory, ..) = grown(3);
        let bundle = memory.0.get_mut("tile/entries/000.p/3").unwrap();
        *bundle.last_mut().unwrap() ^= 1;
        assert!(matches!(Edge::load(&memory, 3), Err(TileError::Form(_))));
        assert!(matches!(Edge::load(&memory, 4), Err(TileError::Missing(_))));
    }

    #[test]
    fn entries_beyond_two_bytes_of_length_are_refused() {
        let mut edge = Edge::empty();
        assert_eq!(edge.append(&vec![0; MAX_ENTRY + 1]), Err(EdgeError::EntryTooLarge(MAX_ENTRY + 1)));
        assert_eq!((edge.size(), edge.take_files().len()), (0, 0));
    }
}
