// SPDX-License-Identifier: Apache-2.0
//! The reader's side: everything is verified before anybody can use it.
//!
//! The order of the checks, which is also the order in which a fault is reported: the public part, the expected
//! identity, the key's commitment, then per object the BLAKE3 of the ciphertext and its decryption, the manifest, and
//! per file its BLAKE3.

use crate::manifest::FileEntry;
use crate::source::Source;
use crate::stream::Segments;
use crate::{Key, Manifest, Object, PackError, Progress};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
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

/// Checks the ciphertext of all objects against the public part. Needs no key and proves no origin: it finds damage.
///
/// # Errors
/// The first object that is not as `pack.json` says.
pub fn verify_ciphertext(source: &dyn Source, progress: Progress<'_>) -> Result<(), PackError> {
    let mut buffer = vec![0; source.index().scheme().segment_length()];
    for object in &source.index().objects {
        let mut reader = CiphertextReader::new(source, object, progress)?;
        while reader.next_segment(&mut buffer)?.is_some() {}
        reader.finish()?;
    }
    Ok(())
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
    let mut bytes = Vec::new();
    decrypt(source, object, key, &|_| {}, &mut |part| {
        bytes.extend_from_slice(part);
        Ok(())
    })?;
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
pub fn verify(source: &dyn Source, key: &Key, expected: &ModelId, progress: Progress<'_>) -> Result<Opened, PackError> {
    let manifest = checked_manifest(source, key, expected, progress)?;
    for file in &manifest.files {
        decrypt_file(source, &manifest, file, key, progress, &mut |_| Ok(()))?;
    }
    opened(&manifest, expected)
}

/// Decrypts a model into `target`, an existing empty directory in memory whose own mode decides who may read the files.
/// A file gets its name only after all of it was verified; after an error the directory holds no unverified file. Beside
/// the files, which may have `limit` bytes together, it needs about ten segments: 10 MiB, or 40 with the largest.
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
        let mut partial = Partial::create(target).map_err(writing())?;
        decrypt_file(source, &manifest, file, key, progress, &mut |part| {
            partial.file.write_all(part).map_err(writing())
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

type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), PackError>;

fn decrypt_file(
    source: &dyn Source,
    manifest: &Manifest,
    file: &FileEntry,
    key: &Key,
    progress: Progress<'_>,
    sink: Sink<'_>,
) -> Result<(), PackError> {
    let mut hasher = blake3::Hasher::new();
    for (number, _) in manifest.parts(file) {
        let missing = || PackError::manifest("an object is missing");
        let object = source.index().object(number).ok_or_else(missing)?;
        decrypt(source, object, key, progress, &mut |part| {
            hasher.update(part);
            sink(part)
        })?;
    }
    if *hasher.finalize().as_bytes() == *file.blake3.as_bytes() {
        Ok(())
    } else {
        Err(PackError::FileDigest { path: file.path.clone() })
    }
}

/// What authenticates an object's place: its number in the model of this identity.
pub(crate) fn associated_data(identity: &Blake3Digest, number: u32) -> Vec<u8> {
    [OBJECT_LABEL, identity.as_bytes(), &number.to_be_bytes()].concat()
}

/// Reads and hashes on one thread, decrypts on another. If both find fault, the digest's is reported: the ciphertext is
/// not what was published.
fn decrypt(
    source: &dyn Source,
    object: &Object,
    key: &Key,
    progress: Progress<'_>,
    sink: Sink<'_>,
) -> Result<(), PackError> {
    let (sender, segments) = sync_channel(SEGMENTS_AHEAD);
    let (give_back, spare) = sync_channel(SEGMENTS_AHEAD);
    let (read, decrypted) = std::thread::scope(|scope| {
        let reader = scope.spawn(move || read_segments(source, object, progress, &sender, &spare));
        let decrypted = decrypt_segments(source, object, key, &segments, &give_back, sink);
        // After a fault the rest is still read, for its digest.
        segments.iter().for_each(drop);
        let stopped = || PackError::io("reading")(std::io::Error::other("the reading thread stopped"));
        (reader.join().unwrap_or_else(|_| Err(stopped())), decrypted)
    });
    read.and(decrypted)
}

struct Segment {
    bytes: Vec<u8>,
    length: usize,
    is_last: bool,
}

fn read_segments(
    source: &dyn Source,
    object: &Object,
    progress: Progress<'_>,
    sender: &SyncSender<Segment>,
    spare: &Receiver<Vec<u8>>,
) -> Result<(), PackError> {
    let size = source.index().scheme().segment_length();
    let mut reader = CiphertextReader::new(source, object, progress)?;
    loop {
        let mut bytes = spare.try_recv().unwrap_or_else(|_| vec![0; size]);
        let Some((length, is_last)) = reader.next_segment(&mut bytes)? else {
            return reader.finish();
        };
        if sender.send(Segment { bytes, length, is_last }).is_err() {
            return reader.finish();
        }
    }
}

fn decrypt_segments(
    source: &dyn Source,
    object: &Object,
    key: &Key,
    segments: &Receiver<Segment>,
    give_back: &SyncSender<Vec<u8>>,
    sink: Sink<'_>,
) -> Result<(), PackError> {
    let index = source.index();
    let failed = || PackError::ObjectDecrypt { object: object.index };
    let mut opener: Option<Segments> = None;
    for mut segment in segments {
        let mut ciphertext = segment.bytes.get_mut(..segment.length).unwrap_or_default();
        let opener = match &mut opener {
            Some(opener) => opener,
            None => {
                let scheme = index.scheme();
                let (header, rest) = ciphertext.split_at_mut_checked(scheme.header_length()).ok_or_else(failed)?;
                ciphertext = rest;
                let associated = associated_data(&index.identity, object.index);
                opener.insert(scheme.open(key.bytes(), &associated, header).map_err(|_| failed())?)
            }
        };
        sink(opener.open(ciphertext, segment.is_last).map_err(|_| failed())?)?;
        // Full or gone: then the buffer is dropped.
        let _ = give_back.try_send(segment.bytes);
    }
    Ok(())
}

/// Reads an object segment by segment and hashes what it reads.
struct CiphertextReader<'s> {
    object: &'s Object,
    input: Box<dyn Read + Send + 's>,
    hasher: blake3::Hasher,
    left: u64,
    progress: Progress<'s>,
}

impl<'s> CiphertextReader<'s> {
    fn new(source: &'s dyn Source, object: &'s Object, progress: Progress<'s>) -> Result<Self, PackError> {
        let input = source.open(object)?;
        Ok(Self { object, input, hasher: blake3::Hasher::new(), left: object.length, progress })
    }

    /// Fills `buffer` with the next segment; gives its length and whether it is the last.
    fn next_segment(&mut self, buffer: &mut [u8]) -> Result<Option<(usize, bool)>, PackError> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if length == 0 {
            return Ok(None);
        }
        let segment = buffer.get_mut(..length).unwrap_or_default();
        self.input.read_exact(segment).map_err(PackError::reading(format!("object {}", self.object.index)))?;
        self.hasher.update(segment);
        let done = u64::try_from(length).unwrap_or(u64::MAX);
        self.left = self.left.saturating_sub(done);
        (self.progress)(done);
        Ok(Some((length, self.left == 0)))
    }

    /// Compares the digest; all segments must have been read.
    fn finish(self) -> Result<(), PackError> {
        let found = Blake3Digest::from_bytes(*self.hasher.finalize().as_bytes());
        let Object { index: object, blake3: expected, .. } = *self.object;
        if found == expected { Ok(()) } else { Err(PackError::ObjectDigest { object, expected, found }) }
    }
}

/// A file without its name yet; removed unless kept.
struct Partial {
    path: PathBuf,
    file: File,
    is_kept: bool,
}

impl Partial {
    fn create(target: &Path) -> std::io::Result<Self> {
        let path = target.join(PARTIAL_NAME);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path)?;
        Ok(Self { path, file, is_kept: false })
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
/// Segments read ahead of decryption; as many again wait to be used again.
const SEGMENTS_AHEAD: usize = 4;
