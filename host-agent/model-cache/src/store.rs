// SPDX-License-Identifier: Apache-2.0
//! The cache's directory.
//!
//! ```text
//! packs/<root>/pack.json, disk, used     whole packs; `used` says by its time when a pack was last held
//! partial/<root>/disk, progress.json     packs on their way; partial/<root>.lock is held by who fetches
//! ```

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use model::disk::Disk;
use model::{PackIndex, Source as _};
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use types::{Blake3Digest, Document as _};

use crate::error::CacheError;
use crate::partial::DISK;

/// A cache of packs in a directory.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
    quota: u64,
}

/// A whole pack in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its root.
    pub root: Blake3Digest,
    /// The identity of its model, as it says itself; `None` when its public part is damaged.
    pub identity: Option<Blake3Digest>,
    /// Bytes on the disk.
    pub bytes: u64,
    /// Somebody holds it.
    pub held: bool,
    /// When it was last held, unix seconds.
    pub used: u64,
}

/// A whole pack that stays in the cache while this lives.
#[derive(Debug)]
pub struct HeldPack {
    disk: PathBuf,
    identity: Blake3Digest,
    _lock: Flock<File>,
}

impl HeldPack {
    /// The disk, as guests read it. Nobody writes to it any more.
    #[must_use]
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// The identity of its model, as the pack says it.
    #[must_use]
    pub const fn identity(&self) -> &Blake3Digest {
        &self.identity
    }

    /// Holds the pack whose disk has this path, for a process that got nothing but the path. A disk that stands outside
    /// of a cache is held, too; that does nobody harm.
    ///
    /// # Errors
    /// The disk cannot be opened, or is being removed.
    pub fn lock_disk(disk: &Path) -> io::Result<Flock<File>> {
        let file = File::open(disk)?;
        let lock = Flock::lock(file, FlockArg::LockSharedNonblock).map_err(|(_, error)| io::Error::from(error))?;
        // Removed between opening and locking: then the name is another file's or nobody's.
        let (named, locked) = (disk.metadata()?, lock.metadata()?);
        if (named.dev(), named.ino()) == (locked.dev(), locked.ino()) {
            Ok(lock)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }
}

/// A fetch that nobody carries on, nor begins to while this lives.
struct Abandoned {
    root: Blake3Digest,
    bytes: u64,
    _lock: Flock<File>,
}

/// The root of a pack: the BLAKE3 of its canonical `pack.json`.
///
/// # Errors
/// [`model::PackError`]: the index breaks a rule.
pub fn root_of(index: &PackIndex) -> Result<Blake3Digest, model::PackError> {
    let layout = model::disk::Layout::of(index)?;
    let bytes = layout.head.get(HEADER..).unwrap_or_default();
    Ok(Blake3Digest::from_bytes(*blake3::hash(bytes).as_bytes()))
}

impl Cache {
    /// Opens, or makes, the cache in `directory`, for at most `quota` bytes.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn open(directory: &Path, quota: u64) -> Result<Self, CacheError> {
        for path in [directory.join(PACKS), directory.join(PARTIAL)] {
            DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(CacheError::io(&path))?;
        }
        Ok(Self { directory: directory.to_owned(), quota })
    }

    /// The most bytes that it keeps.
    #[must_use]
    pub const fn quota(&self) -> u64 {
        self.quota
    }

    /// Holds a whole pack, if it is here.
    ///
    /// # Errors
    /// [`CacheError::Io`], [`CacheError::Damaged`] when its public part is not the one of this root.
    pub fn hold(&self, root: &Blake3Digest) -> Result<Option<HeldPack>, CacheError> {
        let disk = self.pack(root).join(DISK);
        let lock = match HeldPack::lock_disk(&disk) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // It is being removed.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(CacheError::io(&disk)(error)),
        };
        let identity = self.index(root)?.identity;
        let used = self.pack(root).join(USED);
        fs::write(&used, []).map_err(CacheError::io(&used))?;
        Ok(Some(HeldPack { disk, identity, _lock: lock }))
    }

    /// All whole packs, damaged ones among them, the one used longest ago first.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn list(&self) -> Result<Vec<Entry>, CacheError> {
        let mut entries = Vec::new();
        for root in self.roots(PACKS)? {
            let path = self.pack(&root);
            let bytes = path.join(DISK).metadata().map_or(0, |metadata| metadata.len());
            let identity = self.index(&root).ok().map(|index| index.identity);
            let held = match File::open(path.join(DISK)) {
                Ok(file) => Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err(),
                Err(_) => false,
            };
            let used = path.join(USED).metadata().and_then(|used| used.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let used = used.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
            // Removed meanwhile: it is no damaged one.
            if path.is_dir() {
                entries.push(Entry { root, identity, bytes, held, used });
            }
        }
        entries.sort_by_key(|entry| (entry.used, entry.root));
        Ok(entries)
    }

    /// Bytes of whole packs and of those on their way.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn bytes(&self) -> Result<u64, CacheError> {
        let whole = self.list()?.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.bytes));
        Ok(whole.saturating_add(self.partial_bytes(None)?))
    }

    /// Hashes every byte of a pack again.
    ///
    /// # Errors
    /// [`CacheError::Missing`], [`CacheError::Damaged`].
    pub fn verify(&self, root: &Blake3Digest, progress: model::Progress<'_>) -> Result<(), CacheError> {
        let held = self.hold(root)?.ok_or(CacheError::Missing { root: *root })?;
        let damaged = |source| CacheError::Damaged { root: *root, source };
        let file = File::open(held.disk()).map_err(CacheError::io(held.disk()))?;
        let disk = Disk::open(file).map_err(damaged)?;
        if root_of(disk.index()).map_err(damaged)? != *root {
            return Err(damaged(model::PackError::Malformed {
                field: "pack.json",
                detail: "it is not the one with this root".to_owned(),
            }));
        }
        model::verify_ciphertext(&disk, progress).map_err(damaged)
    }

    /// Removes packs that nobody holds and fetches that nobody carries on, the oldest first, until at most `most` bytes
    /// are left. Gives what was removed.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn prune(&self, most: u64) -> Result<Vec<Blake3Digest>, CacheError> {
        let mut removed = Vec::new();
        let mut bytes = self.bytes()?;
        for root in self.roots(PARTIAL)? {
            if bytes <= most {
                break;
            }
            let length = disk_length(&self.partial(&root));
            if self.try_lock(&root)?.is_some() {
                remove_directory(&self.partial(&root))?;
                bytes = bytes.saturating_sub(length);
                removed.push(root);
            }
        }
        for entry in self.list()? {
            if bytes <= most {
                break;
            }
            if self.remove(&entry.root)? {
                bytes = bytes.saturating_sub(entry.bytes);
                removed.push(entry.root);
            }
        }
        Ok(removed)
    }

    /// Removes a pack, unless somebody holds it. False if somebody does, or if it is not here.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn remove(&self, root: &Blake3Digest) -> Result<bool, CacheError> {
        let path = self.pack(root);
        let _lock = match File::open(path.join(DISK)) {
            Ok(file) => match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => Some(lock),
                Err(_) => return Ok(false),
            },
            // Nobody can hold what has no disk.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_dir() => None,
            Err(_) => return Ok(false),
        };
        // Its name goes first: a removal that is cut off leaves a fetch that nobody carries on.
        let gone = self.directory.join(PARTIAL).join(format!("{TRASH}{root}"));
        remove_directory(&gone)?;
        fs::rename(&path, &gone).map_err(CacheError::io(&path))?;
        remove_directory(&gone)?;
        Ok(true)
    }

    /// Makes room for `needed` bytes of `root`, of which `reserved` are on the disk already.
    pub(crate) fn make_room(&self, root: &Blake3Digest, needed: u64, reserved: u64) -> Result<(), CacheError> {
        self.clear_trash()?;
        let missing = needed.saturating_sub(reserved);
        let packs = self.list()?;
        let abandoned = self.abandoned(root)?;
        let total = |lengths: &mut dyn Iterator<Item = u64>| lengths.fold(0, u64::saturating_add);
        let unheld = total(&mut packs.iter().filter(|entry| !entry.held).map(|entry| entry.bytes));
        let removable = unheld.saturating_add(total(&mut abandoned.iter().map(|fetch| fetch.bytes)));
        let whole = total(&mut packs.iter().map(|entry| entry.bytes));
        let mut kept = whole.saturating_add(self.partial_bytes(Some(root))?);
        let lacks = |kept: u64, removable: u64| -> Result<Option<CacheError>, CacheError> {
            let free = free_bytes(&self.directory)?;
            let held = kept.saturating_sub(removable);
            Ok(if held.saturating_add(needed) > self.quota {
                Some(CacheError::Quota { root: *root, needed, quota: self.quota, held })
            } else if free.saturating_add(removable) < missing {
                Some(CacheError::DiskFull { path: self.directory.clone(), needed: missing, free })
            } else {
                None
            })
        };
        // Nothing is removed for a pack that finds no room anyway.
        if let Some(error) = lacks(kept, removable)? {
            return Err(error);
        }
        // Fetches that nobody carries on go first: whole packs are of use to somebody.
        for fetch in abandoned {
            if lacks(kept, 0)?.is_none() {
                return Ok(());
            }
            remove_directory(&self.partial(&fetch.root))?;
            kept = kept.saturating_sub(fetch.bytes);
        }
        for entry in packs.iter().filter(|entry| !entry.held) {
            if lacks(kept, 0)?.is_none() {
                return Ok(());
            }
            if self.remove(&entry.root)? {
                kept = kept.saturating_sub(entry.bytes);
            }
        }
        lacks(kept, 0)?.map_or(Ok(()), Err)
    }

    /// Fetches of other packs that nobody carries on.
    fn abandoned(&self, root: &Blake3Digest) -> Result<Vec<Abandoned>, CacheError> {
        let mut fetches = Vec::new();
        for other in self.roots(PARTIAL)?.into_iter().filter(|other| other != root) {
            if let Some(lock) = self.try_lock(&other)? {
                fetches.push(Abandoned { root: other, bytes: disk_length(&self.partial(&other)), _lock: lock });
            }
        }
        Ok(fetches)
    }

    /// The lock of a fetch, if nobody has it.
    pub(crate) fn try_lock(&self, root: &Blake3Digest) -> Result<Option<Flock<File>>, CacheError> {
        let path = self.directory.join(PARTIAL).join(format!("{root}.lock"));
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(CacheError::io(&path))?;
        Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).ok())
    }

    pub(crate) fn pack(&self, root: &Blake3Digest) -> PathBuf {
        self.directory.join(PACKS).join(root.to_string())
    }

    pub(crate) fn partial(&self, root: &Blake3Digest) -> PathBuf {
        self.directory.join(PARTIAL).join(root.to_string())
    }

    fn index(&self, root: &Blake3Digest) -> Result<PackIndex, CacheError> {
        use io::Read as _;
        let path = self.pack(root).join(model::INDEX_FILE);
        let mut bytes = Vec::new();
        let cap = u64::try_from(PackIndex::MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        let damaged = |source| CacheError::Damaged { root: *root, source };
        let malformed = |detail: &str| model::PackError::Malformed { field: "pack.json", detail: detail.to_owned() };
        let mut read = || File::open(&path)?.take(cap).read_to_end(&mut bytes);
        match read() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged(malformed("it is missing"))),
            Err(error) => return Err(CacheError::io(&path)(error)),
        }
        if Blake3Digest::from_bytes(*blake3::hash(&bytes).as_bytes()) != *root {
            return Err(damaged(malformed("it is not the one with this root")));
        }
        PackIndex::parse(&bytes).map_err(damaged)
    }

    fn roots(&self, below: &str) -> Result<Vec<Blake3Digest>, CacheError> {
        let path = self.directory.join(below);
        let names = fs::read_dir(&path).map_err(CacheError::io(&path))?;
        Ok(names.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    fn partial_bytes(&self, but: Option<&Blake3Digest>) -> Result<u64, CacheError> {
        let roots = self.roots(PARTIAL)?;
        let lengths = roots.iter().filter(|root| Some(*root) != but).map(|root| disk_length(&self.partial(root)));
        Ok(lengths.fold(0, u64::saturating_add))
    }

    /// Removals that were cut off.
    fn clear_trash(&self) -> Result<(), CacheError> {
        let path = self.directory.join(PARTIAL);
        for entry in fs::read_dir(&path).map_err(CacheError::io(&path))?.flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(TRASH)) {
                remove_directory(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Bytes that a disk takes on its file system.
pub(crate) fn disk_length(directory: &Path) -> u64 {
    directory.join(DISK).metadata().map_or(0, |metadata| metadata.blocks().saturating_mul(512))
}

fn free_bytes(path: &Path) -> Result<u64, CacheError> {
    let status = nix::sys::statvfs::statvfs(path).map_err(|error| CacheError::io(path)(error.into()))?;
    Ok(status.blocks_available().saturating_mul(status.fragment_size()))
}

fn remove_directory(path: &Path) -> Result<(), CacheError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CacheError::io(path)(error)),
        _ => Ok(()),
    }
}

const PACKS: &str = "packs";
const PARTIAL: &str = "partial";
const USED: &str = "used";
const TRASH: &str = "removed-";
/// Header of a disk, before `pack.json` (`docs/model-pack.md`).
const HEADER: usize = 4096;
