// SPDX-License-Identifier: Apache-2.0
//! Merkle tree hashing and proof checks of RFC 6962 section 2.1 (algorithms of RFC 9162 sections 2.1.3.2 and 2.1.4.2).

use types::Sha256Digest;

/// Most hashes that a proof in a tree of at most 2^63 leaves can have.
pub const MAX_PROOF: usize = 64;

/// Why a Merkle proof was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The index is not below the tree's size.
    #[error("the index {index} is not below the tree size {size}")]
    Index {
        /// Index of the leaf.
        index: u64,
        /// Size of the tree.
        size: u64,
    },
    /// The new tree is smaller than the old one.
    #[error("the tree shrank from {old} to {new} entries")]
    Shrunk {
        /// Size that was known.
        old: u64,
        /// Size that is claimed now.
        new: u64,
    },
    /// The path has more or fewer hashes than index and size demand.
    #[error("the proof has the wrong number of hashes")]
    Length,
    /// The path leads to another root.
    #[error("the proof does not lead to the tree's root")]
    Root,
}

/// SHA-256(0x00 ‖ entry).
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> Sha256Digest {
    Sha256Digest::of_parts(&[&[0], entry])
}

/// SHA-256(0x01 ‖ left ‖ right).
#[must_use]
pub fn node_hash(left: &Sha256Digest, right: &Sha256Digest) -> Sha256Digest {
    Sha256Digest::of_parts(&[&[1], left.as_bytes(), right.as_bytes()])
}

/// Root of the tree without entries: SHA-256 of nothing.
#[must_use]
pub fn empty_root() -> Sha256Digest {
    Sha256Digest::of(&[])
}

/// Checks that `leaf` is entry `index` of the tree with `size` entries and this `root`.
///
/// # Errors
/// [`ProofError`] names what does not fit.
pub fn verify_inclusion(
    leaf: &Sha256Digest,
    index: u64,
    size: u64,
    path: &[Sha256Digest],
    root: &Sha256Digest,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Index { index, size });
    }
    let (mut node, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in path {
        if last == 0 {
            return Err(ProofError::Length);
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
        return Err(ProofError::Length);
    }
    if &hash == root { Ok(()) } else { Err(ProofError::Root) }
}

/// Checks that the tree with `new_size` entries and `new_root` extends the tree with `old_size` entries and `old_root`.
///
/// # Errors
/// [`ProofError`]; [`ProofError::Root`] for a fork, [`ProofError::Shrunk`] where the new tree is smaller.
pub fn verify_consistency(
    old_size: u64,
    old_root: &Sha256Digest,
    new_size: u64,
    new_root: &Sha256Digest,
    proof: &[Sha256Digest],
) -> Result<(), ProofError> {
    if new_size < old_size {
        return Err(ProofError::Shrunk { old: old_size, new: new_size });
    }
    if old_size == new_size || old_size == 0 {
        let same = old_size == 0 && *old_root == empty_root() || old_size == new_size && old_root == new_root;
        return match (proof.is_empty(), same) {
            (false, _) => Err(ProofError::Length),
            (true, false) => Err(ProofError::Root),
            (true, true) => Ok(()),
        };
    }
    let mut hashes = proof.iter();
    let start = if old_size.is_power_of_two() { old_root } else { hashes.next().ok_or(ProofError::Length)? };
    let (mut node, mut last) = (old_size - 1, new_size - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let (mut old_hash, mut new_hash) = (*start, *start);
    for sibling in hashes {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if node & 1 == 1 || node == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(ProofError::Length);
    }
    if &old_hash == old_root && &new_hash == new_root { Ok(()) } else { Err(ProofError::Root) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The eight entries of the test tree that certificate-transparency implementations share.
    fn entries() -> Vec<Vec<u8>> {
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
            .iter()
            .map(|text| (0..text.len() / 2).map(|i| u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).unwrap()).collect())
            .collect()
    }

    /// The definition of RFC 6962 section 2.1, literally.
    pub(crate) fn root_by_definition(entries: &[Vec<u8>]) -> Sha256Digest {
        match entries {
            [] => empty_root(),
            [one] => leaf_hash(one),
            more => {
                let k = 1 << (more.len() - 1).ilog2();
                node_hash(&root_by_definition(&more[..k]), &root_by_definition(&more[k..]))
            }
        }
    }

    #[test]
    fn roots_are_the_known_ones() {
        let known = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        for (size, root) in known.iter().enumerate() {
            assert_eq!(root_by_definition(&entries()[..size]).to_string(), *root, "size {size}");
        }
    }

    #[test]
    fn an_inner_node_is_no_leaf() {
        let all = entries();
        let left = node_hash(&leaf_hash(&all[0]), &leaf_hash(&all[1]));
        let right = node_hash(&leaf_hash(&all[2]), &leaf_hash(&all[3]));
        let root = root_by_definition(&all[..4]);
        assert_eq!(verify_inclusion(&left, 0, 4, &[right], &root), Err(ProofError::Length));
        assert_eq!(verify_inclusion(&left, 0, 2, &[right], &root), Ok(()), "sizes are trusted only from a checkpoint");
    }
}
