// SPDX-License-Identifier: Apache-2.0
//! Files that are either whole or absent, and their digests.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256, Sha384};
use types::{Sha256Digest, Sha384Digest};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// No space is left; nothing half-written remains under its final name.
    #[error("disk full while writing {path}")]
    DiskFull {
        /// The file being written.
        path: PathBuf,
    },
    /// Any other failure of the operating system.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    /// Names the path that `source` is about.
    pub fn at(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path: path.to_owned() },
            _ => Self::Io { path: path.to_owned(), source },
        }
    }
}

/// Size and digests of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileDigest {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the bytes.
    pub sha256: Sha256Digest,
    /// SHA-384 of the bytes, as TDX registers hold it.
    pub sha384: Sha384Digest,
}

impl FileDigest {
    /// Size and digests of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            size: bytes.len() as u64,
            sha256: Sha256Digest::of(bytes),
            sha384: Sha384Digest::from_bytes(Sha384::digest(bytes).into()),
        }
    }
}

/// Copies `from` to a temporary file beside `to`, flushes it to disk and renames it into place; size and digests of what was
/// copied.
///
/// # Errors
/// [`FileError`], with `to` unchanged.
pub(crate) fn copy_whole(from: &Path, to: &Path) -> Result<FileDigest, FileError> {
    let directory = to.parent().unwrap_or_else(|| Path::new("."));
    let at = |e| FileError::at(to, e);
    let mut source = File::open(from).map_err(|e| FileError::at(from, e))?;
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(at)?;
    let (mut sha256, mut sha384, mut size) = (Sha256::new(), Sha384::new(), 0_u64);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = source.read(&mut buffer).map_err(|e| FileError::at(from, e))?;
        let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else { break };
        sha256.update(piece);
        sha384.update(piece);
        file.write_all(piece).map_err(at)?;
        size = size.saturating_add(count as u64);
    }
    file.as_file().sync_all().map_err(at)?;
    set_public(file.path()).map_err(at)?;
    file.persist(to).map_err(|e| at(e.error))?;
    sync_directory(directory)?;
    let (sha256, sha384) = (sha256.finalize().into(), sha384.finalize().into());
    Ok(FileDigest { size, sha256: Sha256Digest::from_bytes(sha256), sha384: Sha384Digest::from_bytes(sha384) })
}

/// Writes `bytes` to a temporary file beside `path`, flushes it to disk and renames it into place.
///
/// # Errors
/// [`FileError`], with `path` unchanged.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    let at = |e| FileError::at(path, e);
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(at)?;
    file.write_all(bytes).map_err(at)?;
    file.as_file().sync_all().map_err(at)?;
    set_public(file.path()).map_err(at)?;
    file.persist(path).map_err(|e| at(e.error))?;
    sync_directory(directory)
}

/// SHA-256 and size of a file, read in pieces.
///
/// # Errors
/// [`FileError`] when it cannot be read.
pub(crate) fn sha256_file(path: &Path) -> Result<(u64, Sha256Digest), FileError> {
    let mut file = File::open(path).map_err(|e| FileError::at(path, e))?;
    let mut hash = Sha256::new();
    let mut size = 0_u64;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).map_err(|e| FileError::at(path, e))?;
        if count == 0 {
            return Ok((size, Sha256Digest::from_bytes(hash.finalize().into())));
        }
        hash.update(buffer.get(..count).unwrap_or_default());
        size = size.saturating_add(count as u64);
    }
}

/// All regular files under `root`, as sorted paths relative to it. Symbolic links are not followed and not listed.
///
/// # Errors
/// [`FileError`] when a directory cannot be read.
pub(crate) fn list_files(root: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).map_err(|e| FileError::at(&directory, e))? {
            let entry = entry.map_err(|e| FileError::at(&directory, e))?;
            let path = entry.path();
            let kind = entry.file_type().map_err(|e| FileError::at(&path, e))?;
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                found.push(path.strip_prefix(root).unwrap_or(&path).to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Creates a directory and its parents.
///
/// # Errors
/// [`FileError`] naming the directory.
pub(crate) fn create_directories(path: &Path) -> Result<(), FileError> {
    std::fs::create_dir_all(path).map_err(|e| FileError::at(path, e))
}

/// Removes a tree if it is there.
///
/// # Errors
/// [`FileError`] naming the tree.
pub(crate) fn remove_tree(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(FileError::at(path, e)),
        _ => Ok(()),
    }
}

/// Reads a whole file of at most `cap` bytes.
///
/// # Errors
/// [`FileError`] when it cannot be read or is larger.
pub(crate) fn read_capped(path: &Path, cap: u64) -> Result<Vec<u8>, FileError> {
    let at = |e| FileError::at(path, e);
    let mut bytes = Vec::new();
    File::open(path).map_err(at)?.take(cap.saturating_add(1)).read_to_end(&mut bytes).map_err(at)?;
    if bytes.len() as u64 > cap {
        return Err(at(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {cap} bytes"))));
    }
    Ok(bytes)
}

/// Flushes a directory's entries to disk.
///
/// # Errors
/// [`FileError`] naming the directory.
pub(crate) fn sync_directory(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|d| d.sync_all()).map_err(|e| FileError::at(path, e))
}

/// Temporary files are made for their owner alone; results are not secret.
pub(crate) fn set_public(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_files_replace_and_leave_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_whole(&path, b"one").unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(list_files(dir.path()).unwrap(), [PathBuf::from("a")]);
        assert_eq!(sha256_file(&path).unwrap(), (3, Sha256Digest::of(b"two")));
    }

    #[test]
    fn a_copy_has_the_digests_of_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| i.to_le_bytes()[0]).collect();
        std::fs::write(&from, &bytes).unwrap();
        std::fs::write(&to, "old").unwrap();
        assert_eq!(copy_whole(&from, &to).unwrap(), FileDigest::of(&bytes));
        assert_eq!(std::fs::read(&to).unwrap(), bytes);
        assert!(copy_whole(&dir.path().join("missing"), &to).is_err());
        assert_eq!(std::fs::read(&to).unwrap(), bytes);
    }

    #[test]
    fn a_full_disk_is_named() {
        let error = FileError::at(Path::new("/x"), io::Error::from(io::ErrorKind::StorageFull));
        assert!(matches!(error, FileError::DiskFull { .. }));
    }

    #[test]
    fn caps_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_whole(&path, b"12345").unwrap();
        assert_eq!(read_capped(&path, 5).unwrap(), b"12345");
        assert!(read_capped(&path, 4).is_err());
    }
}
