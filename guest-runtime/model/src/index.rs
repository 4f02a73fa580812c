// SPDX-License-Identifier: Apache-2.0
//! `pack.json`, the public part of a pack.

use crate::stream::Scheme;
use crate::{Key, PackError};
use serde::{Deserialize, Serialize};
use types::{Blake3Digest, Document, Hex32};

/// The public part of a pack. With it, anybody can check the ciphertext while it is fetched; it tells the number and
/// sizes of the objects and nothing of their content. It is not signed: a reader compares `identity` with the one it
/// expects, and everything else is proven by decrypting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackIndex {
    /// `chrysalis/pack/v1`.
    schema: String,
    /// BLAKE3 of the manifest's plaintext.
    pub identity: Blake3Digest,
    /// Which key opens the pack.
    pub key: KeyName,
    /// HKDF-SHA256 of the key, info `chrysalis/pack/commit/v1`.
    pub key_commitment: Hex32,
    /// Bytes of ciphertext in a segment.
    pub segment_size: u32,
    /// The objects in order; the first holds the manifest.
    pub objects: Vec<Object>,
}

/// The name of a key: its owner changes the version when the key is rotated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyName {
    /// 1 to 64 characters of `A-Za-z0-9._-`.
    pub id: String,
    /// Counts from 1.
    pub version: u32,
}

/// One object of a pack, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// BLAKE3 of the ciphertext.
    pub blake3: Blake3Digest,
    /// Its place in the list, from 0.
    pub index: u32,
    /// Bytes of ciphertext.
    pub length: u64,
}

impl Document for PackIndex {
    const SCHEMA: &'static str = "chrysalis/pack/v1";
    const MAX_BYTES: usize = 1 << 20;

    fn schema(&self) -> &str {
        &self.schema
    }
}

impl PackIndex {
    pub(crate) fn new(
        identity: Blake3Digest,
        key: KeyName,
        key_commitment: Hex32,
        segment_size: u32,
        objects: Vec<Object>,
    ) -> Self {
        Self { schema: Self::SCHEMA.to_owned(), identity, key, key_commitment, segment_size, objects }
    }

    /// Reads `pack.json` and checks every rule that needs no key.
    ///
    /// # Errors
    /// [`PackError::Malformed`] names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, PackError> {
        let index = Self::from_canonical(bytes).map_err(|error| PackError::malformed("pack.json", error))?;
        index.check()?;
        Ok(index)
    }

    /// Bytes of ciphertext of all objects together.
    #[must_use]
    pub fn ciphertext_length(&self) -> u64 {
        self.objects.iter().fold(0, |sum, object| sum.saturating_add(object.length))
    }

    pub(crate) fn scheme(&self) -> Scheme {
        Scheme::of_pack(self.segment_size)
    }

    pub(crate) fn object(&self, number: u32) -> Option<&Object> {
        self.objects.get(usize::try_from(number).ok()?)
    }

    /// # Errors
    /// The key is not the one that the pack commits to.
    pub(crate) fn check_key(&self, key: &Key) -> Result<(), PackError> {
        if key.has_commitment(&self.key_commitment) {
            Ok(())
        } else {
            Err(PackError::KeyCommitment { key: self.key.clone() })
        }
    }

    fn check(&self) -> Result<(), PackError> {
        let broken = |field: &'static str, rule: &str| Err(PackError::malformed(field, rule));
        if !self.key.is_valid() {
            return broken("key", "id must be 1 to 64 characters of A-Z a-z 0-9 . _ - and version at least 1");
        }
        if !(MIN_SEGMENT..=MAX_SEGMENT).contains(&self.segment_size) {
            return broken("segment_size", "must be between 128 bytes and 4 MiB");
        }
        if !(2..=MAX_OBJECTS).contains(&self.objects.len()) {
            return broken("objects", "a manifest and 1 to 8191 further objects are needed");
        }
        if !(0..).zip(&self.objects).all(|(index, object)| object.index == index) {
            return broken("objects", "must be numbered from 0 without gaps");
        }
        if self.objects.iter().any(|object| self.scheme().plaintext_length(object.length).is_none()) {
            return broken("objects", "no ciphertext has such a length");
        }
        if self.ciphertext_length() > MAX_TOTAL {
            return broken("objects", "are longer than 2^53 bytes together");
        }
        Ok(())
    }
}

impl KeyName {
    /// Whether id and version keep the rules.
    pub(crate) fn is_valid(&self) -> bool {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        (1..=64).contains(&self.id.len()) && self.id.bytes().all(allowed) && self.version >= 1
    }
}

impl std::fmt::Display for KeyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} version {}", self.id, self.version)
    }
}

/// Segments as [`crate::create`] makes them by default: Tink's `AES256_GCM_HKDF_1MB`.
pub(crate) const DEFAULT_SEGMENT: u32 = 1 << 20;
/// Most objects of a pack.
pub(crate) const MAX_OBJECTS: usize = 8192;
const MIN_SEGMENT: u32 = 128;
const MAX_SEGMENT: u32 = 4 << 20;
const MAX_TOTAL: u64 = 1 << 53;

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> PackIndex {
        let object = |index, length| Object { blake3: Blake3Digest::ZERO, index, length };
        PackIndex::new(
            Blake3Digest::ZERO,
            KeyName { id: "k".into(), version: 1 },
            Hex32::default(),
            DEFAULT_SEGMENT,
            vec![object(0, 200), object(1, 56)],
        )
    }

    #[test]
    fn each_rule_is_checked() {
        let parse = |index: &PackIndex| PackIndex::parse(&types::canonical::to_bytes(index).unwrap());
        assert_eq!(parse(&index()).unwrap(), index());
        let broken: [fn(&mut PackIndex); 10] = [
            |index| index.schema = "chrysalis/pack/v2".into(),
            |index| index.key.id = "a b".into(),
            |index| index.key.version = 0,
            |index| index.segment_size = 64,
            |index| index.segment_size = (4 << 20) + 1,
            |index| index.objects.truncate(1),
            |index| index.objects.swap(0, 1),
            |index| index.objects[1].index = 2,
            |index| index.objects[1].length = 55,
            |index| index.objects[1].length = (1 << 53) - 1,
        ];
        for break_it in broken {
            let mut index = index();
            break_it(&mut index);
            let error = parse(&index).unwrap_err();
            assert_eq!(error.code(), "model_pack_malformed", "{error}");
        }
        assert_eq!(PackIndex::parse(b"{}").unwrap_err().code(), "model_pack_malformed");
    }
}
