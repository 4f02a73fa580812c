// SPDX-License-Identifier: Apache-2.0
//! The kernel as the firmware measures it.
//!
//! QEMU before 10.0 writes loader fields into the kernel's setup header before it hands the kernel to the
//! firmware, so the measured digest is not that of the file. Since 10.0 it also offers the untouched file
//! (`etc/boot/kernel`), which EDK II takes since 2025.02.
//!
//! Source: QEMU 7.2.22 and 10.0 `x86_load_linux`; Linux `Documentation/arch/x86/boot.rst` for the header.
//! QEMU 7.2.0 itself (not its stable updates) appends random bytes to the kernel: no value can be computed,
//! and none is offered.

use serde::{Deserialize, Serialize};
use types::Sha384Digest;

use crate::{authenticode, memory};

/// What the measurement of a kernel depends on, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelMeasurements {
    /// Authenticode digest of the file.
    pub unpatched: Sha384Digest,
    /// Highest address at which the kernel takes an initrd, from its setup header.
    pub initrd_address_max: u32,
    /// Length of the initrd in bytes.
    pub initrd_len: u32,
    /// Digests after QEMU before 10.0 patched the header, one for each place of the initrd that was asked for.
    pub patched: Vec<PatchedKernel>,
}

/// Digest of a kernel that was patched for one place of the initrd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchedKernel {
    /// Guest address of the initrd, as QEMU wrote it.
    pub initrd_address: u32,
    /// Authenticode digest of the patched kernel.
    pub digest: Sha384Digest,
}

/// Why a kernel cannot be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// Not a PE image with an EFI stub.
    #[error(transparent)]
    Pe(#[from] authenticode::PeError),
    /// Not a bzImage of boot protocol 2.03 or later.
    #[error("the kernel is not a bzImage with boot protocol 2.03 or later")]
    NotBzImage,
    /// QEMU would refuse the initrd on this machine.
    #[error("an initrd of {len} bytes does not fit on a machine of {memory_mib} MiB")]
    InitrdTooLarge {
        /// Length of the initrd.
        len: u64,
        /// Memory of the machine.
        memory_mib: u32,
    },
}

impl KernelMeasurements {
    /// Measures `kernel` for an initrd of `initrd_len` bytes; `memory_mib` lists the machines that QEMU before
    /// 10.0 will start (each distinct place of the initrd costs one hash over the kernel).
    pub(crate) fn of(kernel: &[u8], initrd_len: u64, memory_mib: &[u32]) -> Result<Self, KernelError> {
        let header = SetupHeader::read(kernel)?;
        let too_large = |memory_mib| KernelError::InitrdTooLarge { len: initrd_len, memory_mib };
        let mut measurements = Self {
            unpatched: authenticode::digest(kernel)?,
            initrd_address_max: header.initrd_address_max,
            initrd_len: u32::try_from(initrd_len).map_err(|_| too_large(0))?,
            patched: Vec::new(),
        };
        for mib in memory_mib {
            let initrd_address = measurements.initrd_address(*mib).ok_or(too_large(*mib))?;
            if measurements.patched.iter().all(|known| known.initrd_address != initrd_address) {
                let bytes = header.patch(kernel, initrd_address, measurements.initrd_len);
                let digest = authenticode::digest(&bytes)?;
                measurements.patched.push(PatchedKernel { initrd_address, digest });
            }
        }
        measurements.patched.sort_unstable_by_key(|patched| patched.initrd_address);
        Ok(measurements)
    }

    /// Where QEMU puts the initrd of a machine with this memory; `None` when it does not fit.
    pub(crate) fn initrd_address(&self, memory_mib: u32) -> Option<u32> {
        let low = memory::below_4g(u64::from(memory_mib) << 20);
        let tables = low.checked_sub(ACPI_DATA_LEN)?;
        let mut max = u64::from(self.initrd_address_max);
        if max >= tables {
            max = tables.checked_sub(1)?;
        }
        let len = u64::from(self.initrd_len);
        if len >= max {
            return None;
        }
        u32::try_from(max.checked_sub(len)? & !0xfff).ok()
    }
}

/// The kernel as QEMU before 10.0 hands it to the firmware of a machine with `memory_mib` MiB of memory.
///
/// # Errors
/// [`KernelError`].
pub fn patched_by_qemu(kernel: &[u8], initrd_len: u64, memory_mib: u32) -> Result<Vec<u8>, KernelError> {
    let header = SetupHeader::read(kernel)?;
    let measurements = KernelMeasurements::of(kernel, initrd_len, &[])?;
    let initrd_address =
        measurements.initrd_address(memory_mib).ok_or(KernelError::InitrdTooLarge { len: initrd_len, memory_mib })?;
    Ok(header.patch(kernel, initrd_address, measurements.initrd_len))
}

/// What QEMU reads from the setup header.
struct SetupHeader {
    loadflags: u8,
    initrd_address_max: u32,
}

impl SetupHeader {
    fn read(kernel: &[u8]) -> Result<Self, KernelError> {
        let header = kernel.first_chunk::<HEADER_LEN>().ok_or(KernelError::NotBzImage)?;
        let field = |at: usize| header.get(at..).and_then(<[u8]>::first_chunk::<4>).map(|b| u32::from_le_bytes(*b));
        let (Some(magic), Some(version), Some(xloadflags), Some(max)) =
            (field(HEADER_MAGIC), field(VERSION), field(XLOADFLAGS), field(INITRD_ADDR_MAX))
        else {
            return Err(KernelError::NotBzImage);
        };
        let [loadflags, ..] = field(LOADFLAGS).unwrap_or_default().to_le_bytes();
        let version = version & 0xffff;
        if magic != u32::from_le_bytes(*b"HdrS") || version < 0x203 || loadflags & LOADED_HIGH == 0 {
            return Err(KernelError::NotBzImage);
        }
        let above_4g = version >= 0x20c && xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0;
        Ok(Self { loadflags, initrd_address_max: if above_4g { u32::MAX } else { max } })
    }

    /// Writes what QEMU writes: loader type B0, heap flag and end, command line pointer, initrd.
    fn patch(&self, kernel: &[u8], initrd_address: u32, initrd_len: u32) -> Vec<u8> {
        let mut out = kernel.to_vec();
        let mut write = |at: usize, bytes: &[u8]| {
            for (to, from) in out.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        write(TYPE_OF_LOADER, &[LOADER_QEMU]);
        write(LOADFLAGS, &[self.loadflags | CAN_USE_HEAP]);
        write(RAMDISK_IMAGE, &initrd_address.to_le_bytes());
        write(RAMDISK_SIZE, &initrd_len.to_le_bytes());
        write(HEAP_END_PTR, &HEAP_END.to_le_bytes());
        write(CMD_LINE_PTR, &COMMAND_LINE_ADDRESS.to_le_bytes());
        out
    }
}

/// QEMU's `acpi_data_size`: memory kept free below the end of low memory.
const ACPI_DATA_LEN: u64 = 0x2_0000 + 0x8000;
const HEADER_LEN: usize = 0x268;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const HEAP_END_PTR: usize = 0x224;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const XLOADFLAGS: usize = 0x236;
const LOADED_HIGH: u8 = 0x01;
const CAN_USE_HEAP: u8 = 0x80;
const XLF_CAN_BE_LOADED_ABOVE_4G: u32 = 1 << 1;
const LOADER_QEMU: u8 = 0xb0;
const COMMAND_LINE_ADDRESS: u32 = 0x2_0000;
/// Command line address − real mode address (0x10000) − 0x200.
const HEAP_END: u16 = 0xfe00;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A PE image that is also a bzImage, as far as this crate looks.
    pub(crate) fn kernel(version: u16, xloadflags: u8, initrd_max: u32) -> Vec<u8> {
        let mut kernel = authenticode::tests::image(0x1000, 0);
        kernel[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        kernel[VERSION..VERSION + 2].copy_from_slice(&version.to_le_bytes());
        kernel[TYPE_OF_LOADER] = 0;
        kernel[LOADFLAGS] = 1;
        kernel[INITRD_ADDR_MAX..INITRD_ADDR_MAX + 4].copy_from_slice(&initrd_max.to_le_bytes());
        kernel[XLOADFLAGS] = xloadflags;
        kernel
    }

    #[test]
    fn initrd_lies_below_the_lowest_limit() {
        let at = |version, flags, max, mib| {
            KernelMeasurements::of(&kernel(version, flags, max), 0x1234, &[]).unwrap().initrd_address(mib)
        };
        // The end of low memory, less the room for ACPI tables.
        assert_eq!(at(0x20f, 2, 0x7fff_ffff, 1024), Some((0x4000_0000 - 0x2_8000 - 1 - 0x1234) & !0xfff));
        assert_eq!(at(0x20f, 2, 0x7fff_ffff, 65536), Some((0x8000_0000_u32 - 0x2_8000 - 1 - 0x1234) & !0xfff));
        assert_eq!(at(0x20f, 2, 0, 2815), Some((0xaff0_0000_u32 - 0x2_8000 - 1 - 0x1234) & !0xfff));
        // The header's own limit counts only without the above-4G flag.
        assert_eq!(at(0x20f, 0, 0x37ff_ffff, 65536), Some((0x37ff_ffff - 0x1234) & !0xfff));
        assert_eq!(at(0x20b, 2, 0x37ff_ffff, 65536), Some((0x37ff_ffff - 0x1234) & !0xfff));
        assert_eq!(at(0x20b, 2, 0x1000, 65536), None);
    }

    #[test]
    fn patch_touches_exactly_the_loader_fields() {
        let before = kernel(0x20f, 3, 0x7fff_ffff);
        let after = patched_by_qemu(&before, 0x5000, 512).unwrap();
        let changed: Vec<usize> = (0..before.len()).filter(|i| before[*i] != after[*i]).collect();
        assert!(
            changed.iter().all(|i| matches!(i, 0x210 | 0x211 | 0x218..0x220 | 0x224 | 0x225 | 0x228..0x22c)),
            "{changed:x?}"
        );
        assert_eq!(after[0x210], 0xb0);
        assert_eq!(after[0x211], 0x81);
        assert_eq!(after[0x21c..0x220], 0x5000_u32.to_le_bytes());
        assert_eq!(after[0x224..0x226], [0, 0xfe]);
        assert_eq!(after[0x228..0x22c], [0, 0, 2, 0]);
    }

    #[test]
    fn machines_with_the_same_place_share_a_digest() {
        let measured = KernelMeasurements::of(&kernel(0x20f, 2, 0), 9, &[4096, 65536, 512]).unwrap();
        assert_eq!(measured.patched.len(), 2);
        assert!(measured.patched.iter().all(|patched| patched.digest != measured.unpatched));
    }

    #[test]
    fn other_kernels_and_large_initrds_are_refused() {
        assert_eq!(KernelMeasurements::of(&[0; 64], 1, &[]), Err(KernelError::NotBzImage));
        assert_eq!(KernelMeasurements::of(&kernel(0x202, 2, 0), 1, &[]), Err(KernelError::NotBzImage));
        let too_large = KernelMeasurements::of(&kernel(0x20f, 2, 0), 512 << 20, &[512]);
        assert_eq!(too_large, Err(KernelError::InitrdTooLarge { len: 512 << 20, memory_mib: 512 }));
    }
}
