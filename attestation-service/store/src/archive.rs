// SPDX-License-Identifier: Apache-2.0
//! The archive of a backup: a tar file in exactly one spelling. Members stand in a fixed order: first the format, then
//! the contents, then the manifest with the digest of each, and last the manifest's signature by the audit log's key. A
//! reader asks for the members that it expects, and refuses everything else.
//!
//! The signature shows that a service's own store made the archive, as a whole: who can write archives and does not have
//! the key-wrapping key can't make one. It does not show that the archive is the newest.

use std::io::{self, Read, Write};

use release::log::{LogKey, LogSigner, NoteError, note::Note};
use serde::{Deserialize, Serialize};
use tar::{EntryType, Header};
use types::Sha256Digest;

/// Why an archive was refused, or not written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It could not be read or written.
    #[error("the archive: {0}")]
    Io(#[from] io::Error),
    /// Another member than the one that must stand here, or its header in another spelling.
    #[error("the archive has something else where {0} must stand")]
    Member(String),
    /// More bytes than such a member may have.
    #[error("the member {0} is too large")]
    TooLarge(String),
    /// Bytes after its end.
    #[error("the archive has bytes after its end")]
    Trailing,
    /// The manifest is not that of these members.
    #[error("the manifest does not fit: {0}")]
    Manifest(String),
    /// The manifest is not signed by the key of the archive's own audit log.
    #[error("the manifest's signature was refused: {0}")]
    Signature(#[from] NoteError),
    /// It does not say which version of the tables it holds, or is no archive.
    #[error("it is no archive of the form {SCHEMA}; where an older program made it, restore it with that one")]
    Format,
}

/// The first member: what must be known before anything else is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Format {
    /// `chrysalis/store-backup/v2`.
    schema: String,
    /// Version of the tables.
    version: i64,
}

/// The last member but the signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// `chrysalis/store-backup/v2`.
    pub(crate) schema: String,
    /// Entries of the audit log.
    pub(crate) size: u64,
    /// Its root.
    pub(crate) root: Sha256Digest,
    /// All members before this one.
    pub(crate) members: Vec<Member>,
}

/// A member and its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Member {
    name: String,
    bytes: u64,
    sha256: Sha256Digest,
}

/// Writes members.
pub(crate) struct Writer<'a, W: Write> {
    to: &'a mut W,
    members: Vec<Member>,
}

/// Reads members.
pub(crate) struct Reader<R: Read> {
    from: R,
    members: Vec<Member>,
}

impl<'a, W: Write> Writer<'a, W> {
    /// Begins an archive of tables of `version`.
    pub(crate) fn new(to: &'a mut W, version: i64) -> Result<Self, ArchiveError> {
        let mut writer = Self { to, members: Vec::new() };
        let format = Format { schema: SCHEMA.to_owned(), version };
        writer.member(FORMAT, &serde_json::to_vec(&format).map_err(io::Error::from)?, MAX_FORMAT)?;
        Ok(writer)
    }

    /// Writes a member, of which a reader takes at most `max` bytes: what nobody could read again is no copy.
    pub(crate) fn member(&mut self, name: &str, bytes: &[u8], max: usize) -> Result<(), ArchiveError> {
        self.write(name, bytes, max)?;
        self.members.push(described(name, bytes));
        Ok(())
    }

    /// Writes the manifest, its signature and the end.
    pub(crate) fn finish(mut self, size: u64, root: Sha256Digest, signer: &LogSigner) -> Result<(), ArchiveError> {
        let members = core::mem::take(&mut self.members);
        let manifest = Manifest { schema: SCHEMA.to_owned(), size, root, members };
        let bytes = serde_json::to_vec(&manifest).map_err(io::Error::from)?;
        self.write(MANIFEST, &bytes, MAX_MANIFEST)?;
        self.write(SIGNATURE, signer.sign(&signed_text(&bytes))?.as_bytes(), release::log::note::MAX_NOTE)?;
        self.to.write_all(&[0; 2 * BLOCK])?;
        Ok(())
    }

    fn write(&mut self, name: &str, bytes: &[u8], max: usize) -> Result<(), ArchiveError> {
        if bytes.len() > max {
            return Err(ArchiveError::TooLarge(name.to_owned()));
        }
        self.to.write_all(header(name, bytes.len())?.as_bytes())?;
        self.to.write_all(bytes)?;
        self.to.write_all(padding(bytes.len()))?;
        Ok(())
    }
}

impl<R: Read> Reader<R> {
    /// Begins to read an archive, and gives the version of its tables.
    pub(crate) fn new(from: R) -> Result<(Self, i64), ArchiveError> {
        let mut reader = Self { from, members: Vec::new() };
        let bytes = reader.member(FORMAT, MAX_FORMAT).map_err(|error| match error {
            ArchiveError::Member(_) => ArchiveError::Format,
            other => other,
        })?;
        let format: Format = serde_json::from_slice(&bytes).map_err(|_| ArchiveError::Format)?;
        if format.schema != SCHEMA {
            return Err(ArchiveError::Format);
        }
        Ok((reader, format.version))
    }

    /// The next member, which must be `name` and have at most `max` bytes.
    pub(crate) fn member(&mut self, name: &str, max: usize) -> Result<Vec<u8>, ArchiveError> {
        let bytes = self.read(name, max)?;
        self.members.push(described(name, &bytes));
        Ok(bytes)
    }

    /// Reads the manifest, its signature by `key` and the end, and compares everything that was read with it.
    pub(crate) fn finish(mut self, key: &LogKey) -> Result<Manifest, ArchiveError> {
        let bytes = self.read(MANIFEST, MAX_MANIFEST)?;
        let signature = self.read(SIGNATURE, release::log::note::MAX_NOTE)?;
        verify_signature(&bytes, &signature, key)?;
        let bad = |rule: String| ArchiveError::Manifest(rule);
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if manifest.schema != SCHEMA {
            return Err(bad(format!("its schema is not {SCHEMA}")));
        }
        if manifest.members.len() != self.members.len() {
            return Err(bad("it names another number of members".to_owned()));
        }
        if let Some((read, _)) = self.members.iter().zip(&manifest.members).find(|(read, named)| read != named) {
            return Err(bad(format!("{} has another digest or place", read.name)));
        }
        let mut end = Vec::new();
        self.from.by_ref().take(2 * BLOCK as u64 + 1).read_to_end(&mut end)?;
        if end.len() != 2 * BLOCK || end.iter().any(|byte| *byte != 0) {
            return Err(ArchiveError::Trailing);
        }
        Ok(manifest)
    }

    fn read(&mut self, name: &str, max: usize) -> Result<Vec<u8>, ArchiveError> {
        let other = || ArchiveError::Member(name.to_owned());
        let mut found = Header::new_old();
        self.from.read_exact(found.as_mut_bytes()).map_err(|_| other())?;
        let size = found.size().ok().and_then(|size| usize::try_from(size).ok()).ok_or_else(other)?;
        // The one spelling of this name and size, or nothing.
        if header(name, size)?.as_bytes() != found.as_bytes() {
            return Err(other());
        }
        if size > max {
            return Err(ArchiveError::TooLarge(name.to_owned()));
        }
        let mut bytes = Vec::new();
        self.from.by_ref().take(size as u64).read_to_end(&mut bytes)?;
        let mut rest = vec![0; padding(size).len()];
        self.from.read_exact(&mut rest).map_err(|_| other())?;
        if bytes.len() != size || rest.iter().any(|byte| *byte != 0) {
            return Err(other());
        }
        Ok(bytes)
    }
}

/// What is signed: no checkpoint of a log has two lines.
fn signed_text(manifest: &[u8]) -> String {
    format!("{SCHEMA}\n{}\n", Sha256Digest::of(manifest))
}

/// The one spelling of the signature by `key`, and nothing beside it.
fn verify_signature(manifest: &[u8], signature: &[u8], key: &LogKey) -> Result<(), NoteError> {
    let note = core::str::from_utf8(signature).map_err(|_| NoteError::Form("it is no text"))?;
    let parsed = Note::parse(note)?;
    if parsed.text() != signed_text(manifest) {
        return Err(NoteError::Form("it signs something else"));
    }
    key.verify(&parsed)?;
    // Two lines of text, a blank one, and the signature.
    if note.lines().count() == 4 { Ok(()) } else { Err(NoteError::Form("it has more signatures than one")) }
}

fn described(name: &str, bytes: &[u8]) -> Member {
    Member { name: name.to_owned(), bytes: bytes.len() as u64, sha256: Sha256Digest::of(bytes) }
}

/// The header without anything that differs from run to run.
fn header(name: &str, size: usize) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header.set_cksum();
    Ok(header)
}

fn padding(size: usize) -> &'static [u8] {
    let rest = size % BLOCK;
    let missing = if rest == 0 { 0 } else { BLOCK - rest };
    ZEROS.get(..missing).unwrap_or_default()
}

const BLOCK: usize = 512;
const ZEROS: &[u8] = &[0; BLOCK];
const FORMAT: &str = "format.json";
const MANIFEST: &str = "manifest.json";
const SIGNATURE: &str = "manifest.sig";
const SCHEMA: &str = "chrysalis/store-backup/v2";
const MAX_FORMAT: usize = 1024;
/// A log of 100 million entries.
const MAX_MANIFEST: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(seed: u8) -> LogSigner {
        LogSigner::new("example.invalid/audit", &[seed; 32]).unwrap()
    }

    /// What a reader would refuse is not written.
    #[test]
    fn a_member_that_is_too_large_to_be_read_is_not_written() {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, 7).unwrap();
        writer.member("a", &[1; 10], 10).unwrap();
        let refused = writer.member("b", &[1; 11], 10);
        assert!(matches!(refused, Err(ArchiveError::TooLarge(name)) if name == "b"));
        writer.finish(0, Sha256Digest::of(b"root"), &signer(1)).unwrap();
        let (mut reader, _) = Reader::new(bytes.as_slice()).unwrap();
        assert_eq!(reader.member("a", 10).unwrap(), [1; 10]);
        reader.finish(signer(1).public()).unwrap();
    }

    fn archive() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, 3).unwrap();
        writer.member("tables/a.json", b"[]", 1024).unwrap();
        writer.member("audit/checkpoint", &[7; 600], 1024).unwrap();
        writer.finish(0, Sha256Digest::of(b"root"), &signer(1)).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Manifest, ArchiveError> {
        read_of(bytes, signer(1).public())
    }

    fn read_of(bytes: &[u8], key: &LogKey) -> Result<Manifest, ArchiveError> {
        let (mut reader, version) = Reader::new(bytes)?;
        assert_eq!(version, 3);
        reader.member("tables/a.json", 10)?;
        reader.member("audit/checkpoint", 600)?;
        reader.finish(key)
    }

    #[test]
    fn an_archive_has_one_spelling() {
        let good = archive();
        let manifest = read(&good).unwrap();
        assert_eq!(manifest.members.len(), 3);
        assert_eq!(good, archive());
        // No byte of it can be another one, the padding and the end included. (The version, which is for the caller to
        // compare, stands in the first member.)
        for at in (1024..good.len()).step_by(7).chain(0..512) {
            let mut changed = good.clone();
            changed[at] ^= 1;
            assert!(read(&changed).is_err(), "byte {at}");
        }
        for length in (0..good.len()).step_by(100) {
            assert!(read(&good[..length]).is_err(), "{length} bytes");
        }
        assert!(matches!(read(&[good.as_slice(), &[0]].concat()), Err(ArchiveError::Trailing)));
        let begun = || Reader::new(good.as_slice()).unwrap().0;
        assert!(matches!(begun().member("tables/a.json", 1), Err(ArchiveError::TooLarge(_))));
        assert!(matches!(begun().member("tables/b.json", 10), Err(ArchiveError::Member(_))));
        // Without its first member, as older programs made them.
        assert!(matches!(Reader::new(&good[1024..]), Err(ArchiveError::Format)));
    }

    /// Whoever can compute digests, and has another key.
    #[test]
    fn a_manifest_is_signed_by_one_key() {
        let good = archive();
        assert!(matches!(read_of(&good, signer(2).public()), Err(ArchiveError::Signature(_))));
        let namesake = LogSigner::new("example.invalid/other", &[1; 32]).unwrap();
        assert!(matches!(read_of(&good, namesake.public()), Err(ArchiveError::Signature(_))));
        let note = signer(1).sign(&signed_text(b"manifest")).unwrap();
        let key = signer(1);
        assert_eq!(verify_signature(b"manifest", note.as_bytes(), key.public()), Ok(()));
        assert!(verify_signature(b"manifest!", note.as_bytes(), key.public()).is_err());
        let twice = format!("{note}{}", note.lines().last().unwrap().to_owned() + "\n");
        assert!(verify_signature(b"manifest", twice.as_bytes(), key.public()).is_err());
    }

    /// As other programs read it.
    #[test]
    fn it_is_a_tar_file() {
        let bytes = archive();
        let mut tar = tar::Archive::new(bytes.as_slice());
        let names: Vec<_> = tar.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(
            names,
            ["format.json", "tables/a.json", "audit/checkpoint", "manifest.json", "manifest.sig"]
                .map(std::path::PathBuf::from)
        );
    }
}
