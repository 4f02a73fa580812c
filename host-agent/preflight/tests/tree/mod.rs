// SPDX-License-Identifier: Apache-2.0
//! Builds trees of machines: the files that a kernel would show, and what files cannot hold in `recording.json`.
#![allow(dead_code, reason = "each test uses a part")]

use std::path::{Path, PathBuf};

use preflight::{Host, RecordedProbes, Report, Settings, Status};
use vfio::{HostTree, Node, NodeKind, Recording};

pub(crate) struct Tree {
    directory: tempfile::TempDir,
    pub(crate) recording: Recording,
    pub(crate) settings: Settings,
}

/// A GPU or switch.
pub(crate) struct Card<'a> {
    pub(crate) address: &'a str,
    pub(crate) device: u16,
    pub(crate) class: u32,
    pub(crate) group: u32,
    pub(crate) node: i32,
    pub(crate) window: u64,
}

pub(crate) const QUOTE_SOCKET: &str = "/var/run/tdx-qgs/qgs.socket";

impl Tree {
    /// A server with two Emerald Rapids processors, TDX on, a display of its own, no GPU.
    pub(crate) fn server() -> Self {
        let settings = Settings {
            quote_socket: QUOTE_SOCKET.into(),
            pccs: Some("localhost:8081".to_owned()),
            state_dir: "/var/lib/chrysalis".into(),
            listen: Some("0.0.0.0:443".parse().unwrap()),
            gpus: 0,
            memory_mib: 65_536,
        };
        let mut tree = Self { directory: tempfile::tempdir().unwrap(), recording: Recording::default(), settings };
        tree.cpu(207, "vmx sgx sgx_lc tme tdx_host_platform ss movdir64b");
        for (path, content) in [
            ("proc/sys/kernel/osrelease", "6.17.0-5-generic\n"),
            ("sys/power/disk", "[disabled]\n"),
            ("sys/module/kvm/parameters/tdp_mmu", "Y\n"),
            ("sys/module/kvm/parameters/mmio_caching", "Y\n"),
            ("sys/module/kvm/parameters/enable_virt_at_load", "Y\n"),
            ("sys/module/kvm_intel/parameters/ept", "Y\n"),
            ("sys/module/kvm_intel/parameters/tdx", "Y\n"),
            ("sys/devices/faux/tdx_host/version", "1.5.24\n"),
            ("etc/qgs.conf", "number_threads = 4\n"),
            (
                "proc/self/limits",
                "Limit                     Soft Limit           Hard Limit           Units\nMax locked memory         unlimited            unlimited            bytes\n",
            ),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
            ("run/systemd/timesync/synchronized", ""),
            (
                "proc/net/tcp",
                "  sl  local_address rem_address   st tx_queue rx_queue\n   0: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000   108        0 21034 1\n   1: 0A0200C0:01BB 0A0200C1:C350 01 00000000:00000000 00:00000000 00000000     0        0 21035 1\n",
            ),
            ("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:       263520000 kB\n"),
            ("sys/devices/system/node/node1/meminfo", "Node 1 MemTotal:       264220000 kB\n"),
        ] {
            tree.write(path, content);
        }
        tree.memory(527_740_000, 510_000_000, 0);
        tree.node("dev/kvm", NodeKind::CharacterDevice, 0o660, 108);
        tree.node("dev/vhost-vsock", NodeKind::CharacterDevice, 0o660, 108);
        tree.node("dev/sgx_enclave", NodeKind::CharacterDevice, 0o660, 125);
        tree.node("dev/sgx_provision", NodeKind::CharacterDevice, 0o660, 126);
        tree.node(QUOTE_SOCKET.trim_start_matches('/'), NodeKind::Socket, 0o770, 127);
        tree.answer("qemu --version", "given QEMU emulator version 10.1.2 (Debian 1:10.1.2+ds-1)\n");
        tree.answer("qemu -object help", "given List of user creatable objects:\n  memory-backend-ram\n  tdx-guest\n");
        tree.answer(&format!("quote service {QUOTE_SOCKET}"), "given quoting enclave 5, provisioning enclave 15");
        tree.answer("pccs localhost:8081", "given serves");
        tree.answer("free bytes /var/lib/chrysalis", "given 3298534883328");
        tree.pci("0000:02:00.0", 0x1a03, 0x2000, 0x03_0000, Some(3), 0);
        tree.write("sys/bus/pci/devices/0000:02:00.0/boot_vga", "1\n");
        tree.pci("0000:00:00.0", 0x8086, 0x3250, 0x06_0000, Some(0), 0);
        tree
    }

    /// The server with what GPUs need.
    fn for_gpus() -> Self {
        let mut tree = Self::server();
        tree.write("sys/class/iommu/dmar0/devices", "");
        tree.write("sys/class/iommu/dmar1/devices", "");
        tree.write("sys/kernel/iommu_groups/0/type", "DMA-FQ\n");
        tree.write("sys/bus/pci/drivers/vfio-pci/bind", "");
        tree.node("dev/iommu", NodeKind::CharacterDevice, 0o660, 108);
        tree
    }

    /// A server with one H100 PCIe that is ready to go to a guest.
    pub(crate) fn h100() -> Self {
        let mut tree = Self::for_gpus();
        tree.settings.gpus = 1;
        let card = Card { address: "0000:b8:00.0", device: 0x2331, class: 0x03_0200, group: 23, node: 1, window: 128 };
        tree.card(&card, "vfio-pci", "on");
        tree
    }

    /// A server with a board of eight H200 and four NVSwitches in Protected PCIe mode.
    pub(crate) fn h200_board() -> Self {
        let mut tree = Self::for_gpus();
        tree.settings.gpus = 8;
        let buses = ["18", "2a", "3a", "5d", "9a", "ab", "ba", "db"];
        for (index, bus) in buses.iter().enumerate() {
            let (group, node) = (40 + u32::try_from(index).unwrap(), i32::from(index > 3));
            let address = format!("0000:{bus}:00.0");
            let card = Card { address: &address, device: 0x2335, class: 0x03_0200, group, node, window: 256 };
            tree.card(&card, "vfio-pci", "ppcie");
        }
        for index in 0..4_u32 {
            let address = format!("0000:{:02x}:00.0", 7 + index);
            let card =
                Card { address: &address, device: 0x22a3, class: 0x06_8000, group: 60 + index, node: 0, window: 0 };
            tree.card(&card, "vfio-pci", "ppcie");
        }
        tree
    }

    pub(crate) fn cpu(&mut self, model: u32, flags: &str) {
        let one = format!(
            "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: {model}\nmodel name\t: INTEL(R) XEON(R) PLATINUM 8568Y+\nstepping\t: 2\nflags\t\t: fpu vme de pse {flags}\nvmx flags\t: vnmi preemption_timer\n\n"
        );
        self.write("proc/cpuinfo", &one.repeat(4));
    }

    /// In kB, kB and pages of 2 MiB.
    pub(crate) fn memory(&mut self, total: u64, available: u64, huge_pages: u64) {
        let text = format!(
            "MemTotal:       {total} kB\nMemFree:        1 kB\nMemAvailable:   {available} kB\nHugePages_Total:   {huge_pages}\nHugepagesize:       2048 kB\n"
        );
        self.write("proc/meminfo", &text);
    }

    pub(crate) fn card(&mut self, card: &Card<'_>, driver: &str, mode: &str) {
        let Card { address, device, class, group, node, window } = *card;
        self.pci(address, 0x10de, device, class, Some(group), node);
        let registers: u64 = if class == 0x06_8000 { 32 << 20 } else { 16 << 20 };
        let end = |start: u64, size: u64| if size == 0 { 0 } else { start + size - 1 };
        let memory = 0x2000_0000_0000_u64;
        let text = format!(
            "{:#018x} {:#018x} 0x0000000000040200\n0x0000000000000000 0x0000000000000000 0x0000000000000000\n{:#018x} {:#018x} 0x000000000014220c\n",
            0xa000_0000_u64,
            end(0xa000_0000, registers),
            if window == 0 { 0 } else { memory },
            end(memory, window << 30),
        );
        self.write(&format!("sys/bus/pci/devices/{address}/resource"), &text);
        self.drive(address, driver);
        self.answer(&format!("gpu mode {address}"), &format!("given {mode}"));
    }

    /// Binds a driver; to `vfio-pci` comes a node.
    pub(crate) fn drive(&mut self, address: &str, driver: &str) {
        let device = format!("sys/bus/pci/devices/{address}");
        let link = self.path(&format!("{device}/driver"));
        let _ = std::fs::remove_file(&link);
        let _ = std::fs::remove_dir_all(self.path(&format!("{device}/vfio-dev")));
        std::os::unix::fs::symlink(format!("../../drivers/{driver}"), link).unwrap();
        if driver == "vfio-pci" {
            let name = format!("vfio{}", self.recording.nodes.len());
            std::fs::create_dir_all(self.path(&format!("{device}/vfio-dev/{name}"))).unwrap();
            self.node(&format!("dev/vfio/devices/{name}"), NodeKind::CharacterDevice, 0o660, 108);
        }
    }

    pub(crate) fn pci(&mut self, address: &str, vendor: u16, device: u16, class: u32, group: Option<u32>, node: i32) {
        let directory = format!("sys/bus/pci/devices/{address}");
        self.write(&format!("{directory}/vendor"), &format!("{vendor:#06x}\n"));
        self.write(&format!("{directory}/device"), &format!("{device:#06x}\n"));
        self.write(&format!("{directory}/class"), &format!("{class:#08x}\n"));
        self.write(&format!("{directory}/numa_node"), &format!("{node}\n"));
        self.write(&format!("{directory}/driver_override"), "(null)\n");
        let link = self.path(&format!("{directory}/iommu_group"));
        let _ = std::fs::remove_file(&link);
        if let Some(group) = group {
            std::os::unix::fs::symlink(format!("../../../../kernel/iommu_groups/{group}"), link).unwrap();
        }
    }

    pub(crate) fn write(&mut self, path: &str, content: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(crate) fn remove(&mut self, path: &str) {
        let path = self.path(path);
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
    }

    pub(crate) fn node(&mut self, path: &str, kind: NodeKind, mode: u32, gid: u32) {
        self.recording.nodes.insert(path.to_owned(), Node { kind, mode, uid: 0, gid });
    }

    pub(crate) fn answer(&mut self, question: &str, answer: &str) {
        self.recording.answers.insert(question.to_owned(), answer.to_owned());
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn open(&self) -> HostTree {
        let description = serde_json::to_vec(&self.recording).unwrap();
        std::fs::write(self.path(HostTree::RECORDING), description).unwrap();
        HostTree::open(self.root()).unwrap()
    }

    pub(crate) fn report(&self) -> Report {
        let tree = self.open();
        let probes = RecordedProbes { tree: &tree };
        preflight::run(&Host::new(&tree, &probes, self.settings.clone()))
    }

    /// All checks that did not pass.
    pub(crate) fn found(&self) -> Vec<(&'static str, Status)> {
        let report = self.report();
        report.checks.iter().filter(|c| c.status != Status::Pass).map(|c| (c.id, c.status)).collect()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }
}
