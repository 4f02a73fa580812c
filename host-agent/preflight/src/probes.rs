// SPDX-License-Identifier: Apache-2.0
//! Questions that no file answers: to programs, sockets and devices.

use std::fmt;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vfio::{HostTree, PciAddress};

use crate::pccs;
use crate::qgs::{self, PlatformAnswer};

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// QEMU's version line.
    QemuVersion,
    /// QEMU's list of objects.
    QemuObjects,
    /// What are the enclaves of the quote generation service at this Unix socket?
    QuoteService(PathBuf),
    /// Does the certificate caching service at this host and port serve what Intel signs for everybody?
    Pccs(String),
    /// The mode that a GPU or switch is in.
    GpuMode(PciAddress),
    /// Free bytes below this directory.
    FreeBytes(PathBuf),
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QemuVersion => f.write_str("qemu --version"),
            Self::QemuObjects => f.write_str("qemu -object help"),
            Self::QuoteService(path) => write!(f, "quote service {}", path.display()),
            Self::Pccs(address) => write!(f, "pccs {address}"),
            Self::GpuMode(address) => write!(f, "gpu mode {address}"),
            Self::FreeBytes(path) => write!(f, "free bytes {}", path.display()),
        }
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// An answer; empty where "yes" is all.
    Given(String),
    /// It was asked in vain, for this reason.
    Failed(String),
    /// It was not asked.
    Unasked,
}

/// Who answers.
pub trait Probes {
    /// Asks.
    fn ask(&self, question: &Question) -> Answer;
}

/// The machine at hand.
pub struct LiveProbes<'a> {
    /// QEMU.
    pub qemu: PathBuf,
    /// The tree of the machine.
    pub tree: &'a HostTree,
    /// Reads a GPU's mode; `None` does not touch GPUs.
    pub gpu_mode: Option<&'a GpuModeProbe<'a>>,
}

/// Reads the mode of the device at an address, or says why not.
pub type GpuModeProbe<'a> = dyn Fn(PciAddress) -> Result<String, String> + 'a;

impl Probes for LiveProbes<'_> {
    fn ask(&self, question: &Question) -> Answer {
        let result = match question {
            Question::QemuVersion => output(&self.qemu, &["--version"]),
            Question::QemuObjects => output(&self.qemu, &["-object", "help"]),
            Question::QuoteService(path) => quote_service(path),
            Question::Pccs(address) => pccs::ask(address, PATIENCE),
            Question::FreeBytes(path) => {
                let path = path.to_string_lossy();
                self.tree.free_bytes(path.trim_start_matches('/')).map(|n| n.to_string()).map_err(|e| e.to_string())
            }
            Question::GpuMode(address) => match self.gpu_mode {
                Some(read) => read(*address),
                None => return Answer::Unasked,
            },
        };
        result.map_or_else(Answer::Failed, Answer::Given)
    }
}

/// What a recording says.
pub struct RecordedProbes<'a> {
    /// The recording.
    pub tree: &'a HostTree,
}

impl Probes for RecordedProbes<'_> {
    fn ask(&self, question: &Question) -> Answer {
        let answers = self.tree.recording().map(|recording| &recording.answers);
        answers
            .and_then(|answers| answers.get(&question.to_string()))
            .map_or(Answer::Unasked, |text| Answer::read(text))
    }
}

impl Answer {
    /// As it stands in a recording.
    pub(crate) fn written(&self) -> Option<String> {
        match self {
            Self::Given(text) => Some(format!("given {text}")),
            Self::Failed(reason) => Some(format!("failed {reason}")),
            Self::Unasked => None,
        }
    }

    fn read(text: &str) -> Self {
        match text.split_once(' ') {
            Some(("given", rest)) => Self::Given(rest.to_owned()),
            Some(("failed", rest)) => Self::Failed(rest.to_owned()),
            _ => Self::Unasked,
        }
    }
}

/// What a program prints; it may take ten seconds.
fn output(program: &PathBuf, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
    let until = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                // It may just have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{} did not end within ten seconds", program.display()));
            }
        }
    };
    if !status.success() {
        return Err(format!("{} ended with {status}", program.display()));
    }
    let mut bytes = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_OUTPUT).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The enclaves' versions, or nothing for a service that does not say them.
fn quote_service(path: &Path) -> Result<String, String> {
    let connect = || {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok::<_, std::io::Error>(stream)
    };
    let stream = connect().map_err(|error| error.to_string())?;
    match qgs::ask(stream) {
        Ok(PlatformAnswer::Versions { quoting, provisioning }) => {
            Ok(format!("quoting enclave {quoting}, provisioning enclave {provisioning}"))
        }
        Ok(PlatformAnswer::Fault(fault)) => Err(format!("the service reports error {fault:#x}")),
        Ok(PlatformAnswer::Nothing) => Ok(String::new()),
        Err(error) => Err(error.to_string()),
    }
}

/// For a program or a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// QEMU's list of objects has about two KiB.
const MAX_OUTPUT: u64 = 32 << 10;
