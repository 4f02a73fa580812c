// SPDX-License-Identifier: Apache-2.0
//! The TD HOB: the list with which the host tells the firmware where memory is. The firmware extends RTMR0
//! with everything before the list's end marker.
//!
//! Source: UEFI Platform Initialization Specification 1.8, volume 3, chapter 5 (HOB definitions); QEMU
//! `hw/i386/tdvf-hob.c` and `tdx_accept_ram_range` in `target/i386/kvm/tdx.c` for the contents; EDK II
//! `OvmfPkg/IntelTdx/TdxHelperLib/SecTdxHelper.c` for what is measured.

use types::Sha384Digest;

use crate::{
    firmware::{FirmwareMeasurements, MemoryRange},
    memory,
};

/// A range of memory as the HOB describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
    /// True when the host added it before the start, false when the guest must accept it.
    added: bool,
}

/// Digest of the TD HOB of a machine with `memory` bytes. `None` when a section of the firmware does not lie
/// within one range of memory: QEMU refuses to start such a machine.
pub(crate) fn digest(firmware: &FirmwareMeasurements, memory: u64) -> Option<Sha384Digest> {
    let ranges = ranges(&firmware.added_memory, memory)?;
    let mut list = Vec::with_capacity(HANDOFF_LEN + ranges.len() * RESOURCE_LEN);
    let total = HANDOFF_LEN + ranges.len() * RESOURCE_LEN + END_LEN;
    let end_of_list = firmware.td_hob_address.checked_add(u64::try_from(total).ok()?)?;
    // Hand-off information: version 9, boot mode and memory limits zero.
    header(&mut list, HOB_HANDOFF, HANDOFF_LEN)?;
    list.extend(9_u32.to_le_bytes());
    list.extend([0; 36]);
    list.extend(end_of_list.to_le_bytes());
    for Range { start, end, added } in ranges {
        header(&mut list, HOB_RESOURCE, RESOURCE_LEN)?;
        list.extend([0; 16]);
        let kind = if added { RESOURCE_SYSTEM_MEMORY } else { RESOURCE_UNACCEPTED };
        list.extend(kind.to_le_bytes());
        list.extend(RESOURCE_ATTRIBUTES.to_le_bytes());
        list.extend(start.to_le_bytes());
        list.extend(end.checked_sub(start)?.to_le_bytes());
    }
    Some(Sha384Digest::of(&list))
}

/// All memory, cut at the ranges that the host adds, by address.
fn ranges(added: &[MemoryRange], memory: u64) -> Option<Vec<Range>> {
    let low = memory::below_4g(memory);
    let mut ranges = vec![Range { start: 0, end: low, added: false }];
    if low < memory {
        let end = memory::ABOVE_4G.checked_add(memory.checked_sub(low)?)?;
        ranges.push(Range { start: memory::ABOVE_4G, end, added: false });
    }
    for MemoryRange { address, length } in added {
        let (start, end) = (*address, address.checked_add(*length)?);
        let at = ranges.iter().position(|range| range.start <= start && end <= range.end && !range.added)?;
        let whole = ranges.remove(at);
        ranges.push(Range { start, end, added: true });
        ranges.push(Range { start: whole.start, end: start, added: false });
        ranges.push(Range { start: end, end: whole.end, added: false });
        ranges.retain(|range| range.start < range.end);
    }
    ranges.sort_unstable_by_key(|range| range.start);
    Some(ranges)
}

/// `EFI_HOB_GENERIC_HEADER`: type, length, reserved.
fn header(list: &mut Vec<u8>, kind: u16, len: usize) -> Option<()> {
    list.extend(kind.to_le_bytes());
    list.extend(u16::try_from(len).ok()?.to_le_bytes());
    list.extend([0; 4]);
    Some(())
}

const HOB_HANDOFF: u16 = 1;
const HOB_RESOURCE: u16 = 3;
const HANDOFF_LEN: usize = 56;
const RESOURCE_LEN: usize = 48;
const END_LEN: usize = 8;
const RESOURCE_SYSTEM_MEMORY: u32 = 0;
const RESOURCE_UNACCEPTED: u32 = 7;
/// Present, initialised, tested.
const RESOURCE_ATTRIBUTES: u32 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64, added: bool) -> Range {
        Range { start, end, added }
    }

    #[test]
    fn memory_is_cut_at_added_ranges_and_split_at_4_gib() {
        let added = [MemoryRange { address: 0x1000, length: 0x2000 }, MemoryRange { address: 0, length: 0x1000 }];
        assert_eq!(
            ranges(&added, 1 << 20),
            Some(vec![range(0, 0x1000, true), range(0x1000, 0x3000, true), range(0x3000, 1 << 20, false)])
        );
        let split = ranges(&[], 0xb000_0000).unwrap();
        assert_eq!(split, [range(0, 0x8000_0000, false), range(1 << 32, (1 << 32) + 0x3000_0000, false)]);
        assert_eq!(ranges(&[], 0xafff_ffff).unwrap().len(), 1);
    }

    #[test]
    fn ranges_outside_of_memory_or_twice_are_refused() {
        let at = |address| MemoryRange { address, length: 0x1000 };
        assert_eq!(ranges(&[at(0xff_f000 + 0x1000)], 0x100_0000), None);
        assert_eq!(ranges(&[at(0), at(0)], 0x100_0000), None);
        assert_eq!(ranges(&[at(u64::MAX)], 0x100_0000), None);
    }
}
