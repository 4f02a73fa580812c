// SPDX-License-Identifier: Apache-2.0
//! Capped reads and durable writes.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {}: {source}", path.display())]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl FileError {
    pub(crate) fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.to_owned(), source }
    }

    /// Whether the file is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Directories of one log whose own names are on disk, as this process saw to it.
#[derive(Debug, Default)]
pub(crate) struct SyncedDirs(BTreeSet<PathBuf>);

/// Writes files below one directory so that they survive a crash.
pub(crate) struct Writer<'a> {
    root: &'a Path,
    synced: &'a mut SyncedDirs,
    /// Directories that files were staged in since the last [`Writer::sync`].
    staged: BTreeSet<PathBuf>,
}

impl<'a> Writer<'a> {
    pub(crate) const fn new(root: &'a Path, synced: &'a mut SyncedDirs) -> Self {
        Self { root, synced, staged: BTreeSet::new() }
    }

    /// Writes a whole file under a temporary name, syncs it and renames it. The directories are synced by [`Writer::sync`].
    pub(crate) fn stage(&mut self, name: &Path, bytes: &[u8]) -> Result<(), FileError> {
        let path = self.root.join(name);
        let parent = path.parent().unwrap_or(self.root);
        let temporary = path.with_added_extension("tmp");
        let made = match File::create(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_parents(parent)?;
                File::create(&temporary)
            }
            made => made,
        };
        let written = made.and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.map_err(|e| FileError::new("write", &temporary, e))?;
        fs::rename(&temporary, &path).map_err(|e| FileError::new("rename", &temporary, e))?;
        self.staged.insert(parent.to_owned());
        Ok(())
    }

    /// Makes the directories below the root that lead to `parent`. The root itself is never made: a log whose directory
    /// has vanished must fail, not begin anew somewhere else.
    fn make_parents(&mut self, parent: &Path) -> Result<(), FileError> {
        let mut missing: Vec<_> =
            parent.ancestors().take_while(|dir| *dir != self.root && dir.starts_with(self.root)).collect();
        missing.reverse();
        for dir in missing {
            // Whatever was known of it: its name is to be synced.
            self.synced.0.remove(dir);
            match fs::create_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(FileError::new("make directory", dir, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Syncs every directory that a staged file stands in, and those above it whose names this process has not synced
    /// yet: an earlier one may have made them and have been killed.
    pub(crate) fn sync(&mut self) -> Result<(), FileError> {
        let (mut dirs, mut named) = (core::mem::take(&mut self.staged), BTreeSet::new());
        for dir in dirs.clone() {
            for below in dir.ancestors().take_while(|dir| *dir != self.root && dir.starts_with(self.root)) {
                if !self.synced.0.contains(below) {
                    named.insert(below.to_owned());
                    dirs.extend(below.parent().map(Path::to_owned));
                }
            }
        }
        dirs.iter().try_for_each(|dir| sync_dir(dir))?;
        if self.synced.0.len() > MAX_SYNCED {
            self.synced.0.clear();
        }
        self.synced.0.extend(named);
        Ok(())
    }

    /// Stages one file and syncs.
    pub(crate) fn replace(&mut self, name: &Path, bytes: &[u8]) -> Result<(), FileError> {
        self.stage(name, bytes)?;
        self.sync()
    }
}

pub(crate) fn create_dirs(dir: &Path) -> Result<(), FileError> {
    fs::create_dir_all(dir).map_err(|e| FileError::new("make directory", dir, e))?;
    match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

pub(crate) fn open_lock(path: &Path) -> Result<File, FileError> {
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    opened.map_err(|e| FileError::new("open", path, e))
}

pub(crate) fn read_capped(path: &Path, max: usize) -> Result<Vec<u8>, FileError> {
    let fail = |e| FileError::new("read", path, e);
    let mut bytes = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path).map_err(fail)?.take(limit).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() > max {
        return Err(fail(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {max} bytes"))));
    }
    Ok(bytes)
}

pub(crate) fn read_text(path: &Path, max: usize) -> Result<String, FileError> {
    String::from_utf8(read_capped(path, max)?)
        .map_err(|_| FileError::new("read", path, io::Error::new(io::ErrorKind::InvalidData, "not UTF-8")))
}

/// Directories of unfinished tiles come and go: more than these are looked at anew.
const MAX_SYNCED: usize = 64;

fn sync_dir(dir: &Path) -> Result<(), FileError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(|e| FileError::new("sync", dir, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vanished_root_is_not_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("log");
        fs::create_dir(&root).unwrap();
        let mut synced = SyncedDirs::default();
        Writer::new(&root, &mut synced).replace(Path::new("tile/0/000"), b"tile").unwrap();
        assert_eq!(fs::read(root.join("tile/0/000")).unwrap(), b"tile");
        fs::remove_dir_all(&root).unwrap();
        assert!(Writer::new(&root, &mut synced).replace(Path::new("tile/0/000"), b"tile").is_err());
        assert!(!root.exists());
    }
}
