// SPDX-License-Identifier: Apache-2.0
//! Stands in for libnvidia-ml and libnvidia-nscq: the same symbols, with answers from the file that the environment variable
//! [`FILE`] names. It replays evidence of real devices and every failure. Never part of an image.
#![allow(unsafe_code, reason = "C symbols, as NVIDIA's libraries have them")]

pub mod nscq;
pub mod nvml;

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Names the file with the [`Script`].
pub const FILE: &str = "CHRYSALIS_GPU_STANDIN";

/// What the libraries answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// GPUs by index.
    pub gpus: Vec<Device>,
    /// NVSwitches; the label is made of the first 16 bytes of the UUID's text.
    pub switches: Vec<Device>,
    /// Version of the driver.
    pub driver_version: String,
    /// `ccFeature`, `devToolsMode` of the state.
    pub state: [u32; 2],
    /// `ccFeature`, `devToolsMode`, `multiGpuMode` of the settings.
    pub settings: [u32; 3],
    /// Code of a call, by the call's name, or by name and device: `nvmlDeviceGetUUID 1`.
    pub fail: BTreeMap<String, i32>,
    /// The number of GPUs, where it is not theirs.
    pub count: Option<u32>,
    /// Asking for reports with another nonce than this fails, as real evidence has one nonce.
    pub nonce: Option<[u8; 32]>,
    /// A file that gets a line when the GPUs are let work.
    pub ready: Option<PathBuf>,
    /// What a library has no business doing, tried when the driver's version is asked for.
    pub tries: Option<Attempt>,
    /// What the ready state says after it was set; 1 where it works.
    pub ready_state: u32,
}

/// What a library could try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attempt {
    /// Start a program.
    Program,
    /// Make a socket.
    Socket,
    /// Make a file.
    File,
    /// Make memory executable.
    ExecutableMemory,
}

impl Attempt {
    /// Whether it worked.
    fn works(self) -> bool {
        match self {
            Self::Program => std::process::Command::new("/bin/true").status().is_ok(),
            Self::Socket => std::net::UdpSocket::bind("127.0.0.1:0").is_ok(),
            Self::File => {
                let name = format!("chrysalis-gpu-standin-{}", std::process::id());
                let path = std::env::temp_dir().join(name);
                fs::File::create(&path).and_then(|_| fs::remove_file(path)).is_ok()
            }
            Self::ExecutableMemory => {
                let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                // SAFETY: new memory that nobody uses.
                let found = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
                found != libc::MAP_FAILED
            }
        }
    }
}

/// One device.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its UUID.
    pub uuid: String,
    /// Its report.
    pub report: Vec<u8>,
    /// Its certificates in PEM.
    pub chain: Vec<u8>,
    /// `NVML_DEVICE_ARCH_*`.
    pub architecture: u32,
    /// The size that is said of the report, where it is not its own.
    pub report_size: Option<u32>,
    /// The size that is said of the certificates, where it is not their own.
    pub chain_size: Option<u32>,
}

impl Script {
    /// Reads the script; `None` where there is none that can be read.
    fn read() -> Option<Self> {
        let bytes = fs::read(std::env::var_os(FILE)?).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn code(&self, call: &str, device: Option<usize>) -> Option<i32> {
        let of_device = device.and_then(|index| self.fail.get(&format!("{call} {index}")));
        of_device.or_else(|| self.fail.get(call)).copied()
    }
}

/// Fills a buffer with the bytes that fit.
fn fill(buffer: &mut [u8], bytes: &[u8]) {
    for (to, from) in buffer.iter_mut().zip(bytes) {
        *to = *from;
    }
}
