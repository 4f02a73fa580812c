// SPDX-License-Identifier: Apache-2.0
//! The tile log: names, notes and keys have one spelling, no head is forged, and proofs are what RFC 6962 defines.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use release::log::{
    Checkpoint, Edge, EntryProof, LogKey, SignedCheckpoint, TileError, TilePath, Tiles, Tree, WitnessKey, leaf_hash,
    node_hash, note::Note, verify_consistency, verify_inclusion,
};
use types::Sha256Digest;

use crate::seeds;

/// Notes, checkpoints, keys, tile names, tiles, entry bundles and proofs. The first byte says which.
pub fn tile_log(bytes: &[u8]) -> bool {
    let Some((kind, rest)) = bytes.split_first() else { return false };
    match kind {
        b'n' => core::str::from_utf8(rest).is_ok_and(note),
        b'k' => core::str::from_utf8(rest).is_ok_and(|text| key::<LogKey>(text) | key::<WitnessKey>(text)),
        b'p' => core::str::from_utf8(rest).is_ok_and(tile_name),
        b'e' => entry_bundle(rest),
        b'j' => entry_proof(rest),
        b't' => tree(rest),
        _ => false,
    }
}

fn note(text: &str) -> bool {
    let signed = SignedCheckpoint::verify(text, seeds::log().public());
    let Ok(note) = Note::parse(text) else {
        assert!(signed.is_err(), "a checkpoint that is no note was accepted");
        return false;
    };
    assert!(note.text().ends_with('\n') && text.starts_with(note.text()));
    let Ok(head) = Checkpoint::from_note_unverified(&note) else {
        assert!(signed.is_err(), "a checkpoint without a head was accepted");
        return false;
    };
    let spelled = format!("{}\n{}\n{}\n", head.origin(), head.size(), STANDARD.encode(head.root().as_bytes()));
    assert_eq!(spelled, note.text(), "a head has one spelling");
    if let Ok(signed) = signed {
        // The only head that this key ever signed.
        assert_eq!(signed.head(), &seeds::head(), "a head was forged");
        let witness = seeds::witness().public().clone();
        assert!(signed.verify_witnesses(&[witness.clone(), witness], 2).is_err(), "one witness counted twice");
    }
    true
}

fn key<K: core::str::FromStr + ToString>(text: &str) -> bool {
    let Ok(key) = text.parse::<K>() else { return false };
    assert_eq!(key.to_string(), text, "a key has one spelling");
    true
}

fn tile_name(text: &str) -> bool {
    let Ok(path) = text.parse::<TilePath>() else { return false };
    assert_eq!(path.to_string(), text, "a tile's name has one spelling");
    assert!(!text.contains("..") && text.starts_with("tile/") && path.full().is_full());
    true
}

fn entry_bundle(bytes: &[u8]) -> bool {
    let Some((width, bundle)) = bytes.split_first() else { return false };
    let Some(path) = TilePath::entries(0, u64::from(*width)) else { return false };
    let Ok(entries) = path.split_entries(bundle) else { return false };
    assert_eq!(entries.len(), usize::from(*width));
    let written = |entry: &&[u8]| [&u16::try_from(entry.len()).unwrap_or(u16::MAX).to_be_bytes(), *entry].concat();
    assert_eq!(entries.iter().flat_map(written).collect::<Vec<u8>>(), bundle, "entries are split without loss");
    assert!(path.cut_from_full(bundle).is_err(), "an unfinished bundle was taken for a full one");
    true
}

fn entry_proof(bytes: &[u8]) -> bool {
    let Ok(proof) = serde_json::from_slice::<EntryProof>(bytes) else { return false };
    let unsigned = proof.verify_path_only();
    if let Ok(head) = &unsigned {
        let computed = root_of_path(&proof.leaf, proof.index, head.size(), &proof.path);
        assert_eq!(computed.as_ref(), Some(head.root()), "a proof was accepted that leads elsewhere");
    }
    let signed = proof.verify(seeds::log().public());
    assert!(signed.is_err() || unsigned.is_ok(), "a signature stood in for a path");
    unsigned.is_ok()
}

/// Grows a log with the bytes' entries and compares roots and proofs with their definition.
fn tree(bytes: &[u8]) -> bool {
    let [size, old, index, flip, entries @ ..] = bytes else { return false };
    let size = u64::from(*size % 80) + 1;
    let (old, index) = (u64::from(*old) % size + 1, u64::from(*index) % size);
    let (mut edge, mut tiles, mut leaves) = (Edge::empty(), Memory::default(), Vec::new());
    let mut old_root = Edge::empty().root();
    for number in 0..size {
        let entry = entries.get(usize::try_from(number).unwrap_or(0)..).unwrap_or_default();
        let entry = entry.get(..entry.len().min(3)).unwrap_or_default();
        let (_, leaf) = edge.append(entry).expect("a short entry");
        assert_eq!(leaf, leaf_hash(entry));
        leaves.push(leaf);
        tiles.0.extend(edge.take_files());
        if number + 1 == old {
            old_root = edge.root();
        }
    }
    let tree = Tree::new(&tiles, size);
    let root = root_by_definition(&leaves);
    assert_eq!((edge.root(), tree.root().ok()), (root, Some(root)), "the root of {size} entries");
    let leaf = leaves.get(usize::try_from(index).unwrap_or(0)).copied().unwrap_or(Sha256Digest::ZERO);
    let mut path = tree.inclusion_proof(index).expect("an entry of the tree");
    assert_eq!(root_of_path(&leaf, index, size, &path), Some(root));
    assert_eq!(verify_inclusion(&leaf, index, size, &path, &root), Ok(()));
    let mut consistency = tree.consistency_proof(old).expect("a smaller tree");
    assert_eq!(verify_consistency(old, &old_root, size, &root, &consistency), Ok(()));
    for proof in [&mut path, &mut consistency] {
        let at = usize::from(*flip) % proof.len().max(1);
        proof.get_mut(at).map_or_else(|| (), |hash| *hash = leaf_hash(hash.as_bytes()));
    }
    assert!(path.is_empty() || verify_inclusion(&leaf, index, size, &path, &root).is_err(), "a false path");
    assert!(
        consistency.is_empty() || verify_consistency(old, &old_root, size, &root, &consistency).is_err(),
        "a false consistency proof"
    );
    path.push(leaf);
    assert!(verify_inclusion(&leaf, index, size, &path, &root).is_err(), "a path that is too long");
    true
}

/// RFC 6962 section 2.1.1, from the definition of the path: recursion from the root.
fn root_of_path(leaf: &Sha256Digest, index: u64, size: u64, path: &[Sha256Digest]) -> Option<Sha256Digest> {
    if size == 0 || index >= size {
        return None;
    }
    if size == 1 {
        return path.is_empty().then_some(*leaf);
    }
    let (last, rest) = path.split_last()?;
    let split = 1_u64 << (size - 1).ilog2();
    if index < split {
        Some(node_hash(&root_of_path(leaf, index, split, rest)?, last))
    } else {
        Some(node_hash(last, &root_of_path(leaf, index - split, size - split, rest)?))
    }
}

/// RFC 6962 section 2.1.
fn root_by_definition(leaves: &[Sha256Digest]) -> Sha256Digest {
    match leaves {
        [] => Sha256Digest::of(&[]),
        [one] => *one,
        more => {
            let (left, right) = more.split_at(1 << (more.len() - 1).ilog2());
            node_hash(&root_by_definition(left), &root_by_definition(right))
        }
    }
}

#[derive(Default)]
struct Memory(BTreeMap<TilePath, Vec<u8>>);

impl Tiles for Memory {
    fn read(&self, path: &TilePath) -> Result<Vec<u8>, TileError> {
        self.0.get(path).cloned().ok_or(TileError::Missing(*path))
    }
}
