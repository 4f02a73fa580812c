// SPDX-License-Identifier: Apache-2.0
//! ACPI tables read without a guest are the ones that real firmware gets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod oracle;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use measure::acpi::{self, AcpiError, PhysicalBits, Program};
use types::{Device, MachineShape, QemuVersion, shape::ShapeFacts};

const QEMU: &str = "/usr/bin/qemu-system-x86_64";

fn shape(vcpus: u16, memory_mib: u32) -> MachineShape {
    let devices = vec![Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock];
    let qemu = QemuVersion { major: 7, minor: 2 };
    MachineShape::new(ShapeFacts { vcpus, memory_mib, physical_bits: 40, qemu, devices }).unwrap()
}

#[test]
fn tables_are_stable_and_depend_on_the_shape() {
    if !Path::new(QEMU).exists() {
        println!("SKIPPED: reading ACPI tables (no {QEMU})");
        return;
    }
    let read = |vcpus, mib| {
        acpi::read(Path::new(QEMU), &qemu::table_arguments(&shape(vcpus, mib)), PhysicalBits::EMULATED).unwrap()
    };
    let files = read(2, 512);
    assert_eq!(files.rsdp[..8], *b"RSD PTR ");
    assert_eq!(files.tables[..4], *b"FACS");
    assert!(files.tables.windows(4).any(|w| w == b"MCFG"), "PCIEXBAR was programmed");
    assert_eq!(files, read(2, 512));
    assert_ne!(files.tables, read(3, 512).tables);
    // Memory enters, too: the 32-bit window begins where low memory ends.
    assert_ne!(files.tables, read(2, 1024).tables);
    let wide = PhysicalBits::new(46).unwrap();
    let other = acpi::read(Path::new(QEMU), &qemu::table_arguments(&shape(2, 512)), wide).unwrap();
    assert_ne!(files.tables, other.tables);
    assert_eq!(files.loader, other.loader);
}

#[test]
fn failures_have_names() {
    let missing = acpi::read(Path::new("/nonexistent/qemu"), &[], PhysicalBits::EMULATED);
    assert!(matches!(missing, Err(AcpiError::Start { .. })), "{missing:?}");
    let no_qemu = acpi::read(Path::new("/bin/cat"), &[], PhysicalBits::EMULATED);
    assert!(matches!(no_qemu, Err(AcpiError::Ended { .. })), "{no_qemu:?}");
    if Path::new(QEMU).exists() {
        let bad = acpi::read(Path::new(QEMU), &["-machine".into(), "none-such".into()], PhysicalBits::EMULATED);
        assert!(matches!(&bad, Err(AcpiError::Ended { message }) if message.contains("machine type")), "{bad:?}");
    }
}

#[test]
fn published_digests_are_those_of_each_qemu() {
    let found = [
        ("7.2", oracle::installed_qemu()),
        ("10.0", oracle::packaged_qemu("10.0")),
        ("11.1", oracle::packaged_qemu("11.1")),
    ];
    for (version, program) in found {
        let known = program.as_ref().map(|program| Program::ask(program).unwrap());
        let (Some(program), Some(known)) = (program, known.filter(|known| known.version.to_string() == version)) else {
            println!("SKIPPED: comparing what is published with QEMU {version} (not found)");
            continue;
        };
        // Exact sizes, both ends of the span, and widths that the firmware cuts down.
        for (vcpus, memory_mib, physical_bits) in
            [(1, 512, 40), (2, 1024, 40), (4, 2048, 52), (8, 2816, 46), (32, 524_288, 40), (64, 1 << 20, 52)]
        {
            let devices = vec![Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock];
            let facts = ShapeFacts { vcpus, memory_mib, physical_bits, qemu: known.version, devices };
            let shape = MachineShape::new(facts).unwrap();
            let bits = PhysicalBits::new(physical_bits).unwrap();
            let read = acpi::read(&program, &qemu::table_arguments(&shape), bits).unwrap().digests();
            let published = published::acpi(&shape).unwrap().digests(&shape).unwrap();
            assert_eq!(published, read, "{}: {vcpus} vCPUs, {memory_mib} MiB, {physical_bits} bits", known.line);
        }
    }
}

/// Tables of a live trust domain, which another tool publishes: those that do not describe devices are the same bytes.
#[test]
fn an_emulated_machine_has_a_trust_domains_tables() {
    let dir = std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from);
    let file = dir.join("calc/canonical-defaults/acpi_tables.bin.gz");
    let program = oracle::packaged_qemu("10.0").or_else(|| oracle::packaged_qemu("11.1"));
    let (true, Some(program)) = (file.is_file(), program) else {
        println!("SKIPPED: a trust domain's ACPI tables (no vectors, or no packaged QEMU)");
        return;
    };
    let unpacked = Command::new("gzip").arg("-dc").arg(file).output().unwrap();
    assert!(unpacked.status.success());
    let of_domain = unpacked.stdout;
    let qemu = Program::ask(&program).unwrap().version;
    let facts = ShapeFacts { vcpus: 4, memory_mib: 2048, physical_bits: 46, qemu, devices: vec![] };
    let arguments = qemu::table_arguments(&MachineShape::new(facts).unwrap());
    let emulated = acpi::read(&program, &arguments, PhysicalBits::new(46).unwrap()).unwrap().tables;
    for signature in [b"FACP", b"APIC", b"MCFG", b"WAET"] {
        assert_eq!(oracle::table(&of_domain, signature), oracle::table(&emulated, signature), "{signature:?}");
    }
    // Without what the launcher says about the chipset they differ.
    let plain: Vec<String> = arguments.iter().map(|a| a.replace(",smm=off,pic=off", "")).collect();
    let plain = acpi::read(&program, &plain, PhysicalBits::new(46).unwrap()).unwrap().tables;
    for signature in [b"FACP", b"APIC"] {
        assert_ne!(oracle::table(&of_domain, signature), oracle::table(&plain, signature), "{signature:?}");
    }
}
