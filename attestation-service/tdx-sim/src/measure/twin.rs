// SPDX-License-Identifier: Apache-2.0
//! The twin: a second QEMU with the same machine, run until the firmware has read the ACPI tables, then asked for
//! everything that it serves to the firmware.
//!
//! QEMU builds the tables when they are first read, from how the firmware has programmed the PCI windows by then, and
//! never again before a reset: what is read afterwards is what the firmware measured.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::control::{FwCfg, FwCfgFile, Qmp};
use super::{Launch, MeasureError};

/// What QEMU serves to the firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The kernel image, as the firmware puts it together.
    pub kernel: Vec<u8>,
    /// The initial RAM disk; empty when there is none.
    pub initrd: Vec<u8>,
    /// Kernel command line without the terminating NUL.
    pub command_line: Vec<u8>,
    /// The ACPI linker script `etc/table-loader`.
    pub loader: Vec<u8>,
    /// The blobs that the script allocates, in its order.
    pub blobs: Vec<Vec<u8>>,
    /// Ranges of RAM in the guest's physical address space.
    pub ram: Vec<Range<u64>>,
}

/// Runs a twin of `launch` and reads everything.
pub(super) fn serve(launch: &Launch) -> Result<Served, MeasureError> {
    let mut twin = Twin::start(launch)?;
    let files = twin.fw_cfg.directory()?;
    let selected = twin.run_until_tables_are_read(&files)?;
    Reader { fw_cfg: &mut twin.fw_cfg, files: &files, selected: &selected }.read_all()
}

struct Twin {
    process: Killed,
    directory: tempfile::TempDir,
    qmp: Qmp,
    fw_cfg: FwCfg,
}

impl Twin {
    fn start(launch: &Launch) -> Result<Self, MeasureError> {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        let mut arguments = launch.twin_arguments()?;
        let (qmp, qtest, trace) = (at("qmp"), at("qtest"), at("trace"));
        arguments.extend([
            "-S".to_owned(),
            "-no-shutdown".to_owned(),
            "-qmp".to_owned(),
            format!("unix:{},server=on,wait=off", qmp.display()),
            "-qtest".to_owned(),
            format!("unix:{},server=on,wait=off", qtest.display()),
            "-qtest-log".to_owned(),
            "/dev/null".to_owned(),
            "-trace".to_owned(),
            format!("enable=fw_cfg_select,file={}", trace.display()),
        ]);
        let mut process = Killed(
            Command::new(launch.program())
                .args(arguments)
                .current_dir(launch.directory())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(fs::File::create(at("stderr"))?)
                .spawn()
                .map_err(|source| MeasureError::File { path: launch.program().to_owned(), source })?,
        );
        let begin = Instant::now();
        while !(qmp.exists() && qtest.exists()) {
            if process.0.try_wait()?.is_some() || begin.elapsed() > START {
                return Err(MeasureError::Twin(last_words(&at("stderr"))));
            }
            sleep(POLL);
        }
        let (qmp, fw_cfg) = (Qmp::connect(&qmp)?, FwCfg::connect(&qtest)?);
        Ok(Self { process, directory, qmp, fw_cfg })
    }

    /// Lets the firmware run until it has read the tables, then stops it. Returns the keys that it selected.
    fn run_until_tables_are_read(&mut self, files: &[FwCfgFile]) -> Result<BTreeSet<u16>, MeasureError> {
        let tables = files.iter().find(|file| file.name == TABLES).ok_or(MeasureError::Answer(TABLES))?.key;
        let trace = self.directory.path().join("trace");
        self.qmp.run("cont")?;
        let begin = Instant::now();
        loop {
            let selected = selected_keys(&fs::read_to_string(&trace).unwrap_or_default());
            if selected.contains(&tables) {
                self.qmp.run("stop")?;
                return Ok(selected);
            }
            if self.process.0.try_wait()?.is_some() {
                return Err(MeasureError::Twin(last_words(&self.directory.path().join("stderr"))));
            }
            if begin.elapsed() > FIRMWARE {
                return Err(MeasureError::TimeOut(FIRMWARE.as_secs()));
            }
            sleep(POLL);
        }
    }
}

struct Reader<'a> {
    fw_cfg: &'a mut FwCfg,
    files: &'a [FwCfgFile],
    selected: &'a BTreeSet<u16>,
}

impl Reader<'_> {
    fn read_all(mut self) -> Result<Served, MeasureError> {
        let loader = self.file(LOADER)?.ok_or(MeasureError::Answer(LOADER))?;
        let mut blobs = Vec::new();
        for name in allocated(&loader)? {
            blobs.push(self.file(&name)?.ok_or(MeasureError::Answer("a file of etc/table-loader"))?);
        }
        let mut command_line = self.boot_file("etc/boot/cmdline", &[COMMAND_LINE])?;
        if command_line.pop_if(|byte| *byte == 0).is_none() && !command_line.is_empty() {
            return Err(MeasureError::Answer("the kernel command line"));
        }
        Ok(Served {
            kernel: self.boot_file("etc/boot/kernel", &[KERNEL_SETUP, KERNEL])?,
            initrd: self.boot_file("etc/boot/initrd", &[INITRD])?,
            command_line,
            ram: ram(&self.file(MEMORY_MAP)?.ok_or(MeasureError::Answer(MEMORY_MAP))?)?,
            loader,
            blobs,
        })
    }

    fn file(&mut self, name: &str) -> Result<Option<Vec<u8>>, MeasureError> {
        match self.files.iter().find(|file| file.name == name) {
            Some(file) => Ok(Some(self.fw_cfg.entry(file.key, file.size)?)),
            None => Ok(None),
        }
    }

    /// A named file when the firmware took that, else the old numbered entries one after the other.
    fn boot_file(&mut self, name: &str, entries: &[Numbered]) -> Result<Vec<u8>, MeasureError> {
        if self.files.iter().any(|file| file.name == name && self.selected.contains(&file.key)) {
            return Ok(self.file(name)?.unwrap_or_default());
        }
        let mut out = Vec::new();
        for entry in entries {
            let size = self.fw_cfg.number(entry.size)?;
            if size > 0 && !self.selected.contains(&entry.data) {
                return Err(MeasureError::Twin(format!("the firmware did not read {name}")));
            }
            out.extend(self.fw_cfg.entry(entry.data, size)?);
        }
        Ok(out)
    }
}

/// Keys of an entry's size and data (QEMU `include/standard-headers/linux/qemu_fw_cfg.h`).
struct Numbered {
    size: u16,
    data: u16,
}

/// Files of the ALLOCATE commands of a linker script (QEMU `hw/acpi/bios-linker-loader.c`: 128 bytes a command).
fn allocated(loader: &[u8]) -> Result<Vec<String>, MeasureError> {
    let malformed = || MeasureError::Answer(LOADER);
    if !loader.len().is_multiple_of(LOADER_COMMAND) {
        return Err(malformed());
    }
    let mut names = Vec::new();
    for command in loader.chunks_exact(LOADER_COMMAND) {
        if command.get(..4) == Some(&LOADER_ALLOCATE.to_le_bytes()) {
            let name = command.get(4..60).and_then(|name| name.split(|byte| *byte == 0).next());
            names.push(String::from_utf8(name.unwrap_or_default().to_vec()).map_err(|_| malformed())?);
        }
    }
    Ok(names)
}

/// RAM ranges of `etc/e820`: address u64, length u64, type u32, little-endian.
fn ram(map: &[u8]) -> Result<Vec<Range<u64>>, MeasureError> {
    let malformed = || MeasureError::Answer(MEMORY_MAP);
    if !map.len().is_multiple_of(MEMORY_MAP_ENTRY) {
        return Err(malformed());
    }
    let mut ranges = Vec::new();
    for entry in map.chunks_exact(MEMORY_MAP_ENTRY) {
        let number = |range: Range<usize>| entry.get(range)?.try_into().ok().map(u64::from_le_bytes);
        let (start, length) = (number(0..8).ok_or_else(malformed)?, number(8..16).ok_or_else(malformed)?);
        if entry.get(16..) == Some(&MEMORY_IS_RAM.to_le_bytes()) {
            ranges.push(start..start.checked_add(length).ok_or_else(malformed)?);
        }
    }
    Ok(ranges)
}

/// Keys in lines like `fw_cfg_select 0x55.. key 0x0019 'file_dir', ret: 1`.
fn selected_keys(trace: &str) -> BTreeSet<u16> {
    trace
        .lines()
        .filter(|line| line.contains("fw_cfg_select"))
        .filter_map(|line| line.split("key 0x").nth(1)?.get(..4).and_then(|key| u16::from_str_radix(key, 16).ok()))
        .collect()
}

fn last_words(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    match text.lines().last() {
        Some(line) => line.chars().take(400).collect(),
        None => "did not start in time and said nothing".to_owned(),
    }
}

const START: Duration = Duration::from_secs(30);
const FIRMWARE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
const TABLES: &str = "etc/acpi/tables";
const LOADER: &str = "etc/table-loader";
const LOADER_COMMAND: usize = 128;
const LOADER_ALLOCATE: u32 = 1;
const MEMORY_MAP: &str = "etc/e820";
const MEMORY_MAP_ENTRY: usize = 20;
const MEMORY_IS_RAM: u32 = 1;
const KERNEL_SETUP: Numbered = Numbered { size: 0x17, data: 0x18 };
const KERNEL: Numbered = Numbered { size: 0x08, data: 0x11 };
const INITRD: Numbered = Numbered { size: 0x0b, data: 0x12 };
const COMMAND_LINE: Numbered = Numbered { size: 0x14, data: 0x15 };

/// A child that never outlives its owner.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_scripts_and_memory_maps_are_read_strictly() {
        let trace =
            "fw_cfg_select 0x5 key 0x0019 'file_dir', ret: 1\nother key 0x0001\nfw_cfg_select 0x5 key 0x002c 'u', ret";
        assert_eq!(selected_keys(trace), BTreeSet::from([0x19, 0x2c]));
        let mut script = vec![0; 256];
        script[128] = 1;
        script[132..136].copy_from_slice(b"etc/");
        assert_eq!(allocated(&script).unwrap(), ["etc/"]);
        assert!(allocated(&script[1..]).is_err());
        let mut map = [0_u8; 40];
        map[8..16].copy_from_slice(&7_u64.to_le_bytes());
        map[16] = 1;
        map[36] = 2;
        assert_eq!(ram(&map).unwrap(), std::slice::from_ref(&(0..7)));
        map[0..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(ram(&map).is_err());
        assert!(ram(&map[1..]).is_err());
    }
}
