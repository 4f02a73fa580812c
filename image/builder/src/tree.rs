// SPDX-License-Identifier: Apache-2.0
//! The digest of a directory tree: paths, kinds, the permission to execute, contents and the targets of links. Owners,
//! times and other permissions are left out: they differ between machines and shape no build.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use types::Sha256Digest;

use crate::files::{self, FileError};

/// Size and digest of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeDigest {
    /// SHA-256 over one record for each path, sorted by path.
    pub sha256: Sha256Digest,
    /// Files, links and directories.
    pub entries: u64,
    /// Bytes in files.
    pub size: u64,
}

/// The digest of everything under `root`.
///
/// # Errors
/// [`FileError`] when something cannot be read, or is neither file, link nor directory.
pub(crate) fn digest(root: &Path) -> Result<TreeDigest, FileError> {
    let mut paths = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).map_err(|e| FileError::at(&directory, e))? {
            let entry = entry.map_err(|e| FileError::at(&directory, e))?;
            let path = entry.path();
            if entry.file_type().map_err(|e| FileError::at(&path, e))?.is_dir() {
                pending.push(path.clone());
            }
            paths.push(path.strip_prefix(root).unwrap_or(&path).to_owned());
        }
    }
    digest_of(root, paths)
}

/// The digest of the given paths under `root`, in whatever order they are given.
///
/// # Errors
/// As [`digest`].
pub(crate) fn digest_of(root: &Path, mut paths: Vec<PathBuf>) -> Result<TreeDigest, FileError> {
    paths.sort_unstable_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    let mut hash = Sha256::new();
    let mut size = 0_u64;
    for path in &paths {
        size = size.saturating_add(add(&mut hash, root, path)?);
    }
    let sha256 = Sha256Digest::from_bytes(hash.finalize().into());
    Ok(TreeDigest { sha256, entries: paths.len() as u64, size })
}

/// Adds the record of one path: kind, content, path, each with its length in front.
fn add(hash: &mut Sha256, root: &Path, path: &Path) -> Result<u64, FileError> {
    let place = root.join(path);
    let at = |e| FileError::at(&place, e);
    let metadata = std::fs::symlink_metadata(&place).map_err(at)?;
    let kind = metadata.file_type();
    let (word, content, size) = if kind.is_symlink() {
        ("link", std::fs::read_link(&place).map_err(at)?.into_os_string().as_bytes().to_vec(), 0)
    } else if kind.is_dir() {
        ("directory", Vec::new(), 0)
    } else if kind.is_file() {
        let (size, digest) = files::sha256_file(&place)?;
        let word = if metadata.permissions().mode() & 0o100 == 0 { "file" } else { "program" };
        (word, digest.as_bytes().to_vec(), size)
    } else {
        return Err(at(std::io::Error::other("neither file, link nor directory")));
    };
    for part in [word.as_bytes(), &content, path.as_os_str().as_bytes()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), "one").unwrap();
        std::os::unix::fs::symlink("d/f", dir.path().join("l")).unwrap();
        dir
    }

    #[test]
    fn equal_trees_have_equal_digests_whatever_their_times() {
        let (a, b) = (tree(), tree());
        std::fs::set_permissions(b.path().join("d/f"), std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(digest(a.path()).unwrap(), digest(b.path()).unwrap());
        assert_eq!(digest(a.path()).unwrap().entries, 3);
        assert_eq!(digest(a.path()).unwrap().size, 3);
    }

    #[test]
    fn every_difference_that_shapes_a_build_shows() {
        let before = digest(tree().path()).unwrap().sha256;
        let changes: [fn(&Path); 6] = [
            |p| std::fs::write(p.join("d/f"), "two").unwrap(),
            |p| std::fs::set_permissions(p.join("d/f"), std::fs::Permissions::from_mode(0o755)).unwrap(),
            |p| std::fs::rename(p.join("d/f"), p.join("d/g")).unwrap(),
            |p| std::fs::create_dir(p.join("e")).unwrap(),
            |p| std::fs::remove_file(p.join("l")).unwrap(),
            |p| {
                std::fs::remove_file(p.join("l")).unwrap();
                std::os::unix::fs::symlink("d", p.join("l")).unwrap();
            },
        ];
        for change in changes {
            let dir = tree();
            change(dir.path());
            assert_ne!(digest(dir.path()).unwrap().sha256, before);
        }
    }
}
