// SPDX-License-Identifier: Apache-2.0
//! An oracle that shares nothing with the calculator: real firmware boots a real kernel under emulation, with a
//! TPM, and writes its own event log. The log is read straight out of the guest's memory.
//!
//! What it cannot show: the events that only a trust domain has (TD HOB, configuration volume), and ACPI in
//! that same boot, since a TPM changes the tables. ACPI is compared in a boot without TPM.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use calculator::{AcpiDigests, FirmwareGeneration, ImageBytes, ImageMeasurements, registers};
use event_log::EventLog;
use measure::acpi::{self, PhysicalBits};
use memchr::memmem;
use types::{Device, MachineShape, QemuVersion, RegisterName, Sha256Digest, Sha384Digest, shape::ShapeFacts};

const MEMORY_MIB: u32 = 256;
const COMMAND_LINE: &str = "panic=-1 quiet loglevel=0 no_timer_check";
const OVMF_SHA256: &str = "14954040cc754ade0c625ac3470ea46d4c14318b5b1396de4ef77090203d76db";

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

macro_rules! need {
    ($value:expr, $what:literal) => {
        match $value {
            Some(value) => value,
            None => {
                println!(concat!("SKIPPED: ", $what));
                return;
            }
        }
    };
}

#[test]
fn predictions_equal_the_log_of_real_firmware() {
    let version = need!(qemu_version(), "firmware's own log (no qemu-system-x86_64)");
    need!(Path::new("/usr/bin/swtpm").exists().then_some(()), "firmware's own log (no swtpm)");
    let ovmf = need!(debian_ovmf(), "firmware's own log (Debian 13's OVMF.fd not found)");
    let kernel = need!(kernel(), "firmware's own log (no kernel: CHRYSALIS_KERNEL or cache)");
    let dir = tempfile::tempdir().unwrap();
    // The kernel measures the initrd before it looks into it, so any bytes will do.
    let initrd: Vec<u8> = (0..1_234_567_u32).map(|i| i.to_le_bytes()[1]).collect();
    std::fs::write(dir.path().join("initrd"), &initrd).unwrap();
    let memory = boot_with_tpm(dir.path(), &ovmf, &kernel);
    let bytes = std::fs::read(&kernel).unwrap();
    let image = ImageBytes {
        firmware: &std::fs::read(&ovmf).unwrap(),
        generation: FirmwareGeneration::Edk2Stable202502,
        kernel: &bytes,
        initrd: &initrd,
        command_line: COMMAND_LINE,
    };
    let image = ImageMeasurements::of(&image, &[MEMORY_MIB]).unwrap();
    let zero = AcpiDigests { loader: Sha384Digest::ZERO, rsdp: Sha384Digest::ZERO, tables: Sha384Digest::ZERO };
    let expected = registers(&image, &shape(version), &zero).unwrap();
    let log = wait_for_log(&memory).expect("the firmware's log up to the initrd");
    let not_in_this_log = ["TD HOB", "configuration volume", "leaving boot services", "left boot services"];
    let predicted: Vec<_> = expected
        .events
        .iter()
        .filter(|event| !event.name.starts_with("ACPI") && !not_in_this_log.contains(&event.name))
        .collect();
    // Register by register: PCR 1 and 7, 2 to 6, 8 to 15 (the same events, with more of a PC's own between).
    for (register, pcrs) in [
        (RegisterName::Rtmr0, vec![1, 7]),
        (RegisterName::Rtmr1, vec![2, 3, 4, 5, 6]),
        (RegisterName::Rtmr2, vec![8, 9]),
    ] {
        let mut logged = log.iter().filter(|(pcr, _)| pcrs.contains(pcr)).map(|(_, digest)| *digest);
        for event in predicted.iter().filter(|event| event.register == register) {
            assert!(
                logged.any(|digest| digest == event.digest),
                "{register}: {} is not in the log at its place",
                event.name
            );
        }
    }
    // The test can fail: another command line would not be found.
    let other = calculator::load_options("quiet", calculator::InitrdWord::After).unwrap();
    assert!(log.iter().all(|(_, digest)| *digest != Sha384Digest::of(&other)));
}

#[test]
fn tables_are_those_that_firmware_gets() {
    need!(qemu_version(), "ACPI tables after firmware (no qemu-system-x86_64)");
    let ovmf = need!(debian_ovmf(), "ACPI tables after firmware (Debian 13's OVMF.fd not found)");
    let shape = shape(qemu_version().unwrap());
    let arguments = qemu::table_arguments(&shape);
    let predicted = acpi::read(&qemu_program(), &arguments, PhysicalBits::EMULATED).unwrap();
    // The same machine with firmware and a memory that can be looked into. QEMU leaves the tables in the guest's
    // memory where the firmware put them; DSDT is the part that depends on what was programmed before.
    let dir = tempfile::tempdir().unwrap();
    let memory = dir.path().join("memory");
    let arguments: Vec<String> = arguments
        .into_iter()
        .filter(|argument| argument != "-S")
        .map(|argument| match argument.strip_prefix("memory-backend-memfd,") {
            Some(rest) => format!("memory-backend-file,mem-path={},{rest}", memory.display()),
            None => argument,
        })
        .collect();
    let mut command = Command::new(qemu_program());
    command.args(arguments).arg("-bios").arg(&ovmf).stdin(Stdio::null()).stderr(Stdio::null());
    let _qemu = Ended(command.spawn().unwrap());
    let dsdt = table(&predicted.tables, b"DSDT").to_vec();
    let found = poll(|| {
        let bytes = std::fs::read(&memory).unwrap_or_default();
        let found: Vec<_> = tables_in(&bytes, b"DSDT", dsdt.len()).map(<[u8]>::to_vec).collect();
        (!found.is_empty()).then_some(found)
    });
    let found = found.expect("a DSDT in the guest's memory");
    // The firmware fills in the checksum, at offset 9.
    let blank = |table: &[u8]| [&table[..9], &[0], &table[10..]].concat();
    assert!(found.iter().any(|table| blank(table) == dsdt), "the firmware got another DSDT");
}

/// Starts QEMU with swtpm, OVMF, `kernel` and `dir/initrd`; gives the file that is the guest's memory.
fn boot_with_tpm(dir: &Path, ovmf: &Path, kernel: &Path) -> (PathBuf, [Ended; 2]) {
    let socket = dir.join("tpm");
    std::fs::create_dir(dir.join("state")).unwrap();
    let mut tpm = Command::new("/usr/bin/swtpm");
    tpm.args(["socket", "--tpm2", "--flags", "startup-clear", "--tpmstate"])
        .arg(format!("dir={}", dir.join("state").display()))
        .arg("--ctrl")
        .arg(format!("type=unixio,path={}", socket.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let tpm = Ended(tpm.spawn().unwrap());
    poll(|| socket.exists().then_some(())).expect("swtpm's socket");
    let memory = dir.join("memory");
    let mut qemu = Command::new(qemu_program());
    qemu.args([
        "-machine",
        "q35,memory-backend=mem0",
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-nodefaults",
        "-no-user-config",
    ])
    .args(["-no-reboot", "-display", "none", "-m", &format!("{MEMORY_MIB}M"), "-object"])
    .arg(format!("memory-backend-file,id=mem0,size={MEMORY_MIB}M,share=on,mem-path={}", memory.display()))
    .args(["-device", "tpm-tis,tpmdev=tpm0", "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-chardev"])
    .arg(format!("socket,id=tpm,path={}", socket.display()))
    .arg("-bios")
    .arg(ovmf)
    .arg("-kernel")
    .arg(kernel)
    .arg("-initrd")
    .arg(dir.join("initrd"))
    .args(["-append", COMMAND_LINE])
    .stdin(Stdio::null())
    .stderr(Stdio::null());
    let qemu = Ended(qemu.spawn().unwrap());
    (memory, [qemu, tpm])
}

/// Looks for a log in the guest's memory that reaches up to the initrd. The kernel's stub keeps a copy of the log
/// as it was when boot services ended, so the last two events are not in it.
fn wait_for_log((memory, _processes): &(PathBuf, [Ended; 2])) -> Option<Vec<(u32, Sha384Digest)>> {
    poll(|| {
        let bytes = std::fs::read(memory).unwrap_or_default();
        let starts = memmem::find_iter(&bytes, b"Spec ID Event03\0").filter_map(|at| at.checked_sub(32));
        starts.filter_map(|start| log_up_to_initrd(&bytes[start..])).next()
    })
}

/// The space behind the last event may hold anything, so the event's own text marks the end.
fn log_up_to_initrd(bytes: &[u8]) -> Option<Vec<(u32, Sha384Digest)>> {
    let bytes = &bytes[..bytes.len().min(1 << 16)];
    let last = b"Linux initrd\0";
    let end = memmem::find(bytes, last)? + last.len();
    let log = EventLog::parse(&bytes[..end]).ok()?;
    Some(log.events.iter().filter_map(|e| Some((e.index, e.sha384()?))).collect())
}

/// Tables with this signature and length whose bytes sum to zero.
fn tables_in<'a>(bytes: &'a [u8], signature: &'a [u8; 4], len: usize) -> impl Iterator<Item = &'a [u8]> + 'a {
    memmem::find_iter(bytes, signature)
        .filter_map(move |at| bytes.get(at..at + len))
        .filter(move |table| table[4..8] == u32::try_from(len).unwrap().to_le_bytes())
        .filter(|table| table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) == 0)
}

/// The table in QEMU's blob, whose checksums are not filled in.
fn table<'a>(blob: &'a [u8], signature: &[u8; 4]) -> &'a [u8] {
    let at = memmem::find(blob, signature).unwrap();
    let len = u32::from_le_bytes(blob[at + 4..at + 8].try_into().unwrap());
    &blob[at..at + usize::try_from(len).unwrap()]
}

/// Asks again and again, for two minutes at most.
fn poll<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..240 {
        if let Some(found) = ask() {
            return Some(found);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    std::io::stderr().write_all(b"gave up\n").unwrap();
    None
}

fn shape(qemu: QemuVersion) -> MachineShape {
    let devices = vec![Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock];
    MachineShape::new(ShapeFacts { vcpus: 2, memory_mib: MEMORY_MIB, physical_bits: 40, qemu, devices }).unwrap()
}

/// The QEMU to test with: `CHRYSALIS_QEMU`, else the machine's own.
fn qemu_program() -> PathBuf {
    std::env::var_os("CHRYSALIS_QEMU").map_or_else(|| PathBuf::from("/usr/bin/qemu-system-x86_64"), PathBuf::from)
}

fn qemu_version() -> Option<QemuVersion> {
    let output = Command::new(qemu_program()).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (_, rest) = text.split_once("version ")?;
    let mut numbers = rest.split(['.', ' ']).map(str::parse);
    Some(QemuVersion { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
}

fn kernel() -> Option<PathBuf> {
    candidates("CHRYSALIS_KERNEL", &["vmlinuz", "bzImage"]).into_iter().next()
}

fn debian_ovmf() -> Option<PathBuf> {
    let digest: Sha256Digest = OVMF_SHA256.parse().unwrap();
    let is_it = |path: &PathBuf| std::fs::read(path).is_ok_and(|bytes| Sha256Digest::of(&bytes) == digest);
    candidates("CHRYSALIS_OVMF", &["OVMF.fd", "firmware.fd"]).into_iter().find(is_it)
}

/// The file named by a variable of the environment, then those with one of `names` in the cache.
fn candidates(variable: &str, names: &[&str]) -> Vec<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("CHRYSALIS_CACHE").map(PathBuf::from).or_else(|| {
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home).map(|dir| dir.join("chrysalis"))
    });
    let mut found: Vec<PathBuf> = std::env::var_os(variable).map(PathBuf::from).into_iter().collect();
    let mut open: Vec<(PathBuf, usize)> = cache.into_iter().map(|dir| (dir, 0)).collect();
    while let Some((dir, depth)) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && depth < 5 {
                open.push((entry.path(), depth + 1));
            } else if kind.is_file() && names.iter().any(|name| entry.path().ends_with(name)) {
                found.push(entry.path());
            }
        }
    }
    found
}
