// SPDX-License-Identifier: Apache-2.0
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use types::{Device, MachineShape, Sha384Digest, shape::ShapeFacts};

use super::*;

fn shape(qemu: &str) -> MachineShape {
    MachineShape::new(ShapeFacts {
        vcpus: 2,
        memory_mib: 1024,
        physical_bits: 46,
        qemu: qemu.parse().unwrap(),
        devices: vec![Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock],
    })
    .unwrap()
}

fn spec() -> LaunchSpec {
    LaunchSpec {
        shape: shape("7.2"),
        image: ImageFiles {
            firmware: "/i/firmware.fd".into(),
            kernel: "/i/vmlinuz".into(),
            initrd: "/i/initrd".into(),
            command_line: "panic=-1 quiet".into(),
        },
        tee: Tee::Simulated,
        accelerator: Accelerator::Tcg,
        config_disk: "/r/config.disk".into(),
        model_disk: "/r/model.disk".into(),
        root_disk: None,
        gpus: HostGpus::default(),
        numa_node: None,
        network: PortForward {
            listen: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8443),
            address: Ipv4Addr::new(10, 0, 2, 15),
            port: 8443,
        },
        vsock: VsockBackend::VhostUser { socket: "/r/vhost.sock".into() },
        qmp: "/r/qmp.sock".into(),
        paused: true,
    }
}

fn value_after(arguments: &[String], name: &str) -> String {
    let at = arguments.iter().position(|a| a == name).unwrap();
    arguments[at + 1].clone()
}

#[test]
fn devices_stand_in_the_shapes_order() {
    let arguments = arguments(&spec()).unwrap();
    let devices: Vec<_> = arguments.windows(2).filter(|w| w[0] == "-device").map(|w| w[1].clone()).collect();
    let expected =
        ["virtio-blk-pci,drive=config", "virtio-blk-pci,drive=model", "virtio-net-pci", "vhost-user-vsock-pci"];
    assert_eq!(devices.len(), expected.len());
    for (index, (device, start)) in devices.iter().zip(expected).enumerate() {
        assert!(device.starts_with(start), "{device}");
        assert!(device.ends_with(&format!("addr={:#x}", FIRST_SLOT + index)), "{device}");
    }
    assert!(value_after(&arguments, "-netdev").contains("restrict=on"));
    assert!(!arguments.iter().any(|a| a.contains("virtio-rng") || a.contains("9p") || a.contains("fw_cfg")));
}

#[test]
fn the_root_disk_stands_last_and_only_with_its_device() {
    let with_root = |devices: Vec<Device>| {
        let facts = ShapeFacts { devices, ..shape("7.2").facts() };
        LaunchSpec { shape: MachineShape::new(facts).unwrap(), root_disk: Some("/i/rootfs".into()), ..spec() }
    };
    let good = with_root([shape("7.2").facts().devices, vec![Device::RootDisk]].concat());
    let found = arguments(&good).unwrap();
    let device = format!("serial={ROOT_DISK_SERIAL},disable-legacy=on,addr={:#x}", FIRST_SLOT + 4);
    assert!(found.iter().any(|a| a.starts_with("virtio-blk-pci,drive=root,") && a.ends_with(&device)));
    let node = found.iter().find(|a| a.contains("\"root\"")).unwrap();
    let node: serde_json::Value = serde_json::from_str(node).unwrap();
    assert_eq!(node["read-only"], true);
    assert_eq!(node["file"]["read-only"], true);
    assert_eq!(table_arguments(&good.shape).iter().filter(|a| *a == "-device").count(), 5);
    let missing = LaunchSpec { root_disk: None, ..good };
    assert_eq!(arguments(&missing), Err(LaunchError::RootDiskMissing));
    let without = LaunchSpec { root_disk: Some("/i/rootfs".into()), ..spec() };
    assert_eq!(arguments(&without), Err(LaunchError::RootDiskWithoutDevice));
    let first = with_root([vec![Device::RootDisk], shape("7.2").facts().devices].concat());
    assert_eq!(arguments(&first), Err(LaunchError::RootDiskOrder));
}

#[test]
fn gpus_stand_behind_root_ports_after_the_shapes_devices() {
    let addresses = vec!["0000:17:00.0".to_owned(), "0001:b8:1f.7".to_owned()];
    let with = |iommufd| {
        let spec =
            LaunchSpec { gpus: HostGpus { addresses: addresses.clone(), iommufd, ..HostGpus::default() }, ..spec() };
        let all = arguments(&spec).unwrap();
        let bare = arguments(&LaunchSpec { gpus: HostGpus::default(), ..spec }).unwrap();
        all.into_iter().filter(|word| !bare.contains(word)).collect::<Vec<_>>()
    };
    assert_eq!(
        with(true),
        [
            "iommufd,id=iommufd0",
            "pcie-root-port,id=gpu0,bus=pcie.0,chassis=1,hotplug=off,addr=0x6",
            "vfio-pci,host=0000:17:00.0,bus=gpu0,rombar=0,iommufd=iommufd0",
            "pcie-root-port,id=gpu1,bus=pcie.0,chassis=2,hotplug=off,addr=0x7",
            "vfio-pci,host=0001:b8:1f.7,bus=gpu1,rombar=0,iommufd=iommufd0",
        ]
    );
    assert_eq!(
        with(false),
        [
            "pcie-root-port,id=gpu0,bus=pcie.0,chassis=1,hotplug=off,addr=0x6",
            "vfio-pci,host=0000:17:00.0,bus=gpu0,rombar=0",
            "pcie-root-port,id=gpu1,bus=pcie.0,chassis=2,hotplug=off,addr=0x7",
            "vfio-pci,host=0001:b8:1f.7,bus=gpu1,rombar=0",
        ]
    );
    // No GPU, no iommufd: nothing else changes.
    let none = LaunchSpec { gpus: HostGpus { iommufd: true, ..HostGpus::default() }, ..spec() };
    assert_eq!(arguments(&none), arguments(&spec()));
}

#[test]
fn a_gpu_is_named_once_and_by_its_address() {
    let with = |addresses: &[&str]| {
        let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
        arguments(&LaunchSpec { gpus: HostGpus { addresses, iommufd: true, ..HostGpus::default() }, ..spec() })
    };
    for bad in
        ["", "b8:00.0", "0000:b8:00.0,x-no-mmap=on", "0000:B8:00.0", "0000:b8:00:0", "0000:b8:00.g", "0000:b8:00.0 "]
    {
        assert_eq!(with(&["0000:17:00.0", bad]), Err(LaunchError::GpuAddress { index: 1 }), "{bad:?}");
    }
    assert_eq!(with(&["0000:17:00.0", "0000:17:00.0"]), Err(LaunchError::GpuTwice { index: 1 }));
    let many: Vec<String> = (0..17).map(|bus| format!("0000:{bus:02x}:00.0")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(with(&many), Err(LaunchError::TooManyGpus { found: 17 }));
    // The last of 16 still has a slot of the root bus; 31 is the chipset's.
    let all = with(&many[..16]).unwrap();
    assert!(all.iter().any(|word| word.ends_with("addr=0x15")), "{all:?}");
}

#[test]
fn switches_stand_after_the_gpus_and_are_no_device_twice() {
    let list = |text: &[&str]| -> Vec<String> { text.iter().map(|address| (*address).to_owned()).collect() };
    let with = |gpus: &[&str], switches: &[&str]| {
        let gpus = HostGpus { addresses: list(gpus), switches: list(switches), iommufd: true };
        arguments(&LaunchSpec { gpus, ..spec() })
    };
    let both = with(&["0000:17:00.0"], &["0000:07:00.0", "0000:08:00.0"]).unwrap();
    let devices: Vec<&String> = both.iter().filter(|word| word.contains("gpu0") || word.contains("nvswitch")).collect();
    assert_eq!(
        devices,
        [
            "pcie-root-port,id=gpu0,bus=pcie.0,chassis=1,hotplug=off,addr=0x6",
            "vfio-pci,host=0000:17:00.0,bus=gpu0,rombar=0,iommufd=iommufd0",
            "pcie-root-port,id=nvswitch0,bus=pcie.0,chassis=2,hotplug=off,addr=0x7",
            "vfio-pci,host=0000:07:00.0,bus=nvswitch0,rombar=0,iommufd=iommufd0",
            "pcie-root-port,id=nvswitch1,bus=pcie.0,chassis=3,hotplug=off,addr=0x8",
            "vfio-pci,host=0000:08:00.0,bus=nvswitch1,rombar=0,iommufd=iommufd0",
        ]
    );
    assert_eq!(with(&[], &["0000:07:00.0,x=y"]), Err(LaunchError::SwitchAddress { index: 0 }));
    assert_eq!(with(&["0000:07:00.0"], &["0000:07:00.0"]), Err(LaunchError::SwitchTwice { index: 0 }));
    assert_eq!(with(&[], &["0000:07:00.0", "0000:07:00.0"]), Err(LaunchError::SwitchTwice { index: 1 }));
    let many: Vec<String> = (0..13).map(|bus| format!("0000:{bus:02x}:00.0")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let four = ["0000:e0:00.0", "0000:e1:00.0", "0000:e2:00.0", "0000:e3:00.0"];
    assert_eq!(with(&many, &four), Err(LaunchError::TooManyGpus { found: 17 }));
}

/// Attack 26: newline and path tricks in what the host composes.
#[test]
fn a_path_adds_no_option() {
    let mut tricky = spec();
    tricky.qmp = "/r/a,server=off,path=/b".into();
    assert_eq!(value_after(&arguments(&tricky).unwrap(), "-qmp"), "unix:/r/a,,server=off,,path=/b,server=on,wait=off");
    tricky.model_disk = "/r/m\",\"driver\":\"null-co".into();
    let text = arguments(&tricky).unwrap();
    let node = text.iter().find(|a| a.contains("\"model\"")).unwrap();
    let node: serde_json::Value = serde_json::from_str(node).unwrap();
    assert_eq!(node["file"]["filename"], "/r/m\",\"driver\":\"null-co");
    tricky.config_disk = PathBuf::from("/r/a\nb");
    assert_eq!(arguments(&tricky), Err(LaunchError::Path { field: "config" }));
}

#[test]
fn command_lines_are_printable_and_bounded() {
    for bad in ["", "a\nb", "a\0b", "é", &"x".repeat(2048)] {
        let mut spec = spec();
        spec.image.command_line = bad.into();
        assert_eq!(arguments(&spec), Err(LaunchError::CommandLine), "{bad:?}");
    }
    for bad in ["vga=ask", "quiet vga=791", "no-vga=0"] {
        let mut spec = spec();
        spec.image.command_line = bad.into();
        assert_eq!(arguments(&spec), Err(LaunchError::Vga), "{bad:?}");
    }
}

#[test]
fn tdx_needs_kvm_and_a_new_qemu() {
    let mut tdx = spec();
    tdx.tee = Tee::Tdx { mr_config_id: Sha384Digest::of(b"c"), quote_socket: "/run/qgs.sock".into() };
    assert_eq!(arguments(&tdx), Err(LaunchError::TdxNeedsKvm));
    tdx.accelerator = Accelerator::Kvm;
    assert!(matches!(arguments(&tdx), Err(LaunchError::QemuTooOld { .. })));
    tdx.shape = shape("10.1");
    let arguments = arguments(&tdx).unwrap();
    assert_eq!(value_after(&arguments, "-cpu"), "host,host-phys-bits=off,phys-bits=46");
    let object = arguments.iter().find(|a| a.contains("tdx-guest")).unwrap();
    let object: serde_json::Value = serde_json::from_str(object).unwrap();
    assert_eq!(object["mrconfigid"].as_str().unwrap().len(), 64);
    let machine = value_after(&arguments, "-machine");
    assert!(machine.contains("confidential-guest-support=tdx0"));
    // What enters the ACPI tables is the same as on the machine that tables are read from.
    assert!(machine.starts_with(&value_after(&table_arguments(&tdx.shape), "-machine")));
}

#[test]
fn the_table_machine_occupies_the_same_slots() {
    let arguments = table_arguments(&shape("7.2"));
    let slots = arguments.windows(2).filter(|w| w[0] == "-device").count();
    assert_eq!(slots, 4);
    assert_eq!(value_after(&arguments, "-machine"), "q35,memory-backend=mem0,smm=off,pic=off");
    assert!(value_after(&arguments, "-cpu").starts_with("max,phys-bits=46,"));
}

#[test]
fn many_emulated_processors_share_one_thread() {
    assert_eq!(
        [1, 2, 8, 9, 64].map(threads),
        ["tcg", "tcg,thread=multi", "tcg,thread=multi", "tcg,thread=single", "tcg,thread=single"]
    );
}
