// SPDX-License-Identifier: Apache-2.0
//! Trees of machines, good and broken, each with the full list of what does not pass.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod tree;

use preflight::Status::{Fail, Unknown, Warn};
use preflight::{RecordedProbes, Status, check_ids, record};
use tree::{QUOTE_SOCKET, Tree};
use vfio::{HostTree, NodeKind};

/// NVIDIA's driver alone knows the firmware's version, and it does not have GPUs that are ready for guests.
const READY: [(&str, Status); 1] = [("gpu_firmware", Unknown)];

fn broken(mut tree: Tree, damage: impl FnOnce(&mut Tree)) -> Vec<(&'static str, Status)> {
    damage(&mut tree);
    let report = tree.report();
    for check in &report.checks {
        assert!(!check.evidence.is_empty() && check.evidence.iter().all(|e| !e.source.is_empty()), "{}", check.id);
        assert_eq!(check.fix.is_empty(), check.status == Status::Pass, "{}: {:?}", check.id, check.status);
    }
    let failed: Vec<String> = report.reasons().into_iter().map(|reason| reason.code).collect();
    let expected = report.checks.iter().filter(|c| c.status == Fail).map(|c| c.id.to_owned());
    assert_eq!(failed, expected.collect::<Vec<_>>());
    assert_eq!(report.ready(), failed.is_empty());
    tree.found()
}

#[test]
fn good_machines_are_ready() {
    assert_eq!(broken(Tree::server(), |_| {}), []);
    assert_eq!(broken(Tree::h100(), |_| {}), READY);
    assert_eq!(broken(Tree::h200_board(), |_| {}), READY);
}

#[test]
fn all_checks_apply_to_some_machine_and_keep_their_order() {
    let ids = check_ids();
    let mut seen: Vec<&str> = Vec::new();
    let mut legacy = Tree::h100();
    legacy.recording.nodes.remove("dev/iommu");
    legacy.write("sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "65535\n");
    for tree in [Tree::server(), Tree::h100(), Tree::h200_board(), legacy] {
        let found: Vec<&str> = tree.report().checks.iter().map(|c| c.id).collect();
        let in_order: Vec<&str> = ids.iter().copied().filter(|id| found.contains(id)).collect();
        assert_eq!(found, in_order);
        seen.extend(found);
    }
    let missing: Vec<&&str> = ids.iter().filter(|id| !seen.contains(id)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn tdx_off_in_the_firmware() {
    let found = broken(Tree::server(), |tree| {
        tree.cpu(207, "vmx sgx tme");
        tree.write("sys/module/kvm_intel/parameters/tdx", "N\n");
        tree.remove("sys/devices/faux/tdx_host");
    });
    assert_eq!(found, [("tdx_firmware", Fail), ("kvm_tdx", Fail), ("tdx_module", Unknown)]);
}

#[test]
fn everything_off_in_the_firmware() {
    let found = broken(Tree::server(), |tree| {
        tree.cpu(207, "");
        tree.remove("sys/module");
        tree.remove("sys/devices/faux");
        for node in ["dev/kvm", "dev/sgx_enclave", "dev/sgx_provision"] {
            tree.recording.nodes.remove(node);
        }
    });
    assert_eq!(
        found,
        [
            ("cpu_virtualization", Fail),
            ("tme", Fail),
            ("tdx_firmware", Fail),
            ("sgx", Fail),
            ("sgx_devices", Fail),
            ("kvm_device", Fail),
            ("kvm_settings", Unknown),
            ("kvm_tdx", Fail),
            ("tdx_module", Unknown),
        ]
    );
}

#[test]
fn another_makers_and_older_processors() {
    let found = broken(Tree::server(), |tree| tree.cpu(106, "vmx sgx tme tdx_host_platform"));
    assert_eq!(found, [("cpu_model", Fail)]);
    let found = broken(Tree::server(), |tree| tree.cpu(143, "vmx sgx tme tdx_host_platform"));
    assert_eq!(found, [("cpu_model", Warn)]);
}

#[test]
fn a_distributors_kernel_of_before_6_16() {
    let found = broken(Tree::h100(), |tree| {
        tree.write("proc/sys/kernel/osrelease", "6.8.0-1028-intel\n");
        tree.remove("sys/devices/faux");
        tree.answer("qemu --version", "given QEMU emulator version 8.2.2 (Debian 1:8.2.2+ds-0ubuntu1.4+tdx1.1)\n");
    });
    assert_eq!(
        found,
        [("kernel_version", Fail), ("tdx_module", Unknown), ("qemu_version", Fail), ("gpu_firmware", Unknown)]
    );
    let found = broken(Tree::server(), |tree| {
        tree.write("proc/sys/kernel/osrelease", "6.1.0-32-amd64\n");
        tree.cpu(207, "vmx sgx tme");
        tree.remove("sys/module/kvm_intel/parameters/tdx");
        tree.remove("sys/devices/faux");
    });
    assert_eq!(
        found,
        [("tdx_firmware", Unknown), ("kernel_version", Fail), ("kvm_tdx", Fail), ("tdx_module", Unknown)]
    );
}

#[test]
fn hibernation_keeps_tdx_off() {
    let found = broken(Tree::server(), |tree| {
        tree.write("sys/power/disk", "[platform] shutdown reboot suspend test_resume\n");
        tree.write("sys/module/kvm_intel/parameters/tdx", "N\n");
    });
    assert_eq!(found, [("hibernation", Fail), ("kvm_tdx", Fail)]);
}

#[test]
fn kvm_set_otherwise_than_tdx_needs_it() {
    let found = broken(Tree::server(), |tree| {
        tree.write("sys/module/kvm/parameters/tdp_mmu", "N\n");
        tree.write("sys/module/kvm_intel/parameters/tdx", "N\n");
        tree.node("dev/kvm", NodeKind::CharacterDevice, 0o600, 0);
    });
    assert_eq!(found, [("kvm_device", Warn), ("kvm_settings", Fail), ("kvm_tdx", Fail)]);
}

#[test]
fn an_old_tdx_module() {
    let found = broken(Tree::server(), |tree| tree.write("sys/devices/faux/tdx_host/version", "1.0.06\n"));
    assert_eq!(found, [("tdx_module", Fail)]);
    let found = broken(Tree::server(), |tree| tree.write("sys/devices/faux/tdx_host/version", "2.0.01\n"));
    assert_eq!(found, []);
}

#[test]
fn a_quote_service_that_listens_elsewhere_or_not_at_all() {
    let socket = QUOTE_SOCKET.trim_start_matches('/');
    let found = broken(Tree::server(), |tree| {
        tree.recording.nodes.remove(socket);
        tree.write("etc/qgs.conf", "port = 4050\nnumber_threads = 4\n");
        let fix = &tree.report().reasons()[0].fix;
        assert!(fix.contains("remove the port"), "{fix}");
    });
    assert_eq!(found, [("quote_service", Fail)]);
    let found = broken(Tree::server(), |tree| {
        tree.recording.nodes.remove(socket);
        let fix = &tree.report().reasons()[0].fix;
        assert!(fix.contains("install Intel's tdx-qgs"), "{fix}");
    });
    assert_eq!(found, [("quote_service", Fail)]);
    let found = broken(Tree::server(), |tree| {
        tree.answer(&format!("quote service {QUOTE_SOCKET}"), "failed Connection refused (os error 111)");
        tree.answer("pccs localhost:8081", "failed refused: Connection refused (os error 111)");
        tree.node("dev/sgx_provision", NodeKind::CharacterDevice, 0o600, 0);
    });
    assert_eq!(found, [("sgx_devices", Warn), ("quote_service", Fail), ("pccs", Fail)]);
}

#[test]
fn a_quote_service_whose_enclaves_are_not_known() {
    let ask = format!("quote service {QUOTE_SOCKET}");
    let found = broken(Tree::server(), |tree| tree.answer(&ask, "given "));
    assert_eq!(found, [("quote_service", Warn)]);
    let found = broken(Tree::server(), |tree| tree.answer(&ask, "failed the service reports error 0x12001"));
    assert_eq!(found, [("quote_service", Fail)]);
    let found = broken(Tree::server(), |tree| {
        tree.recording.answers.remove(&ask);
    });
    assert_eq!(found, [("quote_service", Unknown)]);
}

#[test]
fn whatever_files_hold_the_report_is_whole() {
    let machine = Tree::h100();
    let ids: Vec<&str> = machine.report().checks.iter().map(|check| check.id).collect();
    let mut paths = Vec::new();
    let mut directories = vec![machine.root().to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => directories.push(entry.path()),
                kind if kind.is_file() && entry.file_name() != HostTree::RECORDING => paths.push(entry.path()),
                _ => {}
            }
        }
    }
    paths.sort();
    assert!(paths.len() > 30);
    let hostile: [&[u8]; 6] = [
        b"",
        b"\xff\xfe\x00",
        b": : :\n=\n:",
        b"18446744073709551616 kB",
        b"0xffffffffffffffff 0x0 -1\n",
        b"MemTotal: 99999999999999999999 kB\nflags\t:",
    ];
    for content in hostile {
        for path in paths.iter().filter(|path| !path.ends_with("class") && !path.ends_with("vendor")) {
            let before = std::fs::read(path).unwrap();
            std::fs::write(path, content).unwrap();
            let report = machine.report();
            assert!(report.checks.iter().all(|check| !check.evidence.is_empty()), "{}", path.display());
            assert!(report.checks.iter().all(|check| ids.contains(&check.id)), "{}", path.display());
            std::fs::write(path, before).unwrap();
        }
    }
    for path in &paths {
        std::fs::write(path, b"\xff\xff garbage 99999999999999999999").unwrap();
    }
    assert!(!machine.report().ready());
}

#[test]
fn qemu_without_tdx_or_without_qemu() {
    let found = broken(Tree::server(), |tree| tree.answer("qemu -object help", "given   memory-backend-ram\n"));
    assert_eq!(found, [("qemu_tdx", Fail)]);
    let found = broken(Tree::server(), |tree| {
        tree.answer("qemu --version", "failed No such file or directory");
        tree.answer("qemu -object help", "failed No such file or directory");
        tree.recording.nodes.remove("dev/vhost-vsock");
    });
    assert_eq!(found, [("vhost_vsock", Fail), ("qemu_version", Fail)]);
}

#[test]
fn memory_disk_time_and_port() {
    let found = broken(Tree::h100(), |tree| {
        tree.memory(527_740_000, 60_000_000, 200_000);
        tree.write("proc/self/limits", "Max locked memory         8388608              8388608              bytes\n");
        tree.answer("free bytes /var/lib/chrysalis", "given 1073741824");
        tree.remove("run");
        tree.write("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n");
        tree.write(
            "proc/net/tcp6",
            "   0: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A\n",
        );
        tree.write("sys/devices/system/node/node1/meminfo", "Node 1 MemTotal:       0 kB\n");
    });
    assert_eq!(
        found,
        [
            ("memory", Fail),
            ("hugepages", Warn),
            ("numa", Warn),
            ("memory_lock", Warn),
            ("disk", Fail),
            ("clock", Warn),
            ("clock_source", Warn),
            ("port", Fail),
            ("gpu_firmware", Unknown),
        ]
    );
}

#[test]
fn no_iommu() {
    let found = broken(Tree::h100(), |tree| {
        tree.remove("sys/class/iommu");
        tree.remove("sys/kernel/iommu_groups");
        tree.remove("sys/bus/pci/devices/0000:b8:00.0/iommu_group");
        tree.recording.nodes.remove("dev/iommu");
        tree.remove("sys/bus/pci/drivers/vfio-pci");
        tree.drive("0000:b8:00.0", "nvidia");
    });
    assert_eq!(
        found,
        [
            ("iommu", Fail),
            ("vfio_pci", Fail),
            ("iommufd", Fail),
            ("gpu_firmware", Unknown),
            ("gpu_driver", Warn),
            ("gpu_group", Fail),
        ]
    );
}

#[test]
fn a_kernel_without_iommufd() {
    let found = broken(Tree::h100(), |tree| {
        tree.recording.nodes.remove("dev/iommu");
        tree.node("dev/vfio/vfio", NodeKind::CharacterDevice, 0o666, 0);
        tree.node("dev/vfio/23", NodeKind::CharacterDevice, 0o600, 0);
        tree.write("sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "65535\n");
    });
    assert_eq!(found, [("iommufd", Warn), ("dma_entries", Warn), ("gpu_firmware", Unknown), ("gpu_access", Warn)]);
}

#[test]
fn a_gpu_that_is_not_prepared() {
    let found = broken(Tree::h100(), |tree| {
        tree.drive("0000:b8:00.0", "nvidia");
        tree.answer("gpu mode 0000:b8:00.0", "given off");
        tree.write(
            "proc/driver/nvidia/gpus/0000:b8:00.0/information",
            "Model: \t\t NVIDIA H100 PCIe\nGPU UUID: \t GPU-deadbeef\nVideo BIOS: \t 96.00.30.00.01\n",
        );
    });
    assert_eq!(found, [("gpu_firmware", Fail), ("gpu_mode", Warn), ("gpu_driver", Warn)]);
    let found = broken(Tree::h100(), |tree| {
        tree.answer("gpu mode 0000:b8:00.0", "given devtools");
        tree.write("proc/driver/nvidia/gpus/0000:b8:00.0/information", "Video BIOS: \t 96.00.9F.00.04\n");
    });
    assert_eq!(found, [("gpu_mode", Fail)]);
}

#[test]
fn a_gpu_that_shares_its_group_or_shows_the_display() {
    let found = broken(Tree::h100(), |tree| tree.pci("0000:b9:00.0", 0x15b3, 0x1021, 0x02_0000, Some(23), 1));
    assert_eq!(found, [("gpu_firmware", Unknown), ("gpu_group", Fail)]);
    let found = broken(Tree::h100(), |tree| tree.write("sys/bus/pci/devices/0000:b8:00.0/boot_vga", "1\n"));
    assert_eq!(found, [("gpu_firmware", Unknown), ("gpu_driver", Fail)]);
}

#[test]
fn a_gpu_whose_memory_is_not_mapped() {
    let card =
        |window| tree::Card { address: "0000:b8:00.0", device: 0x2331, class: 0x03_0200, group: 23, node: 1, window };
    let found = broken(Tree::h100(), |tree| tree.card(&card(0), "vfio-pci", "on"));
    assert_eq!(found, [("gpu_firmware", Unknown), ("gpu_memory_window", Fail)]);
    let found = broken(Tree::h100(), |tree| tree.card(&card(1), "vfio-pci", "on"));
    assert_eq!(found, [("gpu_firmware", Unknown), ("gpu_memory_window", Warn)]);
}

#[test]
fn a_gpu_without_confidential_computing_and_one_too_few() {
    let card =
        tree::Card { address: "0000:b8:00.0", device: 0x20b5, class: 0x03_0200, group: 23, node: 1, window: 128 };
    let found = broken(Tree::h100(), |tree| tree.card(&card, "vfio-pci", "on"));
    assert_eq!(found, [("gpu_count", Fail), ("gpu_architecture", Warn)]);
}

/// Attack 45, by chance: the guest's evidence would be refused for it, and the provider hears of it before.
#[test]
fn a_board_with_a_gpu_and_a_switch_missing() {
    let found = broken(Tree::h200_board(), |tree| tree.remove("sys/bus/pci/devices/0000:9a:00.0"));
    assert_eq!(found, [("gpu_count", Fail), ("gpu_firmware", Unknown), ("nvswitches", Fail)]);
    let found = broken(Tree::h200_board(), |tree| tree.remove("sys/bus/pci/devices/0000:08:00.0"));
    assert_eq!(found, [("gpu_firmware", Unknown), ("nvswitches", Fail)]);
}

#[test]
fn a_board_in_two_modes_with_nodes_for_root_alone() {
    let found = broken(Tree::h200_board(), |tree| {
        tree.answer("gpu mode 0000:18:00.0", "given on");
        tree.node("dev/iommu", NodeKind::CharacterDevice, 0o600, 0);
        tree.write("sys/bus/pci/devices/0000:2a:00.0/numa_node", "-1\n");
    });
    assert_eq!(found, [("numa", Warn), ("gpu_firmware", Unknown), ("gpu_mode", Warn), ("gpu_access", Warn)]);
}

#[test]
fn a_board_whose_gpus_go_to_guests_one_by_one() {
    let modes = |gpus: &'static str, switches: &'static str| {
        move |tree: &mut Tree| {
            for (question, answer) in &mut tree.recording.answers {
                if question.starts_with("gpu mode 0000:0") {
                    *answer = format!("given {switches}");
                } else if question.starts_with("gpu mode") {
                    *answer = format!("given {gpus}");
                }
            }
        }
    };
    assert_eq!(broken(Tree::h200_board(), modes("on", "off")), READY);
    assert_eq!(broken(Tree::h200_board(), modes("on", "ppcie")), [READY[0], ("gpu_mode", Warn)]);
    assert_eq!(broken(Tree::h200_board(), modes("ppcie", "off")), [READY[0], ("gpu_mode", Warn)]);
    assert_eq!(broken(Tree::h200_board(), modes("off", "off")), [READY[0], ("gpu_mode", Warn)]);
    assert_eq!(broken(Tree::h200_board(), modes("devtools", "off")), [READY[0], ("gpu_mode", Fail)]);
}

#[test]
fn an_empty_tree_is_no_good_machine() {
    let root = tempfile::tempdir().unwrap();
    let tree = HostTree::open(root.path()).unwrap();
    let probes = RecordedProbes { tree: &tree };
    let report = preflight::run(&preflight::Host::new(&tree, &probes, Tree::h100().settings));
    assert!(!report.ready());
    assert!(report.checks.iter().filter(|c| c.status == Status::Pass).all(|c| ["hibernation", "port"].contains(&c.id)));
}

#[test]
fn a_recording_gives_the_same_report_and_names_nobody() {
    for mut machine in [Tree::h100(), Tree::h200_board(), Tree::server()] {
        machine.write(
            "proc/driver/nvidia/gpus/0000:b8:00.0/information",
            "Model: \t\t NVIDIA H100 PCIe\nGPU UUID: \t GPU-deadbeef\nVideo BIOS: \t 96.00.9F.00.04\n",
        );
        machine.write("proc/cmdline", "root=UUID=78f2183d-1048-4bb6-94a6-24aee8e27741");
        machine.write("etc/hostname", "the-providers-machine");
        machine.write("sys/class/dmi/id/product_serial", "SN12345");
        let tree = machine.open();
        let mut archive = Vec::new();
        let report = record(&tree, &RecordedProbes { tree: &tree }, machine.settings.clone(), &mut archive).unwrap();
        let text = String::from_utf8_lossy(&archive);
        for private in ["deadbeef", "78f2183d", "the-providers-machine", "SN12345", "0100007F", "0A0200C1"] {
            assert!(!text.contains(private), "{private}");
        }
        let copy = tempfile::tempdir().unwrap();
        tar::Archive::new(archive.as_slice()).unpack(copy.path()).unwrap();
        let again = HostTree::open(copy.path()).unwrap();
        let probes = RecordedProbes { tree: &again };
        let second = preflight::run(&preflight::Host::new(&again, &probes, machine.settings.clone()));
        assert_eq!(report, second);
        // A recording of the recording is the same archive.
        let mut twice = Vec::new();
        record(&again, &probes, machine.settings.clone(), &mut twice).unwrap();
        assert_eq!(archive, twice);
    }
}
