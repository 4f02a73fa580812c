// SPDX-License-Identifier: Apache-2.0
//! A pack that is not whole yet: its disk, and which objects of it are verified.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::disk::Layout;
use model::{Object, PackIndex};
use nix::fcntl::{FallocateFlags, Flock, fallocate};
use serde::{Deserialize, Serialize};

use crate::error::CacheError;

/// The disk, with the lock of the fetch: whoever still writes to it keeps others out.
#[derive(Debug)]
pub(crate) struct Guarded {
    file: File,
    _lock: Arc<Flock<File>>,
}

impl Guarded {
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }
}

/// A pack while it is fetched.
pub(crate) struct Partial {
    directory: PathBuf,
    pub(crate) disk: Arc<Guarded>,
    noted: Noted,
}

/// `progress.json`: what is known to be on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Noted {
    /// Objects that were verified and synced.
    done: Vec<u32>,
    /// The object that is on its way, and how many of its bytes were written; they are hashed again.
    current: Option<(u32, u64)>,
}

impl Partial {
    /// Opens or begins the disk of a pack in `directory`, with all of its room reserved.
    pub(crate) fn open(
        directory: &Path,
        index: &PackIndex,
        layout: &Layout,
        lock: Arc<Flock<File>>,
    ) -> Result<Self, CacheError> {
        fs::create_dir_all(directory).map_err(CacheError::io(directory))?;
        let path = directory.join(DISK);
        let open = || -> std::io::Result<File> {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            if file.metadata()?.len() != layout.length {
                file.set_len(0)?;
                file.set_len(layout.length)?;
                let _ = fs::remove_file(directory.join(NOTED));
            }
            file.write_all_at(&layout.head, 0)?;
            Ok(file)
        };
        let file = open().map_err(CacheError::io(&path))?;
        let length = i64::try_from(layout.length).unwrap_or(i64::MAX);
        match fallocate(&file, FallocateFlags::empty(), 0, length) {
            // Not every file system can reserve room: then a full disk shows while writing.
            Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => {}
            Err(error) => return Err(CacheError::io(&path)(error.into())),
        }
        let mut noted: Noted = read_small(&directory.join(NOTED))
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        noted.done.retain(|number| index.objects.iter().any(|object| object.index == *number));
        Ok(Self { directory: directory.to_owned(), disk: Arc::new(Guarded { file, _lock: lock }), noted })
    }

    pub(crate) fn has(&self, object: &Object) -> bool {
        self.noted.done.contains(&object.index)
    }

    /// How many bytes of an object were written before.
    pub(crate) fn present(&self, object: &Object) -> u64 {
        let current = self.noted.current.filter(|(number, _)| *number == object.index);
        current.map_or(0, |(_, bytes)| bytes.min(object.length))
    }

    /// Notes how far an object is.
    pub(crate) fn note(&mut self, object: &Object, bytes: u64) -> Result<(), CacheError> {
        self.noted.current = Some((object.index, bytes));
        self.write()
    }

    /// Notes that an object is whole. The disk was synced.
    pub(crate) fn done(&mut self, object: &Object) -> Result<(), CacheError> {
        self.noted.current = None;
        self.noted.done.push(object.index);
        self.write()
    }

    fn write(&self) -> Result<(), CacheError> {
        let path = self.directory.join(NOTED);
        let bytes = serde_json::to_vec(&self.noted).unwrap_or_default();
        write_atomically(&path, &bytes).map_err(CacheError::io(&path))
    }

    /// Moves the whole pack to `place`.
    pub(crate) fn finish(self, index: &[u8], place: &Path) -> Result<(), CacheError> {
        let pack = self.directory.join(model::INDEX_FILE);
        write_atomically(&pack, index).map_err(CacheError::io(&pack))?;
        self.disk.file().sync_all().map_err(CacheError::io(&self.directory))?;
        let _ = fs::remove_file(self.directory.join(NOTED));
        let rename = || -> std::io::Result<()> {
            File::open(&self.directory)?.sync_all()?;
            fs::rename(&self.directory, place)?;
            File::open(place.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        rename().map_err(CacheError::io(place))
    }
}

fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn read_small(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_NOTED).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// File name of the disk in a pack's directory.
pub(crate) const DISK: &str = "disk";
const NOTED: &str = "progress.json";
const MAX_NOTED: u64 = 256 * 1024;
