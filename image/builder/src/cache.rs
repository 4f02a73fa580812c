// SPDX-License-Identifier: Apache-2.0
//! A directory of finished things, each under the digest of everything that went into it.
//!
//! ```text
//! <root>/<kind>/<key>/...      finished; `entry.json` lists its files with size and SHA-256
//! <root>/tmp/<kind>-<key>/     being made; removed when the next run makes it again
//! <root>/locks/<kind>-<key>    held while it is made
//! <root>/<kind>/<key>/tree/    a finished tree; `tree.json` holds its digest
//! <root>/work/<name>/          scratch that tools keep for themselves (cargo); never read as a result
//! ```
//! An entry appears by one rename after its files are on disk, and is compared with its list each time it is used: an
//! interrupted run, a full disk or a changed byte never counts as complete.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::Sha256Digest;

use crate::files::{self, FileError};
use crate::progress::Progress;
use crate::tree::{self, TreeDigest};

/// Why the cache could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Neither `CHRYSALIS_CACHE`, `XDG_CACHE_HOME` nor `HOME` says where the cache is.
    #[error("no cache directory: none of CHRYSALIS_CACHE, XDG_CACHE_HOME and HOME is set")]
    NoDirectory,
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The cache at one directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// A finished entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its directory. Read-only by convention.
    pub path: PathBuf,
    /// Digest and size of each file in it, by relative path.
    pub files: BTreeMap<String, EntryFile>,
}

/// A file of an [`Entry`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntryFile {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the bytes.
    pub sha256: Sha256Digest,
}

impl Cache {
    /// The cache at `$CHRYSALIS_CACHE`, else `$XDG_CACHE_HOME/chrysalis`, else `~/.cache/chrysalis`.
    ///
    /// # Errors
    /// [`CacheError::NoDirectory`] or a failure to create it.
    pub fn from_environment() -> Result<Self, CacheError> {
        let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let root = set("CHRYSALIS_CACHE")
            .or_else(|| Some(set("XDG_CACHE_HOME")?.join("chrysalis")))
            .or_else(|| Some(set("HOME")?.join(".cache/chrysalis")))
            .ok_or(CacheError::NoDirectory)?;
        Self::at(&root)
    }

    /// The cache at `root`, which is created.
    ///
    /// # Errors
    /// [`CacheError::File`].
    pub fn at(root: &Path) -> Result<Self, CacheError> {
        files::create_directories(root)?;
        let root = std::fs::canonicalize(root).map_err(|e| FileError::at(root, e))?;
        Ok(Self { root })
    }

    /// The cache's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A directory that a tool keeps for itself between runs (its own locks and staleness checks apply).
    ///
    /// # Errors
    /// [`CacheError::File`].
    pub fn work(&self, name: &str) -> Result<PathBuf, CacheError> {
        let path = self.root.join("work").join(name);
        files::create_directories(&path)?;
        Ok(path)
    }

    /// The entry `key` of `kind`; `make` fills an empty directory when it is not there yet. One run makes it, others wait.
    ///
    /// # Errors
    /// What `make` returns, or a [`CacheError`]. Nothing is kept then.
    pub fn entry<E: From<CacheError>>(
        &self,
        kind: &str,
        key: &Sha256Digest,
        progress: &dyn Progress,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Entry, E> {
        let path = self.root.join(kind).join(key.to_string());
        if let Some(entry) = intact(&path)? {
            return Ok(entry);
        }
        let _lock = self.lock(&format!("{kind}-{key}"), progress)?;
        if let Some(entry) = intact(&path)? {
            return Ok(entry);
        }
        let tmp = self.root.join("tmp").join(format!("{kind}-{key}"));
        prepare(&tmp, &path)?;
        let made = make(&tmp).and_then(|()| commit(&tmp, &path).map_err(E::from));
        if made.is_err() {
            files::remove_tree(&tmp).map_err(CacheError::File)?;
        }
        made
    }

    /// The tree `key` of `kind`, made by `make` in an empty directory when it is not there or not intact. Its digest is
    /// compared at each use, so nothing of it needs to be flushed to disk.
    ///
    /// # Errors
    /// What `make` returns, or a [`CacheError`]. Nothing is kept then.
    pub(crate) fn tree<E: From<CacheError>>(
        &self,
        kind: &str,
        key: &Sha256Digest,
        progress: &dyn Progress,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let path = self.root.join(kind).join(key.to_string());
        if let Some(tree) = intact_tree(&path)? {
            return Ok(tree);
        }
        let _lock = self.lock(&format!("{kind}-{key}"), progress)?;
        if let Some(tree) = intact_tree(&path)? {
            return Ok(tree);
        }
        let tmp = self.root.join("tmp").join(format!("{kind}-{key}"));
        prepare(&tmp, &path)?;
        files::create_directories(&tmp.join(TREE)).map_err(CacheError::File)?;
        let made = make(&tmp.join(TREE)).and_then(|()| commit_tree(&tmp, &path).map_err(E::from));
        if made.is_err() {
            files::remove_tree(&tmp).map_err(CacheError::File)?;
        }
        made
    }

    fn lock(&self, name: &str, progress: &dyn Progress) -> Result<File, CacheError> {
        let directory = self.root.join("locks");
        files::create_directories(&directory)?;
        let path = directory.join(name);
        let at = |e| FileError::at(&path, e);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(at)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                progress.step("waiting for another run that makes the same thing");
                file.lock().map_err(at)?;
            }
            Err(std::fs::TryLockError::Error(e)) => return Err(at(e).into()),
        }
        Ok(file)
    }
}

impl Entry {
    /// Path of one file of the entry.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

fn prepare(tmp: &Path, path: &Path) -> Result<(), CacheError> {
    files::remove_tree(tmp)?;
    files::create_directories(tmp)?;
    // An entry that failed its check: made again from nothing.
    files::remove_tree(path)?;
    Ok(files::create_directories(path.parent().unwrap_or(path))?)
}

/// Lists and flushes what was made, then renames it into place.
fn commit(tmp: &Path, path: &Path) -> Result<Entry, CacheError> {
    let mut list = BTreeMap::new();
    for name in files::list_files(tmp)? {
        let file = tmp.join(&name);
        let (size, sha256) = files::sha256_file(&file)?;
        File::open(&file).and_then(|f| f.sync_all()).map_err(|e| FileError::at(&file, e))?;
        list.insert(name.to_string_lossy().into_owned(), EntryFile { size, sha256 });
    }
    let index = tmp.join(INDEX);
    let text = serde_json::to_vec_pretty(&list).map_err(|e| FileError::at(&index, e.into()))?;
    files::write_whole(&index, &text)?;
    std::fs::rename(tmp, path).map_err(|e| FileError::at(path, e))?;
    if let Some(parent) = path.parent() {
        files::sync_directory(parent)?;
    }
    Ok(Entry { path: path.to_owned(), files: list })
}

/// The entry at `path` if it is there and each of its files is what the list says.
fn intact(path: &Path) -> Result<Option<Entry>, CacheError> {
    if !path.is_dir() {
        return Ok(None);
    }
    let Ok(text) = files::read_capped(&path.join(INDEX), MAX_INDEX) else { return Ok(None) };
    let Ok(list) = serde_json::from_slice::<BTreeMap<String, EntryFile>>(&text) else { return Ok(None) };
    for (name, expected) in &list {
        match files::sha256_file(&path.join(name)) {
            Ok((size, sha256)) if size == expected.size && sha256 == expected.sha256 => {}
            _ => return Ok(None),
        }
    }
    Ok(Some(Entry { path: path.to_owned(), files: list }))
}

fn commit_tree(tmp: &Path, path: &Path) -> Result<PathBuf, CacheError> {
    let index = tmp.join(TREE_INDEX);
    let digest = tree::digest(&tmp.join(TREE))?;
    let text = serde_json::to_vec(&digest).map_err(|e| FileError::at(&index, e.into()))?;
    files::write_whole(&index, &text)?;
    std::fs::rename(tmp, path).map_err(|e| FileError::at(path, e))?;
    Ok(path.join(TREE))
}

/// The tree at `path` if it is there and is what was made.
fn intact_tree(path: &Path) -> Result<Option<PathBuf>, CacheError> {
    let Ok(text) = files::read_capped(&path.join(TREE_INDEX), MAX_INDEX) else { return Ok(None) };
    let Ok(expected) = serde_json::from_slice::<TreeDigest>(&text) else { return Ok(None) };
    let tree = path.join(TREE);
    Ok(matches!(tree::digest(&tree), Ok(found) if found == expected).then_some(tree))
}

const TREE: &str = "tree";
const TREE_INDEX: &str = "tree.json";
const INDEX: &str = "entry.json";
const MAX_INDEX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    fn make(text: &'static str) -> impl FnOnce(&Path) -> Result<(), CacheError> {
        move |dir| Ok(files::write_whole(&dir.join("f"), text.as_bytes())?)
    }

    fn setup() -> (tempfile::TempDir, Cache, Sha256Digest) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        (dir, cache, Sha256Digest::of(b"key"))
    }

    #[test]
    fn an_entry_is_made_once() {
        let (_dir, cache, key) = setup();
        let first = cache.entry("k", &key, &Silent, make("one")).unwrap();
        let second = cache.entry("k", &key, &Silent, make("two")).unwrap();
        assert_eq!(first, second);
        assert_eq!(std::fs::read(second.file("f")).unwrap(), b"one");
    }

    #[test]
    fn an_interrupted_build_leaves_nothing() {
        let (_dir, cache, key) = setup();
        let fails = |dir: &Path| -> Result<(), CacheError> {
            files::write_whole(&dir.join("f"), b"half")?;
            Err(CacheError::NoDirectory)
        };
        assert!(cache.entry("k", &key, &Silent, fails).is_err());
        assert!(!cache.root().join("k").join(key.to_string()).exists());
        assert!(files::list_files(&cache.root().join("tmp")).unwrap().is_empty());
    }

    #[test]
    fn a_killed_build_is_made_again_from_nothing() {
        let (_dir, cache, key) = setup();
        let left = cache.root().join("tmp").join(format!("k-{key}"));
        std::fs::create_dir_all(&left).unwrap();
        std::fs::write(left.join("stale"), "x").unwrap();
        let entry = cache.entry("k", &key, &Silent, make("one")).unwrap();
        assert_eq!(entry.files.keys().collect::<Vec<_>>(), ["f"]);
        assert!(!entry.path.join("stale").exists());
    }

    #[test]
    fn a_changed_or_unlisted_entry_is_made_again() {
        let (_dir, cache, key) = setup();
        let entry = cache.entry("k", &key, &Silent, make("one")).unwrap();
        std::fs::write(entry.file("f"), "bad").unwrap();
        cache.entry("k", &key, &Silent, make("two")).unwrap();
        assert_eq!(std::fs::read(entry.file("f")).unwrap(), b"two");
        std::fs::remove_file(entry.file(INDEX)).unwrap();
        cache.entry("k", &key, &Silent, make("three")).unwrap();
        assert_eq!(std::fs::read(entry.file("f")).unwrap(), b"three");
    }

    #[test]
    fn a_tree_is_made_once_and_again_when_it_changed() {
        let (_dir, cache, key) = setup();
        let get = |text| cache.tree("k", &key, &Silent, make(text)).unwrap();
        assert_eq!(std::fs::read(get("one").join("f")).unwrap(), b"one");
        assert_eq!(std::fs::read(get("two").join("f")).unwrap(), b"one");
        std::fs::write(get("two").join("g"), "stray").unwrap();
        assert_eq!(std::fs::read(get("three").join("f")).unwrap(), b"three");
        assert!(!get("four").join("g").exists());
        let fails = |_: &Path| Err(CacheError::NoDirectory);
        assert!(cache.tree("k", &Sha256Digest::of(b"other"), &Silent, fails).is_err());
        assert!(!cache.root().join("k").join(Sha256Digest::of(b"other").to_string()).exists());
    }

    #[test]
    fn concurrent_runs_make_it_once() {
        let (_dir, cache, key) = setup();
        let made = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    let work = |dir: &Path| -> Result<(), CacheError> {
                        made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        make("one")(dir)
                    };
                    cache.entry("k", &key, &Silent, work).unwrap();
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }
}
