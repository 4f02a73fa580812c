// SPDX-License-Identifier: Apache-2.0
//! TDVF: the sections that a TD's creator adds, MRTD over them, and the hand-off block (Intel "TDX Virtual Firmware
//! Design Guide", 344991-004, chapters 3, 4.2 and 11; TDX module ABI: TDH.MEM.PAGE.ADD, TDH.MR.EXTEND).

use std::ops::Range;

use sha2::{Digest as _, Sha384};
use types::Sha384Digest;

use super::MeasureError;

/// A firmware image with its sections.
pub(super) struct Firmware<'a> {
    image: &'a [u8],
    sections: Vec<Section>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Section {
    data_offset: u32,
    data_size: u32,
    address: u64,
    size: u64,
    kind: u32,
    attributes: u32,
}

impl<'a> Firmware<'a> {
    /// Finds the metadata through the table of GUIDs at the end of the image.
    pub(super) fn parse(image: &'a [u8]) -> Result<Self, MeasureError> {
        let offset =
            metadata_offset(image).ok_or(MeasureError::Firmware("no TDX metadata offset in the GUID table"))?;
        let sections = sections(image, offset).ok_or(MeasureError::Firmware("malformed TDX metadata"))?;
        let firmware = Self { image, sections };
        for section in &firmware.sections {
            let paged = section.address % PAGE == 0 && section.size % PAGE == 0 && section.size <= LARGEST_SECTION;
            let known = matches!(section.kind, KIND_BFV | KIND_CFV | KIND_TD_HOB | KIND_TEMP_MEM);
            let backed = !section.has_data() || u64::from(section.data_size) == section.size;
            if !paged || !known || !backed || section.attributes & !ATTRIBUTE_MR_EXTEND != 0 {
                return Err(MeasureError::Firmware("a section of the TDX metadata is not one that QEMU launches"));
            }
            firmware.data(section)?;
        }
        Ok(firmware)
    }

    /// MRTD: for each section in order, for each page, TDH.MEM.PAGE.ADD and, where asked for, TDH.MR.EXTEND of its
    /// sixteen chunks.
    pub(super) fn mr_td(&self) -> Result<Sha384Digest, MeasureError> {
        let mut hasher = Sha384::new();
        for section in &self.sections {
            let data = self.data(section)?;
            for page in (0..section.size).step_by(PAGE as usize) {
                hasher.update(block(b"MEM.PAGE.ADD", section.address + page));
                if section.attributes & ATTRIBUTE_MR_EXTEND == 0 {
                    continue;
                }
                for chunk in (page..page + PAGE).step_by(CHUNK) {
                    hasher.update(block(b"MR.EXTEND", section.address + chunk));
                    let start = chunk as usize;
                    match data.get(start..start + CHUNK) {
                        Some(bytes) => hasher.update(bytes),
                        None => hasher.update([0; CHUNK]),
                    }
                }
            }
        }
        Ok(Sha384Digest::from_bytes(hasher.finalize().into()))
    }

    /// Address and bytes of the configuration volume.
    pub(super) fn configuration(&self) -> Result<(u64, &'a [u8]), MeasureError> {
        let section = self.only(KIND_CFV)?;
        Ok((section.address, self.data(section)?))
    }

    /// Address of the hand-off block.
    pub(super) fn hand_off_address(&self) -> Result<u64, MeasureError> {
        Ok(self.only(KIND_TD_HOB)?.address)
    }

    /// The hand-off block list without its end marker, as QEMU makes it for RAM at `ram` and firmware measures it.
    pub(super) fn hand_off_block(&self, ram: &[Range<u64>]) -> Result<Vec<u8>, MeasureError> {
        let regions = self.regions(ram)?;
        let length = (HOB_HANDOFF + regions.len() * HOB_RESOURCE) as u64;
        let mut out = hob_header(1, HOB_HANDOFF);
        out.extend(9_u32.to_le_bytes()); // version
        out.extend([0; 4 + 4 * 8]); // boot mode, memory limits
        out.extend((self.hand_off_address()? + length + HOB_END).to_le_bytes());
        for (range, accepted) in regions {
            out.extend(hob_header(3, HOB_RESOURCE));
            out.extend([0; 16]); // owner
            out.extend(if accepted { RESOURCE_SYSTEM_MEMORY } else { RESOURCE_UNACCEPTED }.to_le_bytes());
            out.extend(RESOURCE_ATTRIBUTES.to_le_bytes());
            out.extend(range.start.to_le_bytes());
            out.extend((range.end - range.start).to_le_bytes());
        }
        Ok(out)
    }

    /// RAM cut at the sections that live in it: these are accepted, the rest is not. In the order of addresses.
    fn regions(&self, ram: &[Range<u64>]) -> Result<Vec<(Range<u64>, bool)>, MeasureError> {
        let mut regions: Vec<(Range<u64>, bool)> = ram.iter().map(|range| (range.clone(), false)).collect();
        for section in self.sections.iter().filter(|section| !section.has_data()) {
            let added = section.address..section.address + section.size;
            let holds = |range: &Range<u64>| range.start <= added.start && added.end <= range.end;
            let position = regions.iter().position(|(range, accepted)| holds(range) && !accepted);
            let position = position.ok_or(MeasureError::Firmware("a memory section lies outside of RAM"))?;
            let (around, _) = regions.remove(position);
            for (range, accepted) in
                [(around.start..added.start, false), (added.clone(), true), (added.end..around.end, false)]
            {
                if !range.is_empty() {
                    regions.push((range, accepted));
                }
            }
        }
        regions.sort_by_key(|(range, _)| range.start);
        Ok(regions)
    }

    /// Refuses a configuration volume with variables: Secure Boot keys and boot options in it would be measured.
    pub(super) fn refuse_variables(&self) -> Result<(), MeasureError> {
        let (_, volume) = self.configuration()?;
        let malformed = || MeasureError::Firmware("malformed variable store in the configuration volume");
        let number = volume.get(0x30..0x32).and_then(|bytes| bytes.try_into().ok()).map(u16::from_le_bytes);
        let store = volume.get(usize::from(number.ok_or_else(malformed)?)..).ok_or_else(malformed)?;
        if volume.get(0x28..0x2c) != Some(b"_FVH") || store.get(..16) != Some(&VARIABLE_STORE) {
            return Err(malformed());
        }
        match store.get(VARIABLE_STORE_HEADER..VARIABLE_STORE_HEADER + 2) {
            Some([0xff, 0xff]) => Ok(()),
            _ => Err(MeasureError::Firmware(
                "its variable store is not empty: only firmware without variables is measured",
            )),
        }
    }

    fn only(&self, kind: u32) -> Result<&Section, MeasureError> {
        let mut found = self.sections.iter().filter(|section| section.kind == kind);
        match (found.next(), found.next()) {
            (Some(section), None) => Ok(section),
            _ => Err(MeasureError::Firmware("there must be one configuration volume and one hand-off block")),
        }
    }

    fn data(&self, section: &Section) -> Result<&'a [u8], MeasureError> {
        if !section.has_data() {
            return Ok(&[]);
        }
        let start = section.data_offset as usize;
        let data = self.image.get(start..start.saturating_add(section.data_size as usize));
        data.ok_or(MeasureError::Firmware("a section lies outside of the image"))
    }
}

impl Section {
    const fn has_data(&self) -> bool {
        self.kind == KIND_BFV || self.kind == KIND_CFV
    }
}

/// Offset of the metadata from the end of the image. Entries of the table are read backwards: data, length, GUID.
fn metadata_offset(image: &[u8]) -> Option<usize> {
    let mut end = image.len().checked_sub(TABLE_FROM_END)?;
    let (footer, length) = table_entry(image, end)?;
    if footer != TABLE_FOOTER {
        return None;
    }
    let begin = end.checked_sub(length)?;
    end = end.checked_sub(18)?;
    while end > begin {
        let (guid, length) = table_entry(image, end)?;
        let start = end.checked_sub(length).filter(|_| length >= 18)?;
        if guid == TDX_METADATA {
            return usize::try_from(u32::from_le_bytes(image.get(start..start + 4)?.try_into().ok()?)).ok();
        }
        end = start;
    }
    None
}

fn table_entry(image: &[u8], end: usize) -> Option<([u8; 16], usize)> {
    let guid = image.get(end.checked_sub(16)?..end)?.try_into().ok()?;
    let length = image.get(end.checked_sub(18)?..end.checked_sub(16)?)?.try_into().ok()?;
    Some((guid, usize::from(u16::from_le_bytes(length))))
}

fn sections(image: &[u8], offset: usize) -> Option<Vec<Section>> {
    let metadata = image.get(image.len().checked_sub(offset)?..)?;
    let word = |at: usize| Some(u32::from_le_bytes(metadata.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(metadata.get(at..at + 8)?.try_into().ok()?));
    let count = word(12)?;
    if metadata.get(..4)? != b"TDVF" || word(8)? != 1 || count > MOST_SECTIONS || word(4)? != 16 + 32 * count {
        return None;
    }
    let mut sections = Vec::new();
    for index in 0..count as usize {
        let at = 16 + 32 * index;
        sections.push(Section {
            data_offset: word(at)?,
            data_size: word(at + 4)?,
            address: long(at + 8)?,
            size: long(at + 16)?,
            kind: word(at + 24)?,
            attributes: word(at + 28)?,
        });
    }
    sections.iter().all(|section| section.address.checked_add(section.size).is_some()).then_some(sections)
}

/// The 128-byte block that enters MRTD before a page or a chunk.
fn block(name: &[u8], address: u64) -> [u8; 128] {
    let mut out = [0; 128];
    for (to, from) in out.iter_mut().zip(name) {
        *to = *from;
    }
    for (to, from) in out.iter_mut().skip(16).zip(address.to_le_bytes()) {
        *to = from;
    }
    out
}

fn hob_header(kind: u16, length: usize) -> Vec<u8> {
    let mut out = kind.to_le_bytes().to_vec();
    out.extend((length as u16).to_le_bytes());
    out.extend([0; 4]);
    out
}

const PAGE: u64 = 4096;
const CHUNK: usize = 256;
const LARGEST_SECTION: u64 = 64 << 20;
const MOST_SECTIONS: u32 = 64;
const KIND_BFV: u32 = 0;
const KIND_CFV: u32 = 1;
const KIND_TD_HOB: u32 = 2;
const KIND_TEMP_MEM: u32 = 3;
const ATTRIBUTE_MR_EXTEND: u32 = 1;
const TABLE_FROM_END: usize = 0x20;
/// 96b582de-1fb2-45f7-baea-a366c55a082d
const TABLE_FOOTER: [u8; 16] =
    [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d];
/// e47a6535-984a-4798-865e-4685a7bf8ec2
const TDX_METADATA: [u8; 16] =
    [0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2];
/// aaf32c78-947b-439a-a180-2e144ec37792: a store of authenticated variables.
const VARIABLE_STORE: [u8; 16] =
    [0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92];
const VARIABLE_STORE_HEADER: usize = 28;
const HOB_HANDOFF: usize = 56;
const HOB_RESOURCE: usize = 48;
const HOB_END: u64 = 8;
const RESOURCE_SYSTEM_MEMORY: u32 = 0;
const RESOURCE_UNACCEPTED: u32 = 7;
/// Present, initialised, tested.
const RESOURCE_ATTRIBUTES: u32 = 7;
