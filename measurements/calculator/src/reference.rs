// SPDX-License-Identifier: Apache-2.0
//! ACPI digests with the machines that they are for.

use serde::{Deserialize, Serialize};
use types::{Device, MachineShape, QemuVersion, Sha384Digest, shape::ShapeFacts};

use crate::AcpiDigests;

/// Digests of the three ACPI files for all machines of a span of memory that are otherwise the same. Each digest is
/// over the file as QEMU gives it to the firmware.
///
/// A reference says what a QEMU built. It does not say that the tables are harmless: the guest's kernel has to stand
/// any table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcpiReference {
    /// QEMU's version.
    pub qemu: QemuVersion,
    /// Number of vCPUs.
    pub vcpus: u16,
    /// Width of the guest's physical addresses in bits.
    pub physical_bits: u8,
    /// Devices in PCI slot order.
    pub devices: Vec<Device>,
    /// Machines of which memory.
    pub memory: MemorySpan,
    /// `etc/table-loader`.
    pub loader: Sha384Digest,
    /// `etc/acpi/rsdp`.
    pub rsdp: Sha384Digest,
    /// `etc/acpi/tables`.
    pub tables: Sha384Digest,
}

/// A span of memory sizes, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemorySpan {
    /// Smallest size in MiB.
    pub from_mib: u32,
    /// Largest size in MiB.
    pub to_mib: u32,
}

/// A fact of a machine that ACPI tables depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcpiFact {
    /// QEMU's version.
    Qemu,
    /// Number of vCPUs.
    Vcpus,
    /// Devices and their slots.
    Devices,
    /// Width of physical addresses.
    PhysicalBits,
    /// Memory.
    Memory,
}

impl AcpiReference {
    /// The reference for exactly one machine.
    #[must_use]
    pub fn of(shape: &MachineShape, digests: AcpiDigests) -> Self {
        let ShapeFacts { vcpus, memory_mib, physical_bits, qemu, devices } = shape.facts();
        let AcpiDigests { loader, rsdp, tables } = digests;
        let memory = MemorySpan { from_mib: memory_mib, to_mib: memory_mib };
        Self { qemu, vcpus, physical_bits, devices, memory, loader, rsdp, tables }
    }

    /// The digests, if the reference is for such a machine.
    ///
    /// # Errors
    /// The first fact in which the machine is another.
    pub fn digests(&self, shape: &MachineShape) -> Result<AcpiDigests, AcpiFact> {
        let Self { qemu, vcpus, physical_bits, devices, memory, loader, rsdp, tables } = self;
        let facts = shape.facts();
        for (same, fact) in [
            (*qemu == facts.qemu, AcpiFact::Qemu),
            (*vcpus == facts.vcpus, AcpiFact::Vcpus),
            (*devices == facts.devices, AcpiFact::Devices),
            (*physical_bits == facts.physical_bits, AcpiFact::PhysicalBits),
            (memory.contains(facts.memory_mib), AcpiFact::Memory),
        ] {
            if !same {
                return Err(fact);
            }
        }
        Ok(AcpiDigests { loader: *loader, rsdp: *rsdp, tables: *tables })
    }

    /// The digests for a machine from a list of references.
    ///
    /// # Errors
    /// The fact for which the list has nothing, given all facts before it in the order of [`AcpiFact`].
    pub fn find(references: &[Self], shape: &MachineShape) -> Result<AcpiDigests, AcpiFact> {
        let mut missing = AcpiFact::Qemu;
        for reference in references {
            match reference.digests(shape) {
                Ok(digests) => return Ok(digests),
                Err(fact) if fact.place() > missing.place() => missing = fact,
                Err(_) => (),
            }
        }
        Err(missing)
    }
}

impl MemorySpan {
    /// Whether machines of this size are meant.
    #[must_use]
    pub const fn contains(&self, mib: u32) -> bool {
        self.from_mib <= mib && mib <= self.to_mib
    }
}

impl AcpiFact {
    const fn place(self) -> u8 {
        match self {
            Self::Qemu => 0,
            Self::Vcpus => 1,
            Self::Devices => 2,
            Self::PhysicalBits => 3,
            Self::Memory => 4,
        }
    }

    /// Says the fact of a machine: `QEMU 10.1`, `4 vCPUs`, ….
    #[must_use]
    pub fn of(self, shape: &MachineShape) -> String {
        let facts = shape.facts();
        match self {
            Self::Qemu => format!("QEMU {}", facts.qemu),
            Self::Vcpus => format!("{} vCPUs", facts.vcpus),
            Self::Devices => format!("the devices {:?}", facts.devices),
            Self::PhysicalBits => format!("{} physical address bits", facts.physical_bits),
            Self::Memory => format!("{} MiB of memory", facts.memory_mib),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(change: impl Fn(&mut ShapeFacts)) -> MachineShape {
        let mut facts = ShapeFacts {
            vcpus: 2,
            memory_mib: 1024,
            physical_bits: 46,
            qemu: QemuVersion { major: 10, minor: 1 },
            devices: vec![Device::ConfigDisk, Device::Vsock],
        };
        change(&mut facts);
        MachineShape::new(facts).unwrap()
    }

    #[test]
    fn a_reference_is_for_its_machines_alone_and_the_missing_fact_is_named() {
        let digests = AcpiDigests {
            loader: Sha384Digest::of(b"l"),
            rsdp: Sha384Digest::of(b"r"),
            tables: Sha384Digest::of(b"t"),
        };
        let mut reference = AcpiReference::of(&shape(|_| ()), digests);
        assert_eq!(reference.digests(&shape(|_| ())), Ok(digests));
        assert_eq!(reference.digests(&shape(|f| f.memory_mib = 1025)), Err(AcpiFact::Memory));
        reference.memory = MemorySpan { from_mib: 512, to_mib: 2048 };
        for (mib, inside) in [(511, false), (512, true), (2048, true), (2049, false)] {
            assert_eq!(reference.digests(&shape(|f| f.memory_mib = mib)).is_ok(), inside, "{mib}");
        }
        let list = [reference.clone(), AcpiReference { vcpus: 4, ..reference }];
        let missing = |change: fn(&mut ShapeFacts)| AcpiReference::find(&list, &shape(change)).unwrap_err();
        assert_eq!(missing(|f| f.qemu.minor = 2), AcpiFact::Qemu);
        assert_eq!(missing(|f| f.vcpus = 3), AcpiFact::Vcpus);
        assert_eq!(missing(|f| f.devices.reverse()), AcpiFact::Devices);
        assert_eq!(missing(|f| f.physical_bits = 40), AcpiFact::PhysicalBits);
        assert_eq!(missing(|f| f.memory_mib = 256), AcpiFact::Memory);
        assert_eq!(AcpiReference::find(&[], &shape(|_| ())), Err(AcpiFact::Qemu));
        assert!(AcpiReference::find(&list, &shape(|f| f.vcpus = 4)).is_ok());
    }
}
