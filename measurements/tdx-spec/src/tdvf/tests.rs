// SPDX-License-Identifier: Apache-2.0
//! Lying metadata is refused by rule.

use super::*;

fn section(raw: (u32, u32), memory: (u64, u64), kind: u32, attributes: u32) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(raw.0.to_le_bytes());
    out.extend(raw.1.to_le_bytes());
    out.extend(memory.0.to_le_bytes());
    out.extend(memory.1.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend(attributes.to_le_bytes());
    out
}

/// A file of two pages with the given sections, an unrelated table entry and a reset vector.
fn firmware(sections: &[Vec<u8>]) -> Vec<u8> {
    let mut out = vec![7_u8; 0x2000];
    let start = out.len();
    let count = u32::try_from(sections.len()).unwrap();
    out.extend(b"TDVF");
    out.extend((16 + 32 * count).to_le_bytes());
    out.extend(1_u32.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend(sections.concat());
    let table_start = out.len();
    let total = u32::try_from(out.len() - start + 22 + 20 + 18 + 32).unwrap();
    out.extend(total.to_le_bytes());
    out.extend(22_u16.to_le_bytes());
    out.extend(METADATA_OFFSET_GUID);
    out.extend([1, 2]);
    out.extend(20_u16.to_le_bytes());
    out.extend([0xaa; 16]);
    let table = u16::try_from(out.len() - table_start + 18).unwrap();
    out.extend(table.to_le_bytes());
    out.extend(TABLE_FOOTER_GUID);
    out.extend([0x90; 32]);
    out
}

fn good() -> Vec<Vec<u8>> {
    vec![section((0, 0x1000), (0xffff_f000, 0x1000), 0, 1), section((0, 0), (0x80_9000, 0x2000), 2, 0)]
}

#[test]
fn sections_are_found_behind_other_entries() {
    let file = firmware(&good());
    let tdvf = Tdvf::parse(&file).unwrap();
    assert_eq!(tdvf.sections().len(), 2);
    let bfv = tdvf.of_kind(SectionKind::Bfv).next().unwrap();
    assert!(bfv.extends() && !bfv.augmented());
    assert_eq!(bfv.raw(&file).unwrap(), [7; 0x1000]);
    assert_eq!(tdvf.of_kind(SectionKind::TdHob).next().unwrap().memory_address, 0x80_9000);
}

#[test]
fn lying_sections_are_refused_by_rule() {
    let cases = [
        (section((0, 0x1000), (0xfff, 0x1000), 0, 0), "address and size must be multiples of 4096"),
        (section((0, 0), (0x1000, 0), 0, 0), "size must be 4 KiB to 1 GiB"),
        (section((0, 0), (u64::MAX - 0xfff, 0x1000), 3, 0), "address and size overflow"),
        (section((0, 0x1001), (0x1000, 0x1000), 0, 0), "the file holds more bytes than the memory"),
        (section((u32::MAX, 0x1000), (0x1000, 0x1000), 0, 0), "the bytes lie outside the file"),
        (
            section((0, 0x800), (0x1000, 0x1000), 0, 1),
            "a measured section must be filled by the file and not be added later",
        ),
        (section((0, 0), (0x80_a000, 0x1000), 3, 0), "the memory overlaps that of an earlier section"),
        (section((0, 0), (0x1000_0000, 0x1000_0000), 3, 0), "more than 256 MiB would be added at the start"),
    ];
    for (bad, rule) in cases {
        let mut sections = good();
        sections.push(bad);
        assert_eq!(Tdvf::parse(&firmware(&sections)), Err(TdvfError::Section { index: 2, rule }));
    }
}

#[test]
fn memory_that_is_added_later_costs_nothing() {
    let mut sections = good();
    sections.push(section((0, 0), (0x1000_0000, 0x1000_0000), 4, Section::PAGE_AUG));
    assert!(Tdvf::parse(&firmware(&sections)).is_ok());
}

#[test]
fn files_without_metadata_are_refused() {
    assert_eq!(Tdvf::parse(&[]), Err(TdvfError::NoTable));
    assert_eq!(Tdvf::parse(&[0; 4096]), Err(TdvfError::NoTable));
    let mut file = firmware(&good());
    let footer = file.len() - 32 - 18;
    file[footer - 36] ^= 1;
    assert!(matches!(Tdvf::parse(&file), Err(TdvfError::NoMetadata | TdvfError::TableEntry(_))));
    let mut file = firmware(&good());
    let at = file.len() - 32 - 18 - 20 - 22;
    file[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Tdvf::parse(&file), Err(TdvfError::Offset(u32::MAX)));
}

#[test]
fn no_truncation_panics() {
    let file = firmware(&good());
    for start in 0x1ff0..file.len() {
        let _ = Tdvf::parse(&file[start..]);
    }
}
