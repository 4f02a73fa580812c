// SPDX-License-Identifier: Apache-2.0
//! The reader's side: everything is verified before anybody can use it.
//!
//! The order in which a fault is reported: the public part, the expected identity, the key's commitment, then per object
//! the BLAKE3 of the ciphertext and its decryption, the manifest, and per file its BLAKE3.
//!
//! The BLAKE3 of a ciphertext proves nothing that decryption and the file's BLAKE3 do not: nobody vouches for
//! `pack.json`. It is there for those who have no key. So [`unpack`] looks at it only where something is at fault, to
//! say whether the pack was damaged on its way; owners, before they publish, have [`verify`] look at all of them.

use crate::manifest::FileEntry;
use crate::pipeline::{Hashes, Sink, Work};
use crate::source::{Source, read_exact_at};
use crate::{Key, Manifest, Object, PackError, Progress};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use types::{Blake3Digest, Document, ModelId};

/// A pack whose every file was verified against an expected identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    model: ModelId,
    files: Vec<PathBuf>,
    bytes: u64,
}

impl Opened {
    /// The model's name.
    #[must_use]
    pub fn model(&self) -> &ModelId {
        &self.model
    }

    /// The files' paths, relative to the directory, sorted.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What is made of objects' ciphertext besides their plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ciphertexts {
    /// Its BLAKE3 is compared with `pack.json`: what readers without the key rely on.
    Hashed,
    /// It is decrypted only, as in a guest.
    NotHashed,
}

/// Checks the ciphertext of all objects against the public part. Needs no key and proves no origin: it finds damage.
///
/// # Errors
/// The first object that is not as `pack.json` says.
pub fn verify_ciphertext(source: &dyn Source, progress: Progress<'_>) -> Result<(), PackError> {
    source.index().objects.iter().try_for_each(|object| check_digest(source, object, progress))
}

/// Decrypts the manifest and checks it. `identity` is the expected one; it must come from somewhere trustworthy, not
/// from the pack.
///
/// # Errors
/// The pack is not of this identity, the key is not its key, or it was altered.
pub fn open_manifest(source: &dyn Source, key: &Key, identity: &Blake3Digest) -> Result<Manifest, PackError> {
    let index = source.index();
    if index.identity != *identity {
        let (expected, found) = (identity.to_string(), index.identity.to_string());
        return Err(PackError::Identity { expected, found });
    }
    index.check_key(key)?;
    let object = index.object(0).ok_or_else(|| PackError::malformed("objects", "there is none"))?;
    let length = index.scheme().plaintext_length(object.length);
    let fits =
        length.and_then(|length| usize::try_from(length).ok()).is_some_and(|length| length <= Manifest::MAX_BYTES);
    if !fits {
        return Err(PackError::malformed("objects", "the manifest is longer than 2 MiB"));
    }
    let bytes = Mutex::new(vec![0; length.and_then(|length| usize::try_from(length).ok()).unwrap_or_default()]);
    let sink = |offset: u64, part: &[u8]| {
        let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(place) = bytes.get_mut(start..start.saturating_add(part.len())) {
            place.copy_from_slice(part);
        }
        Ok(())
    };
    let decrypted = decrypt(source, object, key, &mut Hashes::default(), &|_| {}, &sink);
    decrypted.or_else(|fault| diagnose(source, &[*object], fault))?;
    let bytes = bytes.into_inner().unwrap_or_else(PoisonError::into_inner);
    let found = Blake3Digest::of(&bytes);
    if found != *identity {
        return Err(PackError::Identity { expected: identity.to_string(), found: found.to_string() });
    }
    Manifest::parse(&bytes, index)
}

/// Decrypts and checks everything, and keeps nothing.
///
/// # Errors
/// The first fault, in the order of this module's description.
pub fn verify(
    source: &dyn Source,
    key: &Key,
    expected: &ModelId,
    ciphertexts: Ciphertexts,
    progress: Progress<'_>,
) -> Result<Opened, PackError> {
    let manifest = checked_manifest(source, key, expected, progress)?;
    for file in &manifest.files {
        decrypt_file(source, &manifest, file, key, ciphertexts, progress, &|_, _| Ok(()))?;
    }
    opened(&manifest, expected)
}

/// Decrypts a model into `target`, an existing empty directory in memory whose own mode decides who may read the files.
/// A file gets its name only after all of it was verified; after an error the directory holds no unverified file. Beside
/// the files, which may have `limit` bytes together, it needs eight segments at most: 8 MiB, or 32 with the largest.
/// It uses up to four threads, as many as there are processors.
///
/// # Errors
/// The first fault, in the order of this module's description.
pub fn unpack(
    source: &dyn Source,
    key: &Key,
    expected: &ModelId,
    target: &Path,
    limit: u64,
    progress: Progress<'_>,
) -> Result<Opened, PackError> {
    let mut entries = fs::read_dir(target).map_err(PackError::io("reading the directory to write to"))?;
    if entries.next().is_some() {
        return Err(PackError::TargetNotEmpty);
    }
    let manifest = checked_manifest(source, key, expected, progress)?;
    let needed = manifest.plaintext_length();
    if needed > limit {
        return Err(PackError::TooLarge { needed, limit });
    }
    for file in &manifest.files {
        let writing = || PackError::io(format!("writing {}", file.path));
        let partial = Partial::create(target, file.size).map_err(writing())?;
        decrypt_file(source, &manifest, file, key, Ciphertexts::NotHashed, progress, &|offset, part| {
            partial.file.write_all_at(part, offset).map_err(writing())
        })?;
        partial.keep(target, &file.path).map_err(writing())?;
    }
    opened(&manifest, expected)
}

fn checked_manifest(
    source: &dyn Source,
    key: &Key,
    expected: &ModelId,
    progress: Progress<'_>,
) -> Result<Manifest, PackError> {
    let manifest = open_manifest(source, key, expected.identity())?;
    progress(source.index().object(0).map_or(0, |object| object.length));
    let found = manifest.id(*expected.identity())?;
    if found != *expected {
        return Err(PackError::Identity { expected: expected.to_string(), found: found.to_string() });
    }
    Ok(manifest)
}

fn opened(manifest: &Manifest, expected: &ModelId) -> Result<Opened, PackError> {
    let files = manifest.files.iter().map(|file| PathBuf::from(&file.path)).collect();
    Ok(Opened { model: expected.clone(), files, bytes: manifest.plaintext_length() })
}

/// `sink` gets the file's bytes with their offset in it.
fn decrypt_file(
    source: &dyn Source,
    manifest: &Manifest,
    file: &FileEntry,
    key: &Key,
    ciphertexts: Ciphertexts,
    progress: Progress<'_>,
    sink: Sink<'_>,
) -> Result<(), PackError> {
    let mut hashes = Hashes::default();
    let (mut objects, mut start) = (Vec::new(), 0_u64);
    for (number, length) in manifest.parts(file) {
        let missing = || PackError::manifest("an object is missing");
        let object = source.index().object(number).ok_or_else(missing)?;
        objects.push(*object);
        hashes.ciphertext = (ciphertexts == Ciphertexts::Hashed).then(blake3::Hasher::new);
        let in_file = |offset: u64, part: &[u8]| sink(start.saturating_add(offset), part);
        let decrypted = decrypt(source, object, key, &mut hashes, progress, &in_file);
        decrypted.or_else(|fault| diagnose(source, &objects, fault))?;
        start = start.saturating_add(length);
    }
    if *hashes.plaintext.finalize().as_bytes() == *file.blake3.as_bytes() {
        Ok(())
    } else {
        diagnose(source, &objects, PackError::FileDigest { path: file.path.clone() })
    }
}

/// If the ciphertext is not what was published, that is the fault to report.
fn diagnose(source: &dyn Source, objects: &[Object], fault: PackError) -> Result<(), PackError> {
    if matches!(fault, PackError::ObjectDecrypt { .. } | PackError::FileDigest { .. }) {
        objects.iter().try_for_each(|object| check_digest(source, object, &|_| {}))?;
    }
    Err(fault)
}

/// What authenticates an object's place: its number in the model of this identity.
pub(crate) fn associated_data(identity: &Blake3Digest, number: u32) -> Vec<u8> {
    [OBJECT_LABEL, identity.as_bytes(), &number.to_be_bytes()].concat()
}

fn decrypt(
    source: &dyn Source,
    object: &Object,
    key: &Key,
    hashes: &mut Hashes,
    progress: Progress<'_>,
    sink: Sink<'_>,
) -> Result<(), PackError> {
    let index = source.index();
    let scheme = index.scheme();
    let device = source.open(object)?;
    let failed = || PackError::ObjectDecrypt { object: object.index };
    let mut header = vec![0; scheme.header_length()];
    read_exact_at(&*device, &mut header, 0).map_err(PackError::reading(format!("object {}", object.index)))?;
    let associated = associated_data(&index.identity, object.index);
    let opener = scheme.open(key.bytes(), &associated, &header).map_err(|_| failed())?;
    let (header, segment) = (header.len(), scheme.segment_length());
    Work { object, device: &*device, opener: &opener, header, segment, sink, progress }.run(hashes)?;
    hashes.ciphertext.take().map_or(Ok(()), |hasher| compare(object, &hasher))
}

/// Reads an object and compares its digest.
fn check_digest(source: &dyn Source, object: &Object, progress: Progress<'_>) -> Result<(), PackError> {
    let device = source.open(object)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; source.index().scheme().segment_length()];
    let mut done = 0;
    while done < object.length {
        let left = usize::try_from(object.length.saturating_sub(done)).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..left).unwrap_or_default();
        read_exact_at(&*device, part, done).map_err(PackError::reading(format!("object {}", object.index)))?;
        hasher.update(part);
        let length = u64::try_from(left).unwrap_or(u64::MAX);
        progress(length);
        done = done.saturating_add(length);
    }
    compare(object, &hasher)
}

fn compare(object: &Object, hasher: &blake3::Hasher) -> Result<(), PackError> {
    let found = Blake3Digest::from_bytes(*hasher.finalize().as_bytes());
    let Object { index: object, blake3: expected, .. } = *object;
    if found == expected { Ok(()) } else { Err(PackError::ObjectDigest { object, expected, found }) }
}

/// A file without its name yet; removed unless kept.
struct Partial {
    path: PathBuf,
    file: File,
    is_kept: bool,
}

impl Partial {
    fn create(target: &Path, length: u64) -> std::io::Result<Self> {
        let path = target.join(PARTIAL_NAME);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path)?;
        let partial = Self { path, file, is_kept: false };
        partial.file.set_len(length)?;
        Ok(partial)
    }

    fn keep(mut self, target: &Path, path: &str) -> std::io::Result<()> {
        let place = target.join(path);
        if let Some(parent) = place.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        self.file.sync_all()?;
        fs::rename(&self.path, &place)?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_kept {
            // Already failing; what cannot be removed still has no model file's name.
            let _ = fs::remove_file(&self.path);
        }
    }
}

const OBJECT_LABEL: &[u8] = b"chrysalis/pack/object/v1";
/// No file of a model starts with a dot.
const PARTIAL_NAME: &str = ".partial";
