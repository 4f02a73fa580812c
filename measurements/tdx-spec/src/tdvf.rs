// SPDX-License-Identifier: Apache-2.0
//! TDVF metadata: which parts of a firmware file the host loads where, and which of them it measures.
//!
//! Source: Intel TDX Virtual Firmware Design Guide (344991-004), section 11 "TDVF Metadata", tables
//! "TDVF_DESCRIPTOR" and "TDVF_SECTION"; EDK II `OvmfPkg/ResetVector` for the table of GUID-ed structures that
//! ends 32 bytes before the end of the file.

use core::mem::offset_of;

use crate::{Cursor, ReadError};

/// The sections of a firmware file, in the file's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tdvf {
    sections: Vec<Section>,
}

/// One section: `raw_len` bytes at `raw_offset` of the file, placed at guest address `memory_address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// Offset in the file, in bytes.
    pub raw_offset: u32,
    /// Bytes in the file; 0 for memory without contents.
    pub raw_len: u32,
    /// Guest physical address, a multiple of [`PAGE`].
    pub memory_address: u64,
    /// Bytes in memory, a multiple of [`PAGE`].
    pub memory_len: u64,
    /// What the section is.
    pub kind: SectionKind,
    /// Attribute bits: [`Section::MR_EXTEND`], [`Section::PAGE_AUG`]; others stay as found.
    pub attributes: u32,
}

/// Kind of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SectionKind {
    /// Boot firmware volume: the code.
    Bfv,
    /// Configuration firmware volume: UEFI variables.
    Cfv,
    /// Where the host writes the TD HOB.
    TdHob,
    /// Temporary memory: stack and heap.
    TempMem,
    /// Permanent memory.
    PermMem,
    /// Payload, such as a kernel.
    Payload,
    /// Parameters of the payload.
    PayloadParam,
    /// Any other number.
    Other(u32),
}

/// Why a firmware file has no usable TDVF metadata.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TdvfError {
    /// More than [`MAX_FIRMWARE_LEN`] bytes.
    #[error("firmware has at most {MAX_FIRMWARE_LEN} bytes, found {0}")]
    TooLarge(usize),
    /// The file does not end in a table of GUID-ed structures.
    #[error("the firmware has no table of GUID-ed structures 32 bytes before its end")]
    NoTable,
    /// An entry of that table has a size that does not fit.
    #[error("an entry of the table of GUID-ed structures has the impossible size {0}")]
    TableEntry(u16),
    /// The table has no TDX metadata offset.
    #[error("the firmware has no TDX metadata: it cannot start a trust domain")]
    NoMetadata,
    /// The descriptor lies outside the file, or is truncated.
    #[error("TDVF descriptor: {0}")]
    Read(#[from] ReadError),
    /// The descriptor lies outside the file.
    #[error("the TDVF descriptor lies {0} bytes before the end of the file")]
    Offset(u32),
    /// The descriptor's signature, version, length or section count is wrong.
    #[error("TDVF descriptor: {0} is wrong")]
    Descriptor(&'static str),
    /// A section breaks a rule.
    #[error("TDVF section {index}: {rule}")]
    Section {
        /// Index of the section.
        index: usize,
        /// The rule.
        rule: &'static str,
    },
}

impl Tdvf {
    /// Finds and reads the metadata of a firmware file.
    ///
    /// # Errors
    /// [`TdvfError`] names the rule.
    pub fn parse(firmware: &[u8]) -> Result<Self, TdvfError> {
        if firmware.len() > MAX_FIRMWARE_LEN {
            return Err(TdvfError::TooLarge(firmware.len()));
        }
        let from_end = metadata_offset(firmware)?;
        let start = usize::try_from(from_end)
            .ok()
            .and_then(|n| firmware.len().checked_sub(n))
            .ok_or(TdvfError::Offset(from_end))?;
        let descriptor = firmware.get(start..).ok_or(TdvfError::Offset(from_end))?;
        let mut cursor = Cursor::new(descriptor);
        let RawDescriptor { signature, length, version, count } = RawDescriptor::read(&mut cursor)?;
        if signature != *b"TDVF" {
            return Err(TdvfError::Descriptor("signature"));
        }
        if u32::from_le_bytes(version) != 1 {
            return Err(TdvfError::Descriptor("version"));
        }
        let (length, count) = (u32::from_le_bytes(length), u32::from_le_bytes(count));
        if count == 0 || count > MAX_SECTIONS {
            return Err(TdvfError::Descriptor("number of sections"));
        }
        if length != DESCRIPTOR_LEN + count * SECTION_LEN {
            return Err(TdvfError::Descriptor("length"));
        }
        let sections = (0..count)
            .map(|_| RawSection::read(&mut cursor).map(|raw| Section::from_raw(&raw)))
            .collect::<Result<Vec<_>, _>>()?;
        for (index, section) in sections.iter().enumerate() {
            section.check(firmware.len()).map_err(|rule| TdvfError::Section { index, rule })?;
        }
        check_disjoint(&sections)?;
        check_added_memory(&sections)?;
        Ok(Self { sections })
    }

    /// The sections, in the file's order (the order in which they are measured).
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The sections of one kind.
    pub fn of_kind(&self, kind: SectionKind) -> impl Iterator<Item = &Section> {
        self.sections.iter().filter(move |section| section.kind == kind)
    }
}

impl Section {
    /// The host extends MRTD with the section's contents.
    pub const MR_EXTEND: u32 = 1 << 0;
    /// The pages are added after the TD's measurement is final; neither address nor contents are measured.
    pub const PAGE_AUG: u32 = 1 << 1;

    /// True when the contents are measured.
    #[must_use]
    pub const fn extends(&self) -> bool {
        self.attributes & Self::MR_EXTEND != 0
    }

    /// True when the pages are added later, unmeasured.
    #[must_use]
    pub const fn augmented(&self) -> bool {
        self.attributes & Self::PAGE_AUG != 0
    }

    /// The section's bytes in the file. [`Tdvf::parse`] checked the range against that file.
    #[must_use]
    pub fn raw<'a>(&self, firmware: &'a [u8]) -> Option<&'a [u8]> {
        let start = usize::try_from(self.raw_offset).ok()?;
        let end = start.checked_add(usize::try_from(self.raw_len).ok()?)?;
        firmware.get(start..end)
    }

    const fn from_raw(raw: &RawSection) -> Self {
        Self {
            raw_offset: u32::from_le_bytes(raw.raw_offset),
            raw_len: u32::from_le_bytes(raw.raw_len),
            memory_address: u64::from_le_bytes(raw.memory_address),
            memory_len: u64::from_le_bytes(raw.memory_len),
            kind: SectionKind::from_number(u32::from_le_bytes(raw.kind)),
            attributes: u32::from_le_bytes(raw.attributes),
        }
    }

    fn check(&self, file_len: usize) -> Result<(), &'static str> {
        if !self.memory_address.is_multiple_of(PAGE) || !self.memory_len.is_multiple_of(PAGE) {
            return Err("address and size must be multiples of 4096");
        }
        if self.memory_len == 0 || self.memory_len > MAX_SECTION_MEMORY {
            return Err("size must be 4 KiB to 1 GiB");
        }
        if self.memory_address.checked_add(self.memory_len).is_none() {
            return Err("address and size overflow");
        }
        if u64::from(self.raw_len) > self.memory_len {
            return Err("the file holds more bytes than the memory");
        }
        let end = u64::from(self.raw_offset) + u64::from(self.raw_len);
        if usize::try_from(end).map_or(true, |end| end > file_len) {
            return Err("the bytes lie outside the file");
        }
        if self.extends() && (self.augmented() || u64::from(self.raw_len) != self.memory_len) {
            return Err("a measured section must be filled by the file and not be added later");
        }
        Ok(())
    }
}

impl SectionKind {
    const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Bfv,
            1 => Self::Cfv,
            2 => Self::TdHob,
            3 => Self::TempMem,
            4 => Self::PermMem,
            5 => Self::Payload,
            6 => Self::PayloadParam,
            other => Self::Other(other),
        }
    }
}

/// `TDVF_DESCRIPTOR`, without the sections that follow it.
#[repr(C)]
struct RawDescriptor {
    signature: [u8; 4],
    length: [u8; 4],
    version: [u8; 4],
    count: [u8; 4],
}

/// `TDVF_SECTION`.
#[repr(C)]
struct RawSection {
    raw_offset: [u8; 4],
    raw_len: [u8; 4],
    memory_address: [u8; 8],
    memory_len: [u8; 8],
    kind: [u8; 4],
    attributes: [u8; 4],
}

impl RawDescriptor {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, ReadError> {
        Ok(Self {
            signature: cursor.array("signature")?,
            length: cursor.array("length")?,
            version: cursor.array("version")?,
            count: cursor.array("number of sections")?,
        })
    }
}

impl RawSection {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, ReadError> {
        Ok(Self {
            raw_offset: cursor.array("data offset")?,
            raw_len: cursor.array("raw data size")?,
            memory_address: cursor.array("memory address")?,
            memory_len: cursor.array("memory data size")?,
            kind: cursor.array("type")?,
            attributes: cursor.array("attributes")?,
        })
    }
}

/// Walks the table backwards from its footer to the entry with the metadata's offset.
fn metadata_offset(firmware: &[u8]) -> Result<u32, TdvfError> {
    let before_vector = firmware.len().checked_sub(RESET_VECTOR_LEN).and_then(|n| firmware.get(..n));
    let (rest, footer_len, guid) = before_vector.and_then(split_entry_tail).ok_or(TdvfError::NoTable)?;
    if guid != TABLE_FOOTER_GUID {
        return Err(TdvfError::NoTable);
    }
    // The footer's length covers the whole table, itself included.
    let entries_len = usize::from(footer_len).checked_sub(ENTRY_TAIL_LEN).ok_or(TdvfError::TableEntry(footer_len))?;
    let start = rest.len().checked_sub(entries_len).ok_or(TdvfError::TableEntry(footer_len))?;
    let mut entries = rest.get(start..).ok_or(TdvfError::TableEntry(footer_len))?;
    while !entries.is_empty() {
        let (body, len, guid) = split_entry_tail(entries).ok_or(TdvfError::NoTable)?;
        let data_len = usize::from(len).checked_sub(ENTRY_TAIL_LEN).ok_or(TdvfError::TableEntry(len))?;
        let split = body.len().checked_sub(data_len).ok_or(TdvfError::TableEntry(len))?;
        let (before, data) = body.split_at_checked(split).ok_or(TdvfError::TableEntry(len))?;
        if guid == METADATA_OFFSET_GUID {
            let data = <[u8; 4]>::try_from(data).map_err(|_| TdvfError::TableEntry(len))?;
            return Ok(u32::from_le_bytes(data));
        }
        entries = before;
    }
    Err(TdvfError::NoMetadata)
}

/// Splits `.. data | length u16 | guid` into what is before the length, the length and the GUID.
fn split_entry_tail(bytes: &[u8]) -> Option<(&[u8], u16, [u8; 16])> {
    let (rest, guid) = bytes.split_last_chunk::<16>()?;
    let (rest, len) = rest.split_last_chunk::<2>()?;
    Some((rest, u16::from_le_bytes(*len), *guid))
}

/// Memory ranges must not overlap: which page would be measured otherwise?
fn check_disjoint(sections: &[Section]) -> Result<(), TdvfError> {
    for (index, a) in sections.iter().enumerate() {
        let overlaps = sections.iter().take(index).any(|b| {
            a.memory_address < b.memory_address.saturating_add(b.memory_len)
                && b.memory_address < a.memory_address.saturating_add(a.memory_len)
        });
        if overlaps {
            return Err(TdvfError::Section { index, rule: "the memory overlaps that of an earlier section" });
        }
    }
    Ok(())
}

/// Each page that is added at the start costs a record in MRTD, so a few lying bytes must not ask for many.
fn check_added_memory(sections: &[Section]) -> Result<(), TdvfError> {
    let mut added = 0_u64;
    for (index, section) in sections.iter().enumerate().filter(|(_, section)| !section.augmented()) {
        added = added.saturating_add(section.memory_len);
        if added > MAX_ADDED_MEMORY {
            return Err(TdvfError::Section { index, rule: "more than 256 MiB would be added at the start" });
        }
    }
    Ok(())
}

/// Size of a page in bytes.
pub const PAGE: u64 = 4096;
/// Most bytes of a firmware file.
pub const MAX_FIRMWARE_LEN: usize = 64 << 20;

const RESET_VECTOR_LEN: usize = 32;
/// Length (u16) and GUID at the end of each table entry.
const ENTRY_TAIL_LEN: usize = 18;
const DESCRIPTOR_LEN: u32 = 16;
const SECTION_LEN: u32 = 32;
const _: () = assert!(size_of::<RawDescriptor>() == 16 && DESCRIPTOR_LEN == 16);
const _: () = assert!(offset_of!(RawDescriptor, version) == 8 && offset_of!(RawDescriptor, count) == 12);
const _: () = assert!(size_of::<RawSection>() == 32 && SECTION_LEN == 32);
const _: () = assert!(offset_of!(RawSection, raw_len) == 4 && offset_of!(RawSection, memory_address) == 8);
const _: () = assert!(offset_of!(RawSection, memory_len) == 16 && offset_of!(RawSection, kind) == 24);
const _: () = assert!(offset_of!(RawSection, attributes) == 28);
const MAX_SECTIONS: u32 = 32;
const MAX_SECTION_MEMORY: u64 = 1 << 30;
/// Known firmware adds 4 to 20 MiB.
const MAX_ADDED_MEMORY: u64 = 256 << 20;
/// 96b582de-1fb2-45f7-baea-a366c55a082d, as stored.
const TABLE_FOOTER_GUID: [u8; 16] =
    [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d];
/// e47a6535-984a-4798-865e-4685a7bf8ec2, as stored.
const METADATA_OFFSET_GUID: [u8; 16] =
    [0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2];

#[cfg(test)]
mod tests;
