// SPDX-License-Identifier: Apache-2.0
//! Machines for the comparison with real firmware: programs, files, boots, and what they leave in memory.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use event_log::{Event, EventLog};
use measure::acpi::Program;
use memchr::memmem;
use types::{Sha256Digest, Sha384Digest};

pub(crate) const MEMORY_MIB: u32 = 256;
pub(crate) const COMMAND_LINE: &str = "panic=-1 quiet loglevel=0 no_timer_check";
const OVMF_2025_02: &str = "14954040cc754ade0c625ac3470ea46d4c14318b5b1396de4ef77090203d76db";
const OVMF_2026_08: &str = "6a3e8f438ad7269f5dfd884647587b88391fb23965bb3aa7902b519438dba129";

/// A process that ends with the test.
pub(crate) struct Ended(Child);

impl Ended {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An event of the firmware's TPM log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Logged {
    pub(crate) pcr: u32,
    pub(crate) kind: u32,
    pub(crate) digest: Sha384Digest,
}

/// The machine's own QEMU.
pub(crate) fn installed_qemu() -> Option<PathBuf> {
    let program = PathBuf::from("/usr/bin/qemu-system-x86_64");
    program.is_file().then_some(program)
}

/// A QEMU out of locked packages, from the cache (`image host-tool qemu-VERSION` puts it there).
pub(crate) fn packaged_qemu(version: &str) -> Option<PathBuf> {
    let variable = format!("CHRYSALIS_QEMU_{}", version.replace('.', "_"));
    let is_it = |path: &PathBuf| Program::ask(path).is_ok_and(|program| program.version.to_string() == version);
    candidates(&variable, &["start"]).into_iter().find(is_it)
}

pub(crate) fn swtpm() -> Option<PathBuf> {
    let program = PathBuf::from("/usr/bin/swtpm");
    program.is_file().then_some(program)
}

pub(crate) fn kernel() -> Option<PathBuf> {
    candidates("CHRYSALIS_KERNEL", &["vmlinuz", "bzImage"]).into_iter().next()
}

/// `OVMF.fd` of Debian 13.
pub(crate) fn ovmf() -> Option<PathBuf> {
    firmware("CHRYSALIS_OVMF", OVMF_2025_02)
}

/// `OVMF.fd` of Debian's ovmf-generic 2026.08 (`image host-tool ovmf-2026.08` puts it into the cache).
pub(crate) fn newer_ovmf() -> Option<PathBuf> {
    firmware("CHRYSALIS_OVMF_2026_08", OVMF_2026_08)
}

fn firmware(variable: &str, digest: &str) -> Option<PathBuf> {
    let digest: Sha256Digest = digest.parse().unwrap();
    let is_it = |path: &PathBuf| std::fs::read(path).is_ok_and(|bytes| Sha256Digest::of(&bytes) == digest);
    candidates(variable, &["OVMF.fd", "firmware.fd"]).into_iter().find(is_it)
}

/// Starts QEMU with swtpm, firmware, `kernel` and `dir/initrd`; gives the file that is the guest's memory.
pub(crate) fn boot_with_tpm(qemu: &Path, dir: &Path, ovmf: &Path, kernel: &Path) -> (PathBuf, [Ended; 2]) {
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
    let mut machine = Command::new(qemu);
    machine
        .args([
            "-machine",
            "q35,memory-backend=mem0,smm=off,pic=off",
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
    let machine = Ended(machine.spawn().unwrap());
    (memory, [machine, tpm])
}

/// Looks for a log in the guest's memory that reaches up to the initrd. The kernel's stub keeps a copy of the log
/// as it was when boot services ended, so the last two events are not in it.
pub(crate) fn wait_for_log((memory, _processes): &(PathBuf, [Ended; 2])) -> Option<Vec<Logged>> {
    poll(|| {
        let bytes = std::fs::read(memory).unwrap_or_default();
        let starts = memmem::find_iter(&bytes, b"Spec ID Event03\0").filter_map(|at| at.checked_sub(32));
        starts.filter_map(|start| log_up_to_initrd(&bytes[start..])).next()
    })
}

/// The space behind the last event may hold anything, so the event's own text marks the end.
fn log_up_to_initrd(bytes: &[u8]) -> Option<Vec<Logged>> {
    let bytes = &bytes[..bytes.len().min(1 << 16)];
    let last = b"Linux initrd\0";
    let end = memmem::find(bytes, last)? + last.len();
    let log = EventLog::parse(&bytes[..end]).ok()?;
    let logged = |e: &Event<'_>| Some(Logged { pcr: e.index, kind: e.event_type, digest: e.sha384()? });
    Some(log.events.iter().filter_map(logged).collect())
}

/// Tables with this signature and length whose bytes sum to zero.
pub(crate) fn tables_in<'a>(
    bytes: &'a [u8],
    signature: &'a [u8; 4],
    len: usize,
) -> impl Iterator<Item = &'a [u8]> + 'a {
    memmem::find_iter(bytes, signature)
        .filter_map(move |at| bytes.get(at..at + len))
        .filter(move |table| table[4..8] == u32::try_from(len).unwrap().to_le_bytes())
        .filter(|table| table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) == 0)
}

/// The table in QEMU's blob, whose checksums are not filled in.
pub(crate) fn table<'a>(blob: &'a [u8], signature: &[u8; 4]) -> &'a [u8] {
    let at = memmem::find(blob, signature).unwrap();
    let len = u32::from_le_bytes(blob[at + 4..at + 8].try_into().unwrap());
    &blob[at..at + usize::try_from(len).unwrap()]
}

/// Asks again and again, for some minutes at most.
pub(crate) fn poll<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..480 {
        if let Some(found) = ask() {
            return Some(found);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    std::io::stderr().write_all(b"gave up\n").unwrap();
    None
}

/// The file named by a variable of the environment, then those with one of `names` in the cache.
pub(crate) fn candidates(variable: &str, names: &[&str]) -> Vec<PathBuf> {
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
