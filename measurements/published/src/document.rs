// SPDX-License-Identifier: Apache-2.0
//! The form of a published file.

use calculator::{AcpiReference, MemorySpan};
use serde::{Deserialize, Serialize};
use types::{Device, MachineShape, QemuVersion, Sha256Digest, Sha384Digest, shape::ShapeFacts};

/// All that was read out of one QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// The version.
    pub qemu: QemuVersion,
    /// What the program says about itself, with its packager's version.
    pub program: String,
    /// SHA-256 of the program.
    pub program_sha256: Sha256Digest,
    /// Devices of all machines, in PCI slot order.
    pub devices: Vec<Device>,
    /// One entry for each number of vCPUs.
    pub machines: Vec<Machine>,
}

/// Machines with the same number of vCPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Number of vCPUs.
    pub vcpus: u16,
    /// Digest of `etc/table-loader`; memory and address width do not enter it.
    pub loader: Sha384Digest,
    /// Digest of `etc/acpi/rsdp`; memory and address width do not enter it.
    pub rsdp: Sha384Digest,
    /// `etc/acpi/tables`.
    pub tables: Vec<Tables>,
}

/// A digest of `etc/acpi/tables` and the machines that have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tables {
    /// Widths of physical addresses.
    pub physical_bits: Bits,
    /// Sizes of memory.
    pub memory: MemorySpan,
    /// The digest.
    pub sha384: Sha384Digest,
}

/// A span of widths, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bits {
    /// Smallest.
    pub from: u8,
    /// Largest.
    pub to: u8,
}

/// Why a published file was refused.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// More than 1 MiB.
    #[error("the file has more than {MAX_DOCUMENT} bytes")]
    TooLarge,
    /// Not JSON of this form.
    #[error("the file is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A number of vCPUs stands twice, or spans are empty or overlap, so that a machine would have two digests.
    #[error("for {vcpus} vCPUs: {rule}")]
    Ambiguous {
        /// Number of vCPUs.
        vcpus: u16,
        /// The rule that is broken.
        rule: &'static str,
    },
}

impl Document {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        if bytes.len() > MAX_DOCUMENT {
            return Err(DocumentError::TooLarge);
        }
        let document: Self = serde_json::from_slice(bytes)?;
        document.check()?;
        Ok(document)
    }

    /// The reference for a machine, if the document has one: for the machine's own width, and for the span of memory that
    /// its own lies in.
    #[must_use]
    pub fn reference(&self, shape: &MachineShape) -> Option<AcpiReference> {
        let ShapeFacts { vcpus, memory_mib, physical_bits, qemu, devices } = shape.facts();
        if qemu != self.qemu || devices != self.devices {
            return None;
        }
        let machine = self.machines.iter().find(|machine| machine.vcpus == vcpus)?;
        let fits =
            |tables: &&Tables| tables.physical_bits.contains(physical_bits) && tables.memory.contains(memory_mib);
        let Tables { memory, sha384, .. } = *machine.tables.iter().find(fits)?;
        let Machine { loader, rsdp, .. } = *machine;
        Some(AcpiReference { qemu, vcpus, physical_bits, devices, memory, loader, rsdp, tables: sha384 })
    }

    fn check(&self) -> Result<(), DocumentError> {
        for (index, machine) in self.machines.iter().enumerate() {
            let ambiguous = |rule| Err(DocumentError::Ambiguous { vcpus: machine.vcpus, rule });
            if self.machines.iter().skip(index + 1).any(|other| other.vcpus == machine.vcpus) {
                return ambiguous("the number of vCPUs must not stand twice");
            }
            for (index, tables) in machine.tables.iter().enumerate() {
                if tables.is_empty() {
                    return ambiguous("a span must not be empty");
                }
                if machine.tables.iter().skip(index + 1).any(|other| tables.overlaps(other)) {
                    return ambiguous("spans must not overlap");
                }
            }
        }
        Ok(())
    }
}

impl Tables {
    const fn is_empty(&self) -> bool {
        self.physical_bits.from > self.physical_bits.to || self.memory.from_mib > self.memory.to_mib
    }

    const fn overlaps(&self, other: &Self) -> bool {
        self.physical_bits.from <= other.physical_bits.to
            && other.physical_bits.from <= self.physical_bits.to
            && self.memory.from_mib <= other.memory.to_mib
            && other.memory.from_mib <= self.memory.to_mib
    }
}

impl Bits {
    /// Whether machines of this width are meant.
    #[must_use]
    pub const fn contains(&self, bits: u8) -> bool {
        self.from <= bits && bits <= self.to
    }
}

const MAX_DOCUMENT: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(bits: (u8, u8), memory: (u32, u32)) -> Tables {
        Tables {
            physical_bits: Bits { from: bits.0, to: bits.1 },
            memory: MemorySpan { from_mib: memory.0, to_mib: memory.1 },
            sha384: Sha384Digest::of(b"t"),
        }
    }

    fn parse(machines: Vec<Machine>) -> Result<Document, DocumentError> {
        let document = Document {
            qemu: QemuVersion { major: 10, minor: 1 },
            program: "p".into(),
            program_sha256: Sha256Digest::of(b"p"),
            devices: vec![Device::Vsock],
            machines,
        };
        Document::parse(&serde_json::to_vec(&document).unwrap())
    }

    fn machine(vcpus: u16, tables: Vec<Tables>) -> Machine {
        Machine { vcpus, loader: Sha384Digest::of(b"l"), rsdp: Sha384Digest::of(b"r"), tables }
    }

    #[test]
    fn a_machine_has_one_digest() {
        let refused = |machines| assert!(matches!(parse(machines), Err(DocumentError::Ambiguous { vcpus: 2, .. })));
        let one = tables((40, 46), (512, 1024));
        assert!(parse(vec![machine(1, vec![one]), machine(2, vec![one])]).is_ok());
        assert!(
            parse(vec![machine(2, vec![one, tables((40, 46), (1025, 2048)), tables((47, 47), (1, 4096))])]).is_ok()
        );
        refused(vec![machine(2, vec![one]), machine(2, vec![])]);
        refused(vec![machine(2, vec![one, tables((46, 52), (1024, 2048))])]);
        refused(vec![machine(2, vec![tables((46, 40), (1, 2))])]);
        refused(vec![machine(2, vec![tables((40, 46), (2, 1))])]);
    }

    #[test]
    fn other_forms_are_refused() {
        let good = serde_json::to_string(&parse(vec![machine(2, vec![tables((40, 46), (1, 2))])]).unwrap()).unwrap();
        assert!(Document::parse(good.as_bytes()).is_ok());
        let extra = good.replacen('{', "{\"url\":\"x\",", 1);
        assert!(matches!(Document::parse(extra.as_bytes()), Err(DocumentError::Malformed(_))));
        assert!(matches!(Document::parse(format!("{good} x").as_bytes()), Err(DocumentError::Malformed(_))));
        let long = " ".repeat(MAX_DOCUMENT + 1);
        assert!(matches!(Document::parse(long.as_bytes()), Err(DocumentError::TooLarge)));
    }
}
