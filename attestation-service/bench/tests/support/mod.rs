// SPDX-License-Identifier: Apache-2.0
//! What guests got of a running program, against what its audit log says.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use attestation_bench::{KEY, Scene, Starter};
use release::log::leaf_hash;
use release_client::{Challenge, ClientError, Released};
use store::AuditEntry;
use types::{KeyReleaseEntry, Sha256Digest};

pub(crate) fn starter() -> Starter {
    Starter::new(PathBuf::from(env!("CARGO_BIN_EXE_attestation-bench-service")))
}

/// What a client got: the challenge's digest, and where the proof says that the entry is.
pub(crate) struct Got {
    challenge: Sha256Digest,
    index: u64,
    leaf: Sha256Digest,
}

pub(crate) fn got(challenge: &Challenge, released: &Released) -> Got {
    assert_eq!(*released.key, KEY);
    let challenge = Sha256Digest::of(challenge.challenge());
    Got { challenge, index: released.audit.index, leaf: released.audit.leaf }
}

/// Every key that a guest got has its entry, where the proof said, and no challenge has two. Gives the number of
/// entries for keys.
pub(crate) fn compare(scene: &Scene, keys: &[Got]) -> u64 {
    let mut entries = BTreeMap::new();
    let mut challenges = BTreeSet::new();
    let summary = scene.beside().unwrap().verify_audit_with(|index, entry| {
        if let AuditEntry::KeyRelease(KeyReleaseEntry { challenge, .. }) = entry {
            assert!(challenges.insert(*challenge), "two entries for one challenge");
            entries.insert(index, (*challenge, leaf_hash(&entry.to_bytes().unwrap())));
        }
    });
    let summary = summary.unwrap();
    for key in keys {
        assert_eq!(entries.get(&key.index), Some(&(key.challenge, key.leaf)), "a key without its entry");
    }
    assert!(summary.key_releases >= keys.len() as u64);
    summary.key_releases
}

/// The codes of a refusal, none for a key.
pub(crate) fn codes(asked: Result<Released, ClientError>) -> Vec<String> {
    match asked {
        Ok(_) => Vec::new(),
        Err(ClientError::Refused(reasons)) => reasons.into_iter().map(|reason| reason.code).collect(),
        Err(other) => panic!("{other}"),
    }
}
