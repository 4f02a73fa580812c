// SPDX-License-Identifier: Apache-2.0
//! PID 1 of a test: looks round in a guest, or tries something, and writes what it sees, one fact a line, on the disk that QEMU
//! gave it. What it does, the words after `--` on the kernel's command line say. It stands in no image.

mod tries;

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use linux_sys::{block::open_by_serial, mounts, power};
use nix::{
    fcntl::OFlag,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let report = match words.as_slice() {
        // A firmware's boot adds a word of its own.
        [] | ["initrd=initrd"] => look(),
        ["mounts", ..] => tries::mounts(),
        ["call", stage, call, ..] => tries::call(stage, call),
        ["root", root, ..] => tries::root(root),
        _ => Err("unknown words".into()),
    };
    let report = report.unwrap_or_else(|error| format!("failed {error}\n"));
    // The end of the guest is the test's sign to read the disk; a report that was not written fails it.
    let _ = report_disk().and_then(|mut disk| Ok(disk.write_all(report.as_bytes())?));
    power::off()
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn look() -> Result<String> {
    mounts::pseudo("proc", "/proc", None)?;
    mounts::pseudo("sysfs", "/sys", None)?;
    mounts::pseudo("devtmpfs", "/dev", None)?;
    let mut out = String::new();
    for path in PATHS {
        writeln!(out, "{} {path}", if Path::new(path).exists() { "has" } else { "lacks" })?;
    }
    for line in fs::read_to_string("/proc/filesystems")?.lines() {
        writeln!(out, "filesystem {}", line.trim_start_matches("nodev").trim())?;
    }
    for line in fs::read_to_string("/proc/misc")?.lines().chain(fs::read_to_string("/proc/devices")?.lines()) {
        writeln!(out, "device {}", line.trim())?;
    }
    for device in fs::read_dir("/sys/bus/virtio/devices")? {
        let device = device?.path();
        let id = fs::read_to_string(device.join("device"))?;
        let driver = fs::read_link(device.join("driver")).ok();
        let driver = driver.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        writeln!(out, "virtio {} {}", id.trim(), driver.unwrap_or_else(|| "none".to_owned()))?;
    }
    let clocks = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/available_clocksource")?;
    writeln!(out, "clocks {}", clocks.trim())?;
    writeln!(out, "lockdown {}", fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default().trim())?;
    writeln!(out, "userns {}", if unshare(CloneFlags::CLONE_NEWUSER).is_ok() { "made" } else { "refused" })?;
    let plan9 = mount(Some("share"), "/run", Some("9p"), MsFlags::empty(), Some("trans=virtio"));
    writeln!(out, "9p {}", if plan9.is_ok() { "mounted" } else { "refused" })?;
    for record in kernel_log()? {
        writeln!(out, "log {record}")?;
    }
    writeln!(out, "end")?;
    Ok(out)
}

/// The texts of the kernel's log so far.
fn kernel_log() -> std::io::Result<Vec<String>> {
    let mut log = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg")?;
    let mut records = Vec::new();
    let mut buffer = [0; 8192];
    // Each read gives one record, and an error when there is none left.
    while let Ok(length) = log.read(&mut buffer) {
        let record = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
        let text = record.split_once(';').map_or("", |(_, text)| text);
        records.push(text.lines().next().unwrap_or_default().to_owned());
    }
    Ok(records)
}

/// Opened for writing; what is written is on the disk when the call returns.
fn report_disk() -> Result<File> {
    // By serial for reading, to know which one it is; then the same disk for writing.
    let disk = open_by_serial("probe-report")?;
    let name = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&disk)))?;
    drop(disk);
    Ok(OpenOptions::new().write(true).custom_flags(OFlag::O_SYNC.bits()).open(name)?)
}

const PATHS: &[&str] = &[
    "/sys/firmware/qemu_fw_cfg",
    "/sys/firmware/dmi",
    "/sys/class/dmi",
    "/sys/firmware/efi/vars",
    "/sys/firmware/memmap",
    "/sys/fs/pstore",
    "/sys/module/kvm_clock",
    "/sys/kernel/tracing",
    "/sys/kernel/debug",
    "/sys/kernel/kexec_loaded",
    "/sys/devices/virtual/misc/tdx_guest",
    "/dev/tdx_guest",
    "/dev/mem",
    "/dev/port",
    "/dev/hwrng",
    "/dev/tty0",
    "/dev/ttyS0",
    "/dev/console",
    "/dev/loop-control",
    "/dev/fuse",
    "/dev/rtc0",
    "/proc/kcore",
    "/proc/kallsyms",
    "/proc/config.gz",
    "/proc/modules",
    "/proc/sysrq-trigger",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/unprivileged_bpf_disabled",
];
