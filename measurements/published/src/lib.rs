// SPDX-License-Identifier: Apache-2.0
//! ACPI digests that were read out of known QEMU versions, as data.
//!
//! One generated file for each version stands in `acpi/`; `measure acpi publish` writes it, `measure acpi check`
//! compares it with a QEMU. The digests hold for trust domains and for emulated machines, because the launcher gives
//! both the same chipset (see `docs/measurements.md`, "ACPI").
//!
//! What this does not establish: that the QEMU of another packager, with the same version number and other patches,
//! builds the same tables. RTMR0 of a quote shows whether it did.

mod document;

use std::sync::LazyLock;

use calculator::AcpiReference;
use types::{MachineShape, QemuVersion};

pub use document::{Bits, Document, DocumentError, Machine, Tables};

/// The published reference for a machine: for its own width of physical addresses and a span of memory around its own.
/// `None` when nothing was published for such a machine.
#[must_use]
pub fn acpi(shape: &MachineShape) -> Option<AcpiReference> {
    documents().iter().find_map(|document| document.reference(shape))
}

/// What was published, by QEMU version.
#[must_use]
pub fn documents() -> &'static [Document] {
    &DOCUMENTS
}

/// The QEMU versions for which something was published.
#[must_use]
pub fn versions() -> Vec<QemuVersion> {
    documents().iter().map(|document| document.qemu).collect()
}

/// A file that does not pass its check counts as absent; a test reads each.
static DOCUMENTS: LazyLock<Vec<Document>> =
    LazyLock::new(|| FILES.iter().filter_map(|text| Document::parse(text.as_bytes()).ok()).collect());

const FILES: [&str; 3] = [
    include_str!("../acpi/qemu-7.2.json"),
    include_str!("../acpi/qemu-10.0.json"),
    include_str!("../acpi/qemu-11.1.json"),
];

#[cfg(test)]
mod tests {
    use types::{Device, shape::ShapeFacts};

    use super::*;

    fn shape(change: impl Fn(&mut ShapeFacts)) -> MachineShape {
        let mut facts = ShapeFacts {
            vcpus: 2,
            memory_mib: 65536,
            physical_bits: 52,
            qemu: QemuVersion { major: 11, minor: 1 },
            devices: vec![Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock],
        };
        change(&mut facts);
        MachineShape::new(facts).unwrap()
    }

    #[test]
    fn every_file_is_read() {
        for text in FILES {
            Document::parse(text.as_bytes()).unwrap();
        }
        let version = |major, minor| QemuVersion { major, minor };
        assert_eq!(versions(), [version(7, 2), version(10, 0), version(11, 1)]);
    }

    #[test]
    fn a_reference_is_for_the_machine_that_was_asked_about() {
        for version in versions() {
            for (vcpus, memory_mib, physical_bits) in [(1, 512, 40), (2, 1024, 40), (64, 2816, 46), (8, 1 << 20, 52)] {
                let shape = shape(|facts| {
                    (facts.qemu, facts.vcpus) = (version, vcpus);
                    (facts.memory_mib, facts.physical_bits) = (memory_mib, physical_bits);
                });
                let reference = acpi(&shape).unwrap();
                assert!(reference.digests(&shape).is_ok(), "{reference:?}");
            }
        }
    }

    #[test]
    fn other_machines_have_none() {
        let absent = |change: fn(&mut ShapeFacts)| assert_eq!(acpi(&shape(change)), None);
        absent(|facts| facts.qemu.minor = 7);
        absent(|facts| facts.vcpus = 3);
        absent(|facts| facts.memory_mib = 1025);
        absent(|facts| facts.memory_mib = 2 << 20);
        absent(|facts| facts.physical_bits = 39);
        absent(|facts| facts.devices.swap(0, 1));
        absent(|facts| facts.devices.truncate(3));
    }

    #[test]
    fn facts_that_enter_the_tables_have_other_digests() {
        let of = |change: fn(&mut ShapeFacts)| acpi(&shape(change)).unwrap();
        let base = of(|_| ());
        assert_ne!(of(|facts| facts.vcpus = 4).rsdp, base.rsdp);
        assert_ne!(of(|facts| facts.memory_mib = 512).tables, base.tables);
        assert_ne!(of(|facts| facts.physical_bits = 40).tables, base.tables);
        assert_ne!(of(|facts| facts.qemu = QemuVersion { major: 10, minor: 0 }).tables, base.tables);
        // Firmware without five-level paging uses no more than 46 bits.
        assert_eq!(of(|facts| facts.physical_bits = 46).tables, base.tables);
    }
}
