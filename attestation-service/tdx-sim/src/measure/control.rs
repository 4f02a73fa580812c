// SPDX-License-Identifier: Apache-2.0
//! The two control protocols of the twin: QMP (start, stop) and qtest (ports and memory), and over the latter the
//! firmware configuration device (QEMU `docs/specs/fw_cfg.rst`).

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::MeasureError;

/// QEMU's machine protocol.
pub(super) struct Qmp(BufReader<UnixStream>);

impl Qmp {
    pub(super) fn connect(path: &Path) -> Result<Self, MeasureError> {
        let mut qmp = Self(BufReader::new(open(path)?));
        line(&mut qmp.0)?; // greeting
        qmp.run("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Runs a command without arguments and waits for its end.
    pub(super) fn run(&mut self, command: &str) -> Result<(), MeasureError> {
        writeln!(self.0.get_mut(), "{}", serde_json::json!({ "execute": command }))?;
        for _ in 0..MOST_EVENTS {
            let answer: serde_json::Value =
                serde_json::from_str(&line(&mut self.0)?).map_err(|_| MeasureError::Answer("a QMP answer"))?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if answer.get("error").is_some() {
                break;
            }
        }
        Err(MeasureError::Answer("a QMP answer"))
    }
}

/// The firmware configuration device, reached through qtest. Uses guest memory below 2 MiB as its buffer.
pub(super) struct FwCfg(BufReader<UnixStream>);

/// An entry of the directory of the firmware configuration device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FwCfgFile {
    pub(super) name: String,
    pub(super) key: u16,
    pub(super) size: usize,
}

impl FwCfg {
    pub(super) fn connect(path: &Path) -> Result<Self, MeasureError> {
        Ok(Self(BufReader::new(open(path)?)))
    }

    /// All named files. Does not touch the files themselves: QEMU builds the ACPI tables when one is selected.
    pub(super) fn directory(&mut self) -> Result<Vec<FwCfgFile>, MeasureError> {
        let malformed = || MeasureError::Answer("the fw_cfg directory");
        let count = self.entry(KEY_DIRECTORY, 4)?;
        let count = usize::try_from(u32::from_be_bytes(count.as_slice().try_into().map_err(|_| malformed())?));
        let count = count.ok().filter(|count| *count <= MOST_FILES).ok_or_else(malformed)?;
        let bytes = self.entry(KEY_DIRECTORY, 4 + count * DIRECTORY_ENTRY)?;
        let mut files = Vec::new();
        for entry in bytes.get(4..).ok_or_else(malformed)?.chunks_exact(DIRECTORY_ENTRY) {
            files.push(FwCfgFile::parse(entry).ok_or_else(malformed)?);
        }
        Ok(files)
    }

    /// The first `size` bytes of the entry with this key.
    pub(super) fn entry(&mut self, key: u16, size: usize) -> Result<Vec<u8>, MeasureError> {
        if size > LARGEST_ENTRY {
            return Err(MeasureError::Answer("the size of a fw_cfg entry"));
        }
        let mut out = Vec::new();
        let mut control = (u32::from(key) << 16) | DMA_SELECT | DMA_READ;
        while out.len() < size {
            let part = (size - out.len()).min(BUFFER_SIZE);
            self.transfer(control, part)?;
            out.extend(self.memory(BUFFER, part)?);
            control = DMA_READ;
        }
        Ok(out)
    }

    /// A legacy entry that holds a little-endian number.
    pub(super) fn number(&mut self, key: u16) -> Result<usize, MeasureError> {
        let bytes = self.entry(key, 4)?;
        let bytes: [u8; 4] = bytes.try_into().map_err(|_| MeasureError::Answer("a fw_cfg number"))?;
        usize::try_from(u32::from_le_bytes(bytes)).map_err(|_| MeasureError::Answer("a fw_cfg number"))
    }

    /// One DMA transfer into the buffer.
    fn transfer(&mut self, control: u32, size: usize) -> Result<(), MeasureError> {
        let size = u32::try_from(size).map_err(|_| MeasureError::Answer("the size of a fw_cfg entry"))?;
        let mut request = control.to_be_bytes().to_vec();
        request.extend(size.to_be_bytes());
        request.extend(BUFFER.to_be_bytes());
        self.qtest(&format!("write {REQUEST:#x} {:#x} 0x{}", request.len(), hex::encode(&request)))?;
        self.qtest(&format!("outl {PORT_DMA_HIGH:#x} 0x0"))?;
        self.qtest(&format!("outl {PORT_DMA_LOW:#x} {:#x}", REQUEST.swap_bytes()))?;
        match self.memory(REQUEST.into(), 4)?.as_slice() {
            [0, 0, 0, 0] => Ok(()),
            _ => Err(MeasureError::Answer("a fw_cfg transfer")),
        }
    }

    fn memory(&mut self, address: u64, size: usize) -> Result<Vec<u8>, MeasureError> {
        let answer = self.qtest(&format!("read {address:#x} {size:#x}"))?;
        let bytes = answer.strip_prefix("0x").and_then(|text| hex::decode(text).ok());
        bytes.filter(|bytes| bytes.len() == size).ok_or(MeasureError::Answer("guest memory"))
    }

    /// Sends a command; its answer without the leading `OK`.
    fn qtest(&mut self, command: &str) -> Result<String, MeasureError> {
        writeln!(self.0.get_mut(), "{command}")?;
        for _ in 0..MOST_EVENTS {
            let answer = line(&mut self.0)?;
            if answer.starts_with("IRQ") {
                continue;
            }
            let answer = answer.strip_prefix("OK").ok_or(MeasureError::Answer("a qtest answer"))?;
            return Ok(answer.trim().to_owned());
        }
        Err(MeasureError::Answer("a qtest answer"))
    }
}

impl FwCfgFile {
    /// size u32, key u16, reserved u16, name[56], big-endian.
    fn parse(entry: &[u8]) -> Option<Self> {
        let size = u32::from_be_bytes(entry.get(..4)?.try_into().ok()?);
        let key = u16::from_be_bytes(entry.get(4..6)?.try_into().ok()?);
        let name = entry.get(8..DIRECTORY_ENTRY)?.split(|byte| *byte == 0).next()?;
        Some(Self { name: String::from_utf8(name.to_vec()).ok()?, key, size: usize::try_from(size).ok()? })
    }
}

fn open(path: &Path) -> Result<UnixStream, MeasureError> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

fn line(reader: &mut BufReader<UnixStream>) -> Result<String, MeasureError> {
    let mut text = String::new();
    reader.take(LONGEST_LINE).read_line(&mut text)?;
    if text.ends_with('\n') { Ok(text) } else { Err(MeasureError::Answer("a line")) }
}

const KEY_DIRECTORY: u16 = 0x19;
const DIRECTORY_ENTRY: usize = 64;
const MOST_FILES: usize = 4096;
const MOST_EVENTS: usize = 10_000;
const LARGEST_ENTRY: usize = 1 << 30;
const BUFFER_SIZE: usize = 1 << 20;
const LONGEST_LINE: u64 = 2 * (1 << 20) + 64;
const DMA_READ: u32 = 2;
const DMA_SELECT: u32 = 8;
const PORT_DMA_HIGH: u16 = 0x514;
const PORT_DMA_LOW: u16 = 0x518;
const REQUEST: u32 = 0x1000;
const BUFFER: u64 = 0x10_0000;
