// SPDX-License-Identifier: Apache-2.0
//! The archive of a backup: a tar file in exactly one spelling. Members stand in a fixed order, the last one is the
//! manifest with the digest of each; a reader asks for the members that it expects, and refuses everything else.

use std::io::{self, Read, Write};

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
}

/// The last member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// `chrysalis/store-backup/v1`.
    pub(crate) schema: String,
    /// Version of the tables.
    pub(crate) version: i64,
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
    pub(crate) const fn new(to: &'a mut W) -> Self {
        Self { to, members: Vec::new() }
    }

    pub(crate) fn member(&mut self, name: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.write(name, bytes)?;
        self.members.push(described(name, bytes));
        Ok(())
    }

    /// Writes the manifest and the end.
    pub(crate) fn finish(mut self, version: i64, size: u64, root: Sha256Digest) -> Result<(), ArchiveError> {
        let members = core::mem::take(&mut self.members);
        let manifest = Manifest { schema: SCHEMA.to_owned(), version, size, root, members };
        let bytes = serde_json::to_vec(&manifest).map_err(io::Error::from)?;
        self.write(MANIFEST, &bytes)?;
        self.to.write_all(&[0; 2 * BLOCK])?;
        Ok(())
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.to.write_all(header(name, bytes.len())?.as_bytes())?;
        self.to.write_all(bytes)?;
        self.to.write_all(padding(bytes.len()))?;
        Ok(())
    }
}

impl<R: Read> Reader<R> {
    pub(crate) const fn new(from: R) -> Self {
        Self { from, members: Vec::new() }
    }

    /// The next member, which must be `name` and have at most `max` bytes.
    pub(crate) fn member(&mut self, name: &str, max: usize) -> Result<Vec<u8>, ArchiveError> {
        let bytes = self.read(name, max)?;
        self.members.push(described(name, &bytes));
        Ok(bytes)
    }

    /// Reads the manifest and the end, and compares everything that was read with it.
    pub(crate) fn finish(mut self) -> Result<Manifest, ArchiveError> {
        let bytes = self.read(MANIFEST, MAX_MANIFEST)?;
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
const MANIFEST: &str = "manifest.json";
const SCHEMA: &str = "chrysalis/store-backup/v1";
/// A log of 100 million entries.
const MAX_MANIFEST: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        writer.member("tables/a.json", b"[]").unwrap();
        writer.member("audit/checkpoint", &[7; 600]).unwrap();
        writer.finish(3, 0, Sha256Digest::of(b"root")).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Manifest, ArchiveError> {
        let mut reader = Reader::new(bytes);
        reader.member("tables/a.json", 10)?;
        reader.member("audit/checkpoint", 600)?;
        reader.finish()
    }

    #[test]
    fn an_archive_has_one_spelling() {
        let good = archive();
        let manifest = read(&good).unwrap();
        assert_eq!(manifest.members.len(), 2);
        assert_eq!(good, archive());
        // No byte of it can be another one, the padding and the end included, but for what the manifest says of the store,
        // which is for the caller to compare.
        for at in (0..good.len()).step_by(7) {
            let mut changed = good.clone();
            changed[at] ^= 1;
            assert!(read(&changed).map_or(true, |found| found != manifest), "byte {at}");
        }
        for length in (0..good.len()).step_by(100) {
            assert!(read(&good[..length]).is_err(), "{length} bytes");
        }
        assert!(matches!(read(&[good.as_slice(), &[0]].concat()), Err(ArchiveError::Trailing)));
        assert!(matches!(Reader::new(good.as_slice()).member("tables/a.json", 1), Err(ArchiveError::TooLarge(_))));
        assert!(matches!(Reader::new(good.as_slice()).member("tables/b.json", 10), Err(ArchiveError::Member(_))));
    }

    /// As other programs read it.
    #[test]
    fn it_is_a_tar_file() {
        let bytes = archive();
        let mut tar = tar::Archive::new(bytes.as_slice());
        let names: Vec<_> = tar.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, ["tables/a.json", "audit/checkpoint", "manifest.json"].map(std::path::PathBuf::from));
    }
}
