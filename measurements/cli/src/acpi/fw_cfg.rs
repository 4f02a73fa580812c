// SPDX-License-Identifier: Apache-2.0
//! QEMU's fw_cfg device over its DMA interface.
//!
//! Source: QEMU `docs/specs/fw_cfg.rst`.

use super::{AcpiError, qtest::Machine};

/// The list of named files.
pub(super) struct Directory(Vec<Entry>);

struct Entry {
    name: String,
    selector: u16,
    len: u32,
}

impl Directory {
    /// Reads the list.
    pub(super) fn read(machine: &mut Machine) -> Result<Self, AcpiError> {
        let malformed = AcpiError::FwCfg("the list of files is malformed");
        let count = transfer(machine, FILE_DIRECTORY, 4)?;
        let count = count.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).filter(|count| *count <= MAX_FILES);
        let Some(count) = count.and_then(|count| usize::try_from(count).ok()) else {
            return Err(malformed);
        };
        let bytes = transfer(machine, FILE_DIRECTORY, 4 + count * ENTRY_LEN)?;
        let entries: Option<Vec<Entry>> =
            bytes.get(4..).unwrap_or_default().chunks_exact(ENTRY_LEN).map(Entry::parse).collect();
        entries.map(Self).ok_or(malformed)
    }

    /// The contents of a file.
    pub(super) fn file(&self, machine: &mut Machine, name: &'static str) -> Result<Vec<u8>, AcpiError> {
        self.optional_file(machine, name)?.ok_or(AcpiError::Missing(name))
    }

    /// The contents of a file, if there is one.
    pub(super) fn optional_file(
        &self,
        machine: &mut Machine,
        name: &'static str,
    ) -> Result<Option<Vec<u8>>, AcpiError> {
        let Some(entry) = self.0.iter().find(|entry| entry.name == name) else {
            return Ok(None);
        };
        let len = usize::try_from(entry.len).ok().filter(|len| *len <= MAX_FILE).ok_or(AcpiError::TooLarge(name))?;
        transfer(machine, entry.selector, len).map(Some)
    }
}

impl Entry {
    /// Size, selector (both big endian), reserved, name of 56 bytes.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        let (selector, rest) = rest.split_first_chunk::<2>()?;
        let (_, name) = rest.split_first_chunk::<2>()?;
        let name = name.split(|byte| *byte == 0).next()?;
        Some(Self {
            name: String::from_utf8(name.to_vec()).ok()?,
            selector: u16::from_be_bytes(*selector),
            len: u32::from_be_bytes(*len),
        })
    }
}

/// Selects an item and reads its first `len` bytes through low memory, which no guest uses.
fn transfer(machine: &mut Machine, selector: u16, len: usize) -> Result<Vec<u8>, AcpiError> {
    let control = u32::from(selector) << 16 | CONTROL_SELECT | CONTROL_READ;
    let length = u32::try_from(len).map_err(|_| AcpiError::FwCfg("the read is too long"))?;
    let request = [&control.to_be_bytes()[..], &length.to_be_bytes(), &BUFFER_ADDRESS.to_be_bytes()].concat();
    machine.write_memory(REQUEST_ADDRESS, &request)?;
    // The register takes the address big endian, high half first; writing the low half starts the transfer.
    machine.out_u32(DMA_PORT_HIGH, 0)?;
    machine.out_u32(DMA_PORT_LOW, REQUEST_ADDRESS_LOW.swap_bytes())?;
    if machine.read_memory(REQUEST_ADDRESS, 4)? != [0; 4] {
        return Err(AcpiError::FwCfg("a transfer failed"));
    }
    machine.read_memory(BUFFER_ADDRESS, len)
}

const FILE_DIRECTORY: u16 = 0x19;
const ENTRY_LEN: usize = 64;
const MAX_FILES: u32 = 1024;
const MAX_FILE: usize = 4 << 20;
const CONTROL_READ: u32 = 1 << 1;
const CONTROL_SELECT: u32 = 1 << 3;
const DMA_PORT_HIGH: u16 = 0x514;
const DMA_PORT_LOW: u16 = 0x518;
const REQUEST_ADDRESS_LOW: u32 = 0x1000;
const REQUEST_ADDRESS: u64 = 0x1000;
const BUFFER_ADDRESS: u64 = 0x10_0000;
