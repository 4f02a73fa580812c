// SPDX-License-Identifier: Apache-2.0
//! A pack on a raw disk, without a file system: how a guest gets it.
//!
//! ```text
//! 0      header, 4096 bytes: magic "CHRYPACK", version u32, header length u32, length of pack.json u64,
//!        length of the disk u64 (all little endian), zeros
//! 4096   pack.json, then zeros up to the next multiple of 4096
//! …      each object in order, each from a multiple of 4096, followed by zeros up to the next
//! ```
//!
//! The header says nothing that is used as an offset: places follow from the lengths in `pack.json`. Zeros between the
//! parts are not read; a digest covers every byte that is.

use crate::source::{ReadAt, Source, read_exact_at};
use crate::{Object, PackError, PackIndex, Progress};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use types::{CanonicalError, Document};

/// A pack on a disk, its public part read and checked.
#[derive(Debug)]
pub struct Disk<D> {
    device: D,
    index: PackIndex,
    /// Offset of each object.
    offsets: Vec<u64>,
}

impl<D: ReadAt> Disk<D> {
    /// Reads header and public part. The device must be exactly as long as the header and the objects' lengths say.
    ///
    /// # Errors
    /// The device holds no pack, or one that breaks a rule.
    pub fn open(device: D) -> Result<Self, PackError> {
        let mut header = [0; HEADER_LENGTH];
        read_exact_at(&device, &mut header, 0).map_err(PackError::reading("disk header"))?;
        let Header { index_length, disk_length } = Header::parse(&header)?;
        let mut bytes = vec![0; index_length];
        read_exact_at(&device, &mut bytes, HEADER_END).map_err(PackError::reading("pack.json"))?;
        let index = PackIndex::parse(&bytes)?;
        let (offsets, end) = places(&index, index_length)?;
        if disk_length != end {
            return Err(PackError::malformed("disk header", "its length of the disk is not the sum of the parts"));
        }
        match device.size().map_err(PackError::io("asking for the disk's length"))? {
            size if size < end => Err(PackError::Truncated { field: "disk".to_owned() }),
            size if size > end => Err(PackError::malformed("disk", "is longer than its header says")),
            _ => Ok(Self { device, index, offsets }),
        }
    }
}

impl<D: ReadAt> Source for Disk<D> {
    fn index(&self) -> &PackIndex {
        &self.index
    }

    fn open(&self, object: &Object) -> Result<Box<dyn ReadAt + '_>, PackError> {
        let place = usize::try_from(object.index).ok().and_then(|number| self.offsets.get(number));
        let offset = *place.ok_or_else(|| PackError::malformed("objects", "no such object on the disk"))?;
        Ok(Box::new(Window { device: &self.device, offset, length: object.length }))
    }
}

/// Where everything of a pack stands on its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// What the disk begins with: header and `pack.json`.
    pub head: Vec<u8>,
    /// Offset of each object, in order.
    pub offsets: Vec<u64>,
    /// Length of the disk. What no part covers is zero.
    pub length: u64,
}

impl Layout {
    /// The layout of a pack: a function of its public part alone.
    ///
    /// # Errors
    /// The objects do not fit on a disk.
    pub fn of(index: &PackIndex) -> Result<Self, PackError> {
        let not_written: fn(CanonicalError) -> PackError = |error| PackError::malformed("pack.json", error);
        let bytes = index.to_canonical().map_err(not_written)?;
        let (offsets, length) = places(index, bytes.len())?;
        let mut head = Header { index_length: bytes.len(), disk_length: length }.to_bytes();
        head.extend(bytes);
        Ok(Self { head, offsets, length })
    }
}

/// Writes a pack as a disk image to `path`, by a temporary file beside it. It copies ciphertext as it is: no key is
/// needed and nothing but lengths is checked ([`crate::verify_ciphertext`] checks the digests).
///
/// # Errors
/// The pack is incomplete, or writing failed. Then there is no file at `path` that was not there before.
pub fn compose(source: &dyn Source, path: &Path, progress: Progress<'_>) -> Result<(), PackError> {
    let index = source.index();
    let Layout { head, offsets, length } = Layout::of(index)?;
    let writing = || PackError::io(format!("writing {}", path.display()));
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = tempfile::NamedTempFile::new_in(directory).map_err(writing())?;
    let file = temporary.as_file_mut();
    file.set_len(length).map_err(writing())?;
    file.write_all(&head).map_err(writing())?;
    for (object, offset) in index.objects.iter().zip(offsets) {
        file.seek(SeekFrom::Start(offset)).map_err(writing())?;
        copy(&*source.open(object)?, object, file, progress, writing)?;
    }
    file.sync_all().map_err(writing())?;
    temporary.persist(path).map_err(|error| writing()(error.error))?;
    Ok(())
}

fn copy<E: FnOnce(io::Error) -> PackError>(
    from: &dyn ReadAt,
    object: &Object,
    to: &mut File,
    progress: Progress<'_>,
    writing: impl Fn() -> E,
) -> Result<(), PackError> {
    let mut buffer = vec![0; COPY_BYTES];
    let mut left = object.length;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..length).unwrap_or_default();
        let at = object.length.saturating_sub(left);
        read_exact_at(from, part, at).map_err(PackError::reading(format!("object {}", object.index)))?;
        to.write_all(part).map_err(writing())?;
        let done = u64::try_from(length).unwrap_or(u64::MAX);
        left = left.saturating_sub(done);
        progress(done);
    }
    Ok(())
}

/// The offset of each object and the end of the last, from the lengths alone.
fn places(index: &PackIndex, index_length: usize) -> Result<(Vec<u64>, u64), PackError> {
    let too_long = || PackError::malformed("objects", "do not fit on a disk");
    let aligned = |end: u64| end.checked_next_multiple_of(ALIGNMENT).ok_or_else(too_long);
    let index_length = u64::try_from(index_length).map_err(|_| too_long())?;
    let mut end = aligned(HEADER_END.checked_add(index_length).ok_or_else(too_long)?)?;
    let mut offsets = Vec::with_capacity(index.objects.len());
    for object in &index.objects {
        offsets.push(end);
        end = aligned(end.checked_add(object.length).ok_or_else(too_long)?)?;
    }
    Ok((offsets, end))
}

struct Header {
    index_length: usize,
    disk_length: u64,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_LENGTH]) -> Result<Self, PackError> {
        let broken = |rule: &str| PackError::malformed("disk header", rule);
        let (magic, rest) = take::<8>(bytes)?;
        let (version, rest) = take::<4>(rest)?;
        let (header_length, rest) = take::<4>(rest)?;
        let (index_length, rest) = take::<8>(rest)?;
        let (disk_length, zeros) = take::<8>(rest)?;
        if &magic != MAGIC {
            return Err(broken("this disk holds no model pack"));
        }
        if u32::from_le_bytes(version) != VERSION || u32::from_le_bytes(header_length) != HEADER_LENGTH_U32 {
            return Err(broken("its version is not 1"));
        }
        if zeros.iter().any(|byte| *byte != 0) {
            return Err(broken("its reserved bytes are not zero"));
        }
        let index_length = usize::try_from(u64::from_le_bytes(index_length)).unwrap_or(usize::MAX);
        if !(1..=PackIndex::MAX_BYTES).contains(&index_length) {
            return Err(broken("pack.json is empty or longer than 1 MiB"));
        }
        Ok(Self { index_length, disk_length: u64::from_le_bytes(disk_length) })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(HEADER_LENGTH_U32.to_le_bytes());
        bytes.extend(u64::try_from(self.index_length).unwrap_or(u64::MAX).to_le_bytes());
        bytes.extend(self.disk_length.to_le_bytes());
        bytes.resize(HEADER_LENGTH, 0);
        bytes
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), PackError> {
    let (head, rest) =
        bytes.split_first_chunk().ok_or_else(|| PackError::Truncated { field: "disk header".to_owned() })?;
    Ok((*head, rest))
}

/// A part of a device.
struct Window<'d, D> {
    device: &'d D,
    offset: u64,
    length: u64,
}

impl<D: ReadAt> ReadAt for Window<'_, D> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.length.saturating_sub(offset);
        let allowed = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let place = self.offset.checked_add(offset).ok_or(io::ErrorKind::InvalidInput)?;
        self.device.read_at(buffer.get_mut(..allowed).unwrap_or_default(), place)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.length)
    }
}

const MAGIC: &[u8; 8] = b"CHRYPACK";
const VERSION: u32 = 1;
const HEADER_LENGTH: usize = 4096;
const HEADER_LENGTH_U32: u32 = 4096;
const HEADER_END: u64 = 4096;
const ALIGNMENT: u64 = 4096;
const COPY_BYTES: usize = 1 << 20;
