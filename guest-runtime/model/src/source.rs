// SPDX-License-Identifier: Apache-2.0
//! Where a pack is read from.

use crate::{Object, PackError, PackIndex};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use types::Document;

/// A stored pack: its public part, parsed and checked, and its objects.
pub trait Source: Sync {
    /// The public part.
    fn index(&self) -> &PackIndex;

    /// The ciphertext of an object. At most [`Object::length`] bytes of it are read, at any offset and by several threads.
    ///
    /// # Errors
    /// The object cannot be opened or its stored length differs.
    fn open(&self, object: &Object) -> Result<Box<dyn ReadAt + '_>, PackError>;
}

/// A pack as a directory: `pack.json` and `objects/000000`, `objects/000001` and so on.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    index: PackIndex,
}

impl Directory {
    /// Reads the public part of the pack in `path`.
    ///
    /// # Errors
    /// The directory is no pack.
    pub fn open(path: &Path) -> Result<Self, PackError> {
        let name = path.join(INDEX_FILE);
        let file = File::open(&name).map_err(PackError::io(format!("opening {}", name.display())))?;
        let mut bytes = Vec::new();
        let cap = u64::try_from(PackIndex::MAX_BYTES).unwrap_or(u64::MAX);
        file.take(cap.saturating_add(1)).read_to_end(&mut bytes).map_err(PackError::reading(INDEX_FILE))?;
        Ok(Self { path: path.to_owned(), index: PackIndex::parse(&bytes)? })
    }
}

impl Source for Directory {
    fn index(&self) -> &PackIndex {
        &self.index
    }

    fn open(&self, object: &Object) -> Result<Box<dyn ReadAt + '_>, PackError> {
        let name = object_file(object.index);
        let file = File::open(self.path.join(&name)).map_err(PackError::io(format!("opening {name}")))?;
        let length = file.metadata().map_err(PackError::io(format!("reading {name}")))?.len();
        check_length(&name, object, length)?;
        Ok(Box::new(file))
    }
}

/// The stored length of an object must be the one of its index entry.
fn check_length(name: &str, object: &Object, stored: u64) -> Result<(), PackError> {
    match stored.cmp(&object.length) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(PackError::Truncated { field: name.to_owned() }),
        std::cmp::Ordering::Greater => {
            Err(PackError::malformed("objects", format!("{name} is longer than pack.json says")))
        }
    }
}

/// Bytes at any offset: a disk, a file, or memory in tests. Short reads are allowed, as for `pread`.
pub trait ReadAt: Sync {
    /// Reads up to `buffer.len()` bytes from `offset`; 0 only at the end.
    ///
    /// # Errors
    /// As the device says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Total number of bytes.
    ///
    /// # Errors
    /// As the device says.
    fn size(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buffer, offset)
    }

    /// By seeking: the metadata of a block device says 0.
    fn size(&self) -> io::Result<u64> {
        io::Seek::seek(&mut &*self, io::SeekFrom::End(0))
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        self.get(start..).unwrap_or_default().read(buffer)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(u64::try_from(self.len()).unwrap_or(u64::MAX))
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.as_slice().read_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.as_slice().size()
    }
}

/// Fills `buffer` from `offset`. What the device fails to give is asked for again a few times, from where it broke off.
pub(crate) fn read_exact_at(device: &(impl ReadAt + ?Sized), mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    let mut failures = 0;
    while !buffer.is_empty() {
        match device.read_at(buffer, offset) {
            Ok(length @ 1..) => {
                buffer = buffer.get_mut(length..).unwrap_or_default();
                offset = offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
                failures = 0;
            }
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if failures == REPEATS => return Err(error),
            Err(_) => {
                failures = failures.saturating_add(1);
                std::thread::sleep(PAUSE.saturating_mul(failures));
            }
        }
    }
    Ok(())
}

/// How often a read that failed is tried again.
const REPEATS: u32 = 3;
/// Before the first repetition; twice and three times as long before the others.
const PAUSE: Duration = Duration::from_millis(50);
/// File name of the public part.
pub const INDEX_FILE: &str = "pack.json";
/// Directory of the objects.
pub(crate) const OBJECTS_DIRECTORY: &str = "objects";

/// Path of an object in a pack's directory, relative to it.
#[must_use]
pub fn object_file(number: u32) -> String {
    format!("{OBJECTS_DIRECTORY}/{number:06}")
}
