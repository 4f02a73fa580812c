// SPDX-License-Identifier: Apache-2.0
//! ACPI tables read without a guest are the ones that real firmware gets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::path::Path;

use measure::acpi::{self, AcpiError, PhysicalBits};
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
