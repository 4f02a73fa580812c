// SPDX-License-Identifier: Apache-2.0
//! The whole argument list of each kind of launch, word by word: nothing of it can be lost, added or moved unseen.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::net::{Ipv4Addr, SocketAddrV4};

use qemu::{Accelerator, HostGpus, ImageFiles, LaunchSpec, PortForward, Tee, VsockBackend, arguments, table_arguments};
use types::shape::ShapeFacts;
use types::{Device, MachineShape, Sha384Digest, canonical};

#[test]
fn a_trust_domain() {
    assert_eq!(lines(&arguments(&tdx()).unwrap()), TDX);
}

#[test]
fn a_trust_domain_with_gpus() {
    let found = lines(&arguments(&with_gpus(true)).unwrap());
    // Its machine is that of one without, but for the root disk and what follows the shape's devices.
    let (before, after) = TDX.split_at(TDX.len() - 2);
    let expected: Vec<&str> = before.iter().chain(GPUS).chain(after).copied().collect();
    assert_eq!(found, expected);
    let container = lines(&arguments(&with_gpus(false)).unwrap());
    let expected: Vec<String> = expected
        .iter()
        .filter(|line| **line != "-object iommufd,id=iommufd0")
        .map(|line| line.replace(",iommufd=iommufd0", ""))
        .collect();
    assert_eq!(container, expected);
}

#[test]
fn a_rehearsal() {
    assert_eq!(lines(&arguments(&simulated()).unwrap()), SIMULATED);
    // One that is started at once differs in one word.
    let at_once = LaunchSpec { paused: false, ..simulated() };
    assert_eq!(lines(&arguments(&at_once).unwrap()), SIMULATED[..SIMULATED.len() - 1]);
}

#[test]
fn a_numa_node_changes_where_memory_comes_from_and_nothing_else() {
    let found = lines(&arguments(&LaunchSpec { numa_node: Some(1), ..tdx() }).unwrap());
    let expected: Vec<String> =
        TDX.iter().map(|line| line.replace("share=on", "share=on,host-nodes=1,policy=preferred")).collect();
    assert_eq!(found, expected);
}

#[test]
fn the_machine_that_tables_are_read_from() {
    assert_eq!(lines(&table_arguments(&tdx().shape)), TABLES);
}

fn tdx() -> LaunchSpec {
    LaunchSpec {
        shape: shape("10.1", 8, 65_536, &DEVICES),
        tee: Tee::Tdx {
            mr_config_id: Sha384Digest::of(b"configuration"),
            quote_socket: "/var/run/tdx-qgs/qgs.socket".into(),
        },
        accelerator: Accelerator::Kvm,
        vsock: VsockBackend::Kernel { cid: 7 },
        ..simulated()
    }
}

fn with_gpus(iommufd: bool) -> LaunchSpec {
    let addresses = vec!["0000:17:00.0".to_owned(), "0000:b8:00.0".to_owned()];
    let devices = [&DEVICES[..], &[Device::RootDisk]].concat();
    LaunchSpec {
        shape: shape("10.1", 8, 65_536, &devices),
        root_disk: Some("/i/rootfs".into()),
        gpus: HostGpus { addresses, iommufd, ..HostGpus::default() },
        ..tdx()
    }
}

fn simulated() -> LaunchSpec {
    LaunchSpec {
        shape: shape("7.2", 2, 512, &DEVICES),
        image: ImageFiles {
            firmware: "/i/firmware.fd".into(),
            kernel: "/i/vmlinuz".into(),
            initrd: "/i/initrd".into(),
            command_line: "panic=-1 quiet".into(),
        },
        tee: Tee::Simulated,
        accelerator: Accelerator::Tcg,
        config_disk: "/r/config.disk".into(),
        model_disk: "/c/model.disk".into(),
        root_disk: None,
        gpus: HostGpus::default(),
        numa_node: None,
        network: PortForward {
            listen: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 40_001),
            address: Ipv4Addr::new(10, 0, 2, 15),
            port: 8443,
        },
        vsock: VsockBackend::VhostUser { socket: "/r/vhost.sock".into() },
        qmp: "/r/qmp.sock".into(),
        paused: true,
    }
}

fn shape(qemu: &str, vcpus: u16, memory_mib: u32, devices: &[Device]) -> MachineShape {
    let qemu = qemu.parse().unwrap();
    MachineShape::new(ShapeFacts { vcpus, memory_mib, physical_bits: 46, qemu, devices: devices.to_vec() }).unwrap()
}

/// One option a line; JSON with its members in order, which QEMU does not look at.
fn lines(words: &[String]) -> Vec<String> {
    let sorted = |word: &String| match serde_json::from_str::<serde_json::Value>(word) {
        Ok(value @ serde_json::Value::Object(_)) => String::from_utf8(canonical::to_bytes(&value).unwrap()).unwrap(),
        _ => word.clone(),
    };
    let mut lines: Vec<String> = Vec::new();
    for word in &words.iter().map(sorted).collect::<Vec<_>>() {
        match lines.last_mut() {
            Some(line) if !word.starts_with('-') => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.clone()),
        }
    }
    lines
}

const DEVICES: [Device; 4] = [Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock];

const TDX: &[&str] = &[
    "-machine q35,memory-backend=mem0,smm=off,pic=off,kernel-irqchip=split,confidential-guest-support=tdx0",
    "-accel kvm",
    "-cpu host,host-phys-bits=off,phys-bits=46",
    "-m 65536M",
    "-object memory-backend-memfd,id=mem0,size=65536M,share=on",
    "-smp 8",
    "-nodefaults",
    "-no-user-config",
    "-no-reboot",
    "-display none",
    "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    "-bios /i/firmware.fd",
    "-kernel /i/vmlinuz",
    "-initrd /i/initrd",
    "-append panic=-1 quiet",
    r#"-object {"id":"tdx0","mrconfigid":"AicfT7ex4KlV5ZD81IyLhTZ9TntcMyddOvIuNBTI4Cqeha34zeFEAs8YwP+WvXrV","qom-type":"tdx-guest","quote-generation-socket":{"path":"/var/run/tdx-qgs/qgs.socket","type":"unix"},"sept-ve-disable":true}"#,
    r#"-blockdev {"driver":"raw","file":{"driver":"file","filename":"/r/config.disk","read-only":true},"node-name":"config","read-only":true}"#,
    "-device virtio-blk-pci,drive=config,serial=chrysalis-config,disable-legacy=on,addr=0x2",
    r#"-blockdev {"driver":"raw","file":{"driver":"file","filename":"/c/model.disk","read-only":true},"node-name":"model","read-only":true}"#,
    "-device virtio-blk-pci,drive=model,serial=chrysalis-model,disable-legacy=on,addr=0x3",
    "-netdev user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:40001-10.0.2.15:8443",
    "-device virtio-net-pci,netdev=net0,disable-legacy=on,romfile=,addr=0x4",
    "-device vhost-vsock-pci,guest-cid=7,disable-legacy=on,addr=0x5",
    "-qmp unix:/r/qmp.sock,server=on,wait=off",
    "-S",
];

const GPUS: &[&str] = &[
    r#"-blockdev {"driver":"raw","file":{"driver":"file","filename":"/i/rootfs","read-only":true},"node-name":"root","read-only":true}"#,
    "-device virtio-blk-pci,drive=root,serial=chrysalis-root,disable-legacy=on,addr=0x6",
    "-object iommufd,id=iommufd0",
    "-device pcie-root-port,id=gpu0,bus=pcie.0,chassis=1,hotplug=off,addr=0x7",
    "-device vfio-pci,host=0000:17:00.0,bus=gpu0,rombar=0,iommufd=iommufd0",
    "-device pcie-root-port,id=gpu1,bus=pcie.0,chassis=2,hotplug=off,addr=0x8",
    "-device vfio-pci,host=0000:b8:00.0,bus=gpu1,rombar=0,iommufd=iommufd0",
];

const SIMULATED: &[&str] = &[
    "-machine q35,memory-backend=mem0,smm=off,pic=off",
    "-accel tcg,thread=multi",
    "-cpu max,phys-bits=46,-avx,-avx2,-fma,-f16c,-vaes,-vpclmulqdq",
    "-m 512M",
    "-object memory-backend-memfd,id=mem0,size=512M,share=on",
    "-smp 2",
    "-nodefaults",
    "-no-user-config",
    "-no-reboot",
    "-display none",
    "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    "-bios /i/firmware.fd",
    "-kernel /i/vmlinuz",
    "-initrd /i/initrd",
    "-append panic=-1 quiet",
    r#"-blockdev {"driver":"raw","file":{"driver":"file","filename":"/r/config.disk","read-only":true},"node-name":"config","read-only":true}"#,
    "-device virtio-blk-pci,drive=config,serial=chrysalis-config,disable-legacy=on,addr=0x2",
    r#"-blockdev {"driver":"raw","file":{"driver":"file","filename":"/c/model.disk","read-only":true},"node-name":"model","read-only":true}"#,
    "-device virtio-blk-pci,drive=model,serial=chrysalis-model,disable-legacy=on,addr=0x3",
    "-netdev user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:40001-10.0.2.15:8443",
    "-device virtio-net-pci,netdev=net0,disable-legacy=on,romfile=,addr=0x4",
    "-chardev socket,id=vsock0,path=/r/vhost.sock",
    "-device vhost-user-vsock-pci,chardev=vsock0,disable-legacy=on,addr=0x5",
    "-qmp unix:/r/qmp.sock,server=on,wait=off",
    "-S",
];

const TABLES: &[&str] = &[
    "-machine q35,memory-backend=mem0,smm=off,pic=off",
    "-accel tcg,thread=multi",
    "-cpu max,phys-bits=46,-avx,-avx2,-fma,-f16c,-vaes,-vpclmulqdq",
    "-m 65536M",
    "-object memory-backend-memfd,id=mem0,size=65536M,share=on",
    "-smp 8",
    "-nodefaults",
    "-no-user-config",
    "-no-reboot",
    "-display none",
    "-device virtio-rng-pci,disable-legacy=on,addr=0x2",
    "-device virtio-rng-pci,disable-legacy=on,addr=0x3",
    "-device virtio-rng-pci,disable-legacy=on,addr=0x4",
    "-device virtio-rng-pci,disable-legacy=on,addr=0x5",
    "-S",
];
