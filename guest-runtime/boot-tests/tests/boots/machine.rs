// SPDX-License-Identifier: Apache-2.0
//! A machine under emulation, the image's files, and the initrd of a test.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A process that ends with the test.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    /// Whether it ended by itself before the time limit.
    pub(crate) fn ends(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < TIME_LIMIT {
            if self.0.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a boot needs. `None` says what is missing.
pub(crate) struct Image {
    pub(crate) firmware: PathBuf,
    pub(crate) kernel: PathBuf,
}

impl Image {
    pub(crate) fn find() -> Result<Self, &'static str> {
        let file = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_file());
        if !qemu().is_file() {
            return Err("no qemu-system-x86_64");
        }
        let firmware = file("CHRYSALIS_OVMF").ok_or("CHRYSALIS_OVMF is not set")?;
        let kernel = file("CHRYSALIS_KERNEL").ok_or("CHRYSALIS_KERNEL is not set")?;
        Ok(Self { firmware, kernel })
    }

    /// The image with a root disk, for GPUs: all of its files in one directory, `CHRYSALIS_GPU_IMAGE`.
    pub(crate) fn with_root() -> Result<Self, &'static str> {
        if !qemu().is_file() {
            return Err("no qemu-system-x86_64");
        }
        let directory = std::env::var_os("CHRYSALIS_GPU_IMAGE").map(PathBuf::from);
        let directory = directory.filter(|path| path.is_dir()).ok_or("CHRYSALIS_GPU_IMAGE is not set")?;
        Ok(Self { firmware: directory.join("firmware.fd"), kernel: directory.join("vmlinuz") })
    }

    /// The image's own initrd, which stands beside its kernel.
    pub(crate) fn initrd(&self) -> Result<PathBuf, &'static str> {
        let initrd = self.kernel.with_file_name("initrd");
        initrd.is_file().then_some(initrd).ok_or("no initrd beside the kernel")
    }

    /// The image's own command line.
    pub(crate) fn command_line(&self) -> Result<String, &'static str> {
        std::fs::read_to_string(self.kernel.with_file_name("cmdline")).map_err(|_| "no cmdline beside the kernel")
    }
}

pub(crate) fn qemu() -> PathBuf {
    std::env::var_os("CHRYSALIS_QEMU").map_or_else(|| PathBuf::from("/usr/bin/qemu-system-x86_64"), PathBuf::from)
}

/// QEMU with what all boots have in common.
pub(crate) fn machine(kernel: &Path, initrd: &Path, command_line: &str) -> Command {
    let mut command = Command::new(qemu());
    command
        .args([
            "-machine",
            "q35,memory-backend=mem0,smm=off,pic=off",
            "-accel",
            "tcg",
            "-m",
            "512M",
            "-smp",
            "1",
            "-nodefaults",
        ])
        .args(["-cpu", "max,-avx,-avx2,-fma,-f16c,-vaes,-vpclmulqdq"])
        .args(["-no-user-config", "-no-reboot", "-display", "none"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", command_line]);
    command
}

/// A `newc` archive with a program as `/init`, and what the dynamic linker wants for it.
pub(crate) fn initrd_with(program: &Path) -> Vec<u8> {
    let mut archive = Archive(Vec::new());
    for directory in ["bin", "dev", "proc", "run", "sys", "lib", "lib64", "usr", "usr/lib"] {
        archive.add(directory, 0o40755, (0, 0), b"");
    }
    archive.add("dev/null", 0o20666, (1, 3), b"");
    archive.add("init", 0o100_755, (0, 0), &std::fs::read(program).unwrap());
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let mut directories = vec!["lib".to_owned(), "lib64".to_owned()];
    for library in String::from_utf8(listed.stdout).unwrap().split_whitespace().filter(|word| word.starts_with('/')) {
        let path = library.trim_start_matches('/');
        let mut parent = String::new();
        for part in path.split('/').take(path.split('/').count() - 1) {
            parent = if parent.is_empty() { part.to_owned() } else { format!("{parent}/{part}") };
            if !directories.contains(&parent) {
                archive.add(&parent, 0o40755, (0, 0), b"");
                directories.push(parent.clone());
            }
        }
        archive.add(path, 0o100_755, (0, 0), &std::fs::read(library).unwrap());
    }
    archive.add("TRAILER!!!", 0, (0, 0), b"");
    archive.0
}

struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        let fields = [
            u32::try_from(self.0.len()).unwrap(),
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(contents.len()).unwrap(),
            0,
            0,
            device.0,
            device.1,
            u32::try_from(path.len() + 1).unwrap(),
            0,
        ];
        let header: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        self.0.extend(format!("070701{header}{path}\0").into_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.0.extend(contents);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// A boot takes a few seconds on a machine that has nothing else to do.
const TIME_LIMIT: Duration = Duration::from_secs(180);
