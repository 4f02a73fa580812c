// SPDX-License-Identifier: Apache-2.0
//! What checks look at.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use vfio::{Architecture, DeviceKind, HostTree, PciDevice, TreeError, inventory};

use crate::probes::{Answer, Probes, Question};

/// What is planned for the host.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Socket of the quote generation service.
    pub quote_socket: PathBuf,
    /// Host and port of the provisioning certificate caching service, if one is configured.
    pub pccs: Option<String>,
    /// Where guests' files will be.
    pub state_dir: PathBuf,
    /// Where clients will reach a guest, if that is known.
    pub listen: Option<SocketAddr>,
    /// How many GPUs guests shall have.
    pub gpus: usize,
    /// Memory of all guests together in MiB.
    pub memory_mib: u64,
}

/// The host: its tree, its answers, its devices.
pub struct Host<'a> {
    pub(crate) tree: &'a HostTree,
    pub(crate) settings: Settings,
    pub(crate) devices: Result<Vec<PciDevice>, TreeError>,
    pub(crate) cpu: Cpu,
    probes: &'a dyn Probes,
    answers: RefCell<BTreeMap<String, String>>,
}

/// The first processor of `/proc/cpuinfo`.
#[derive(Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) vendor: String,
    pub(crate) family: u32,
    pub(crate) model: u32,
    pub(crate) name: String,
    pub(crate) flags: Vec<String>,
}

impl<'a> Host<'a> {
    /// Reads what several checks need.
    #[must_use]
    pub fn new(tree: &'a HostTree, probes: &'a dyn Probes, settings: Settings) -> Self {
        let (devices, cpu) = (inventory(tree), Cpu::read(tree));
        Self { tree, settings, devices, cpu, probes, answers: RefCell::default() }
    }

    pub(crate) fn ask(&self, question: &Question) -> Answer {
        let answer = self.probes.ask(question);
        if let Some(text) = answer.written() {
            self.answers.borrow_mut().insert(question.to_string(), text);
        }
        answer
    }

    pub(crate) fn answers(&self) -> BTreeMap<String, String> {
        self.answers.borrow().clone()
    }

    /// A small file; `None` if it is missing or cannot be read.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        self.tree.text(path).ok()
    }

    /// A number in a small file.
    pub(crate) fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    pub(crate) fn gpus(&self) -> Vec<&PciDevice> {
        self.of_kind(DeviceKind::Gpu)
    }

    pub(crate) fn switches(&self) -> Vec<&PciDevice> {
        self.of_kind(DeviceKind::NvSwitch)
    }

    /// GPUs and switches: what a guest may get.
    pub(crate) fn passable(&self) -> Vec<&PciDevice> {
        let mut devices = self.gpus();
        devices.extend(self.switches());
        devices
    }

    /// Whether guests are to have GPUs, as far as one can tell.
    pub(crate) fn wants_gpus(&self) -> bool {
        self.settings.gpus > 0 || self.gpus().iter().any(|gpu| gpu.architecture() != Architecture::Unknown)
    }

    /// The running kernel's version, major and minor.
    pub(crate) fn kernel(&self) -> Option<(u32, u32)> {
        let release = self.text("proc/sys/kernel/osrelease")?;
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    /// A field of `/proc/meminfo` or a node's, in bytes.
    pub(crate) fn memory(&self, path: &str, field: &str) -> Option<u64> {
        let keep = |line: &str| MEMORY_FIELDS.iter().any(|field| has_field(line, field)).then(|| line.to_owned());
        let lines = self.tree.lines(path, keep).ok()?;
        let line = lines.iter().find(|line| has_field(line, field))?;
        let mut words = line.split_once(':')?.1.split_ascii_whitespace();
        let number: u64 = words.next()?.parse().ok()?;
        number.checked_mul(if words.next() == Some("kB") { 1024 } else { 1 })
    }

    fn of_kind(&self, kind: DeviceKind) -> Vec<&PciDevice> {
        self.devices.iter().flatten().filter(|device| device.kind == kind).collect()
    }
}

fn has_field(line: &str, field: &str) -> bool {
    line.split_once(':').is_some_and(|(name, _)| name.split_ascii_whitespace().next_back() == Some(field))
}

impl Cpu {
    fn read(tree: &HostTree) -> Self {
        let seen = RefCell::new(Vec::new());
        let keep = |line: &str| {
            let name = line.split_once(':')?.0.trim();
            let first = CPU_FIELDS.contains(&name) && !seen.borrow().iter().any(|s| s == name);
            first.then(|| {
                seen.borrow_mut().push(name.to_owned());
                line.to_owned()
            })
        };
        let mut cpu = Self::default();
        for line in tree.lines("proc/cpuinfo", keep).unwrap_or_default() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match name.trim() {
                "vendor_id" => value.clone_into(&mut cpu.vendor),
                "cpu family" => cpu.family = value.parse().unwrap_or(0),
                "model" => cpu.model = value.parse().unwrap_or(0),
                "model name" => value.clone_into(&mut cpu.name),
                _ => cpu.flags = value.split_ascii_whitespace().map(str::to_owned).collect(),
            }
        }
        cpu
    }

    pub(crate) fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }
}

const CPU_FIELDS: &[&str] = &["vendor_id", "cpu family", "model", "model name", "flags"];
const MEMORY_FIELDS: &[&str] = &["MemTotal", "MemAvailable", "HugePages_Total", "Hugepagesize"];
