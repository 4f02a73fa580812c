// SPDX-License-Identifier: Apache-2.0
//! Registers of a real device: sysfs' `resource0`, mapped. The only module here with unsafe code.
#![allow(unsafe_code, reason = "device registers are reached through a mapping, by volatile accesses")]

use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::registers::{AccessError, RegisterSpace};

/// A mapped base address register 0.
#[derive(Debug)]
pub struct Bar0 {
    base: NonNull<u32>,
    bytes: NonZeroUsize,
}

/// Why it could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum Bar0Error {
    /// Smaller than the registers that are used.
    #[error("resource0 has {found:#x} bytes where {needed:#x} are needed")]
    TooSmall {
        /// Its size in bytes.
        found: u64,
        /// The size in bytes that was asked for.
        needed: u32,
    },
    /// The system's reason.
    #[error("resource0 cannot be mapped: {0}")]
    Map(#[source] std::io::Error),
}

impl Bar0 {
    /// Maps the first `bytes` of an open `resource0`.
    ///
    /// # Errors
    /// [`Bar0Error`]: smaller than `bytes`, or the kernel refuses (lockdown, or a driver that claims the registers).
    pub fn map(file: &File, bytes: u32) -> Result<Self, Bar0Error> {
        let found = file.metadata().map_err(Bar0Error::Map)?.len();
        let length = usize::try_from(bytes).ok().and_then(NonZeroUsize::new);
        let length =
            length.filter(|_| found >= u64::from(bytes)).ok_or(Bar0Error::TooSmall { found, needed: bytes })?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice; nothing else refers to it.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0) }
            .map_err(|error| Bar0Error::Map(error.into()))?;
        Ok(Self { base: base.cast(), bytes: length })
    }

    fn register(&self, offset: u32) -> Result<NonNull<u32>, AccessError> {
        let size = self.bytes.get();
        let index = usize::try_from(offset).map_err(|_| AccessError { offset, size })?;
        if !offset.is_multiple_of(4) || index.checked_add(4).is_none_or(|end| end > size) {
            return Err(AccessError { offset, size });
        }
        // SAFETY: `index` is a multiple of four, and four bytes from it lie inside the mapping.
        Ok(unsafe { self.base.byte_add(index) })
    }
}

impl RegisterSpace for Bar0 {
    fn read(&mut self, offset: u32) -> Result<u32, AccessError> {
        // SAFETY: `register` gives aligned addresses inside the mapping, which lives as long as `self`.
        Ok(unsafe { self.register(offset)?.read_volatile() })
    }

    fn write(&mut self, offset: u32, value: u32) -> Result<(), AccessError> {
        // SAFETY: as above; the mapping is writable.
        unsafe { self.register(offset)?.write_volatile(value) };
        Ok(())
    }

    fn pause(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

impl Drop for Bar0 {
    fn drop(&mut self) {
        // SAFETY: the mapping of `map`, which nobody else has.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_those_of_the_file_and_no_others() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        file.set_len(8192).unwrap();
        let mut space = Bar0::map(&file, 4096).unwrap();
        assert_eq!(space.read(4).unwrap(), 0x0807_0605);
        space.write(4092, 0xdead_beef).unwrap();
        assert_eq!(space.read(4092).unwrap(), 0xdead_beef);
        for offset in [1, 2, 4093, 4096, 8188, u32::MAX] {
            assert_eq!(space.read(offset), Err(AccessError { offset, size: 4096 }));
            assert!(space.write(offset, 0).is_err());
        }
        assert!(matches!(Bar0::map(&file, 8196), Err(Bar0Error::TooSmall { found: 8192, needed: 8196 })));
        assert!(matches!(Bar0::map(&file, 0), Err(Bar0Error::TooSmall { .. })));
    }
}
