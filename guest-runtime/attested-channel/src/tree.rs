// SPDX-License-Identifier: Apache-2.0
//! The freshness tree: challenges that arrive while a quote is being made are leaves of one Merkle tree
//! (hashing as RFC 9162 section 2.1, with its own leaf layout), so that one quote answers them all.

use types::{FreshnessKind, Role, Sha256Digest};

/// A leaf: one challenge bound to one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// Kind of binding.
    pub kind: FreshnessKind,
    /// What the guest is for.
    pub role: Role,
    /// The verifier's challenge.
    pub challenge: [u8; 32],
    /// Taken by each side from its own connection, never from a message.
    pub binding: [u8; 32],
}

impl Leaf {
    /// SHA-256(0x00 ‖ kind ‖ role ‖ challenge ‖ binding): all lengths fixed.
    #[must_use]
    pub fn hash(&self) -> Sha256Digest {
        Sha256Digest::of_parts(&[&[0x00, self.kind.code(), self.role.code()], &self.challenge, &self.binding])
    }
}

/// Exporter label for TLS bindings (RFC 9266 gives no per-challenge context, so this is our own).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-chrysalis-attest-v1";

/// Most leaves of one tree.
pub const MAX_LEAVES: usize = 1 << 16;

/// A tree over leaf hashes.
#[derive(Debug, Clone)]
pub struct Tree {
    leaves: Vec<Sha256Digest>,
}

impl Tree {
    /// A tree over at least one and at most [`MAX_LEAVES`] leaf hashes; `None` otherwise.
    #[must_use]
    pub fn new(leaves: Vec<Sha256Digest>) -> Option<Self> {
        (1..=MAX_LEAVES).contains(&leaves.len()).then_some(Self { leaves })
    }

    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.leaves.len() as u64
    }

    /// Root of the tree (RFC 9162 section 2.1.1).
    #[must_use]
    pub fn root(&self) -> Sha256Digest {
        root_of(&self.leaves)
    }

    /// Inclusion path of one leaf (RFC 9162 section 2.1.3.1); `None` when there is no such leaf.
    #[must_use]
    pub fn path(&self, index: u64) -> Option<Vec<Sha256Digest>> {
        let mut index = usize::try_from(index).ok().filter(|i| *i < self.leaves.len())?;
        let mut leaves = self.leaves.as_slice();
        let mut path = Vec::new();
        while leaves.len() > 1 {
            let (left, right) = leaves.split_at_checked(split(leaves.len()))?;
            if index < left.len() {
                path.push(root_of(right));
                leaves = left;
            } else {
                path.push(root_of(left));
                index -= left.len();
                leaves = right;
            }
        }
        path.reverse();
        Some(path)
    }

    /// The inclusion paths of all leaves, in their order: what [`Tree::path`] gives for each, in one pass.
    #[must_use]
    pub fn paths(&self) -> Vec<Vec<Sha256Digest>> {
        let mut paths = vec![Vec::new(); self.leaves.len()];
        fill_paths(&self.leaves, &mut paths);
        paths
    }
}

/// Why an inclusion path was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The index is not below the size, or the size is 0 or too large.
    #[error("leaf index and tree size do not fit together")]
    Index,
    /// Index and size demand another number of hashes.
    #[error("the inclusion path has another length than index and size demand")]
    Length,
    /// The path leads to another root.
    #[error("the inclusion path leads to another root")]
    Root,
}

/// Checks that `leaf` stands at `index` of a tree of `size` leaves with `root` (RFC 9162 section 2.1.3.2).
/// Establishes inclusion only; that a quote covers size and root is for the caller to check.
///
/// # Errors
/// [`PathError`] names the rule.
pub fn verify_path(
    leaf: &Leaf,
    index: u64,
    size: u64,
    path: &[Sha256Digest],
    root: &Sha256Digest,
) -> Result<(), PathError> {
    if index >= size || size > MAX_LEAVES as u64 {
        return Err(PathError::Index);
    }
    let (mut node, mut last) = (index, size - 1);
    let mut hash = leaf.hash();
    for sibling in path {
        if last == 0 {
            return Err(PathError::Length);
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(PathError::Length);
    }
    if hash == *root { Ok(()) } else { Err(PathError::Root) }
}

fn root_of(leaves: &[Sha256Digest]) -> Sha256Digest {
    match leaves {
        [] => Sha256Digest::of(&[]),
        [one] => *one,
        more => {
            let (left, right) = more.split_at_checked(split(more.len())).unwrap_or((more, &[]));
            node_hash(&root_of(left), &root_of(right))
        }
    }
}

/// Adds what the paths of these leaves hold below their root, which it gives.
fn fill_paths(leaves: &[Sha256Digest], paths: &mut [Vec<Sha256Digest>]) -> Sha256Digest {
    let middle = if leaves.len() > 1 { split(leaves.len()) } else { 0 };
    let halves = leaves.split_at_checked(middle).zip(paths.split_at_mut_checked(middle));
    let Some(((left, right), (left_paths, right_paths))) = halves.filter(|_| middle > 0) else {
        return root_of(leaves);
    };
    let (left, right) = (fill_paths(left, left_paths), fill_paths(right, right_paths));
    left_paths.iter_mut().for_each(|path| path.push(right));
    right_paths.iter_mut().for_each(|path| path.push(left));
    node_hash(&left, &right)
}

/// Largest power of two below `len` (which is at least 2).
const fn split(len: usize) -> usize {
    1 << (usize::BITS - 1 - (len - 1).leading_zeros())
}

fn node_hash(left: &Sha256Digest, right: &Sha256Digest) -> Sha256Digest {
    Sha256Digest::of_parts(&[&[0x01], left.as_bytes(), right.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(number: u8) -> Leaf {
        Leaf { kind: FreshnessKind::Tls, role: Role::Inference, challenge: [number; 32], binding: [number ^ 0xff; 32] }
    }

    #[test]
    fn every_leaf_of_every_small_tree_has_a_path() {
        for size in 1..=33u8 {
            let tree = Tree::new((0..size).map(|n| leaf(n).hash()).collect()).unwrap();
            for index in 0..size {
                let path = tree.path(index.into()).unwrap();
                assert_eq!(verify_path(&leaf(index), index.into(), tree.size(), &path, &tree.root()), Ok(()));
                let other = verify_path(&leaf(index ^ 1), index.into(), tree.size(), &path, &tree.root());
                assert_eq!(other, Err(PathError::Root));
            }
        }
    }

    #[test]
    fn all_paths_at_once_are_the_paths_of_each() {
        for size in (1..=33u8).chain([64, 65, 255]) {
            let tree = Tree::new((0..size).map(|n| leaf(n).hash()).collect()).unwrap();
            let one_by_one: Vec<_> = (0..size.into()).map(|index| tree.path(index).unwrap()).collect();
            assert_eq!(tree.paths(), one_by_one);
        }
    }

    /// Attack 65: an inner node, a path of the wrong length, or a wrong tree size.
    #[test]
    fn wrong_lengths_sizes_and_indices_are_refused() {
        let tree = Tree::new((0..5).map(|n| leaf(n).hash()).collect()).unwrap();
        let path = tree.path(2).unwrap();
        let root = tree.root();
        assert_eq!(verify_path(&leaf(2), 5, 5, &path, &root), Err(PathError::Index));
        assert_eq!(verify_path(&leaf(2), 0, 0, &[], &root), Err(PathError::Index));
        assert_eq!(verify_path(&leaf(2), 2, 5, &path[..2], &root), Err(PathError::Length));
        let long = [path.as_slice(), &[Sha256Digest::ZERO]].concat();
        assert_eq!(verify_path(&leaf(2), 2, 5, &long, &root), Err(PathError::Length));
        assert!(verify_path(&leaf(2), 2, 9, &path, &root).is_err());
        assert!(verify_path(&leaf(2), 3, 5, &path, &root).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_input_panics(index: u64, size: u64, path in proptest::collection::vec(proptest::array::uniform32(0u8..), 0..80)) {
            let path: Vec<_> = path.into_iter().map(Sha256Digest::from_bytes).collect();
            let _ = verify_path(&leaf(1), index, size, &path, &Sha256Digest::ZERO);
        }
    }
}
