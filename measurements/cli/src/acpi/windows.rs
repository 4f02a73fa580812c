// SPDX-License-Identifier: Apache-2.0
//! Where the firmware puts 64-bit PCI addresses.
//!
//! Source: EDK II `OvmfPkg/Library/PlatformInitLib/MemDetect.c`, stable 2025.02 to 2026.05: `PlatformGetFirstNonAddress`,
//! `PlatformAddressWidthFromCpuid`, `PlatformDynamicMmioWindow` and `PlatformReservationConflictCB`.

use super::{AcpiError, fw_cfg::Directory, qtest::Machine};

/// Width of the guest's physical addresses, as far as the firmware uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhysicalBits(u8);

impl PhysicalBits {
    /// What emulated processors report.
    pub const EMULATED: Self = Self(40);

    /// Takes the width that the processor reports. `None` below 40 (what the firmware does then depends on the
    /// processor's maker) and above 52. Firmware that was built without five-level paging, as Debian's, uses no more than
    /// 46 bits.
    #[must_use]
    pub const fn new(bits: u8) -> Option<Self> {
        match bits {
            40..=46 => Some(Self(bits)),
            47..=52 => Some(Self(46)),
            _ => None,
        }
    }
}

/// A range of the e820 map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
    is_memory: bool,
}

/// The lowest address of the 64-bit window on this machine.
pub(super) fn base(machine: &mut Machine, directory: &Directory, bits: PhysicalBits) -> Result<u64, AcpiError> {
    let map = parse_map(&directory.file(machine, "etc/e820")?)?;
    let hotplug = directory.optional_file(machine, "etc/reserved-memory-end")?;
    let hotplug_end = hotplug.as_deref().and_then(<[u8]>::first_chunk).map(|bytes| u64::from_le_bytes(*bytes));
    window(&map, hotplug_end, bits).ok_or(AcpiError::NoWindow(bits.0))
}

/// Entries of 20 bytes: address, length, type (1 is memory).
fn parse_map(bytes: &[u8]) -> Result<Vec<Range>, AcpiError> {
    let entry = |bytes: &[u8]| {
        let (start, rest) = bytes.split_first_chunk::<8>()?;
        let (len, kind) = rest.split_first_chunk::<8>()?;
        let start = u64::from_le_bytes(*start);
        let end = start.checked_add(u64::from_le_bytes(*len))?;
        Some(Range { start, end, is_memory: kind == 1_u32.to_le_bytes() })
    };
    bytes.chunks_exact(20).map(entry).collect::<Option<_>>().ok_or(AcpiError::FwCfg("etc/e820 is malformed"))
}

fn window(map: &[Range], hotplug_end: Option<u64>, PhysicalBits(bits): PhysicalBits) -> Option<u64> {
    let memory_end = map.iter().filter(|range| range.is_memory).map(|range| range.end).fold(FOUR_GIB, u64::max);
    let first_free = hotplug_end.unwrap_or(memory_end);
    // Aligned to the size of the smallest window, which is a power of two above 1 GiB.
    let base = first_free.checked_next_multiple_of(SMALLEST_WINDOW)?;
    let space = 1_u64.checked_shl(u32::from(bits))?;
    let size = space / 8;
    // A machine whose memory leaves no room for an eighth of the address space keeps the smallest window.
    if SMALLEST_WINDOW >= size || base.checked_add(size)? >= space {
        return (base.checked_add(SMALLEST_WINDOW)? <= space).then_some(base);
    }
    let mut base = space.checked_sub(size)?;
    for range in map {
        if range.start.max(base) < range.end.min(base.checked_add(size)?) {
            base = range.start.checked_sub(size)? & !size.checked_sub(1)?;
        }
    }
    Some(base)
}

const FOUR_GIB: u64 = 1 << 32;
/// `PcdPciMmio64Size`: 32 GiB.
const SMALLEST_WINDOW: u64 = 1 << 35;

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const LOW: Range = Range { start: 0, end: 2 * GIB, is_memory: true };

    fn high(end: u64) -> Range {
        Range { start: FOUR_GIB, end, is_memory: true }
    }

    #[test]
    fn the_top_eighth_of_the_address_space_is_taken() {
        assert_eq!(window(&[LOW], None, PhysicalBits(40)), Some(896 * GIB));
        assert_eq!(window(&[LOW, high(66 * GIB)], None, PhysicalBits(46)), Some((1 << 46) - (1 << 43)));
    }

    #[test]
    fn firmware_uses_at_most_46_bits() {
        assert_eq!(PhysicalBits::new(52), PhysicalBits::new(46));
        assert_ne!(PhysicalBits::new(45), PhysicalBits::new(46));
        assert_eq!(PhysicalBits::new(40), Some(PhysicalBits::EMULATED));
        assert_eq!([PhysicalBits::new(39), PhysicalBits::new(53)], [None, None]);
    }

    #[test]
    fn reserved_ranges_push_it_down() {
        // The range that QEMU reserves for HyperTransport on AMD processors.
        let reserved = Range { start: 0xfd_0000_0000, end: 0x100_0000_0000, is_memory: false };
        assert_eq!(window(&[LOW, reserved], None, PhysicalBits(40)), Some(768 * GIB));
        assert_eq!(window(&[LOW, reserved], None, PhysicalBits(46)), Some((1 << 46) - (1 << 43)));
    }

    #[test]
    fn small_address_spaces_keep_the_smallest_window() {
        assert_eq!(window(&[LOW], None, PhysicalBits(36)), Some(32 * GIB));
        assert_eq!(window(&[LOW, high(40 * GIB)], None, PhysicalBits(36)), None);
        assert_eq!(window(&[LOW, high(900 * GIB)], None, PhysicalBits(40)), Some(928 * GIB));
        assert_eq!(window(&[LOW], Some(900 * GIB), PhysicalBits(40)), Some(928 * GIB));
    }
}
