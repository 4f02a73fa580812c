// SPDX-License-Identifier: Apache-2.0
//! Reads what is published out of a QEMU.
//!
//! Which machines share tables was read in the source and measured: memory enters by the end of low memory and by the
//! place of the 64-bit window alone (QEMU `hw/i386/acpi-build.c`, `build_dsdt`; `hw/pci-host/q35.c`). So below 2,816 MiB
//! each size has its own tables, and above, all sizes that leave the window in its place share theirs. The ends of each
//! span are read, and must be equal.

use std::path::Path;

use calculator::{AcpiDigests, MemorySpan};
use published::{Bits, Document, Machine, Tables};
use types::{
    Device, MachineShape, QemuVersion, Sha256Digest,
    shape::{ShapeError, ShapeFacts},
};

use super::{AcpiError, PhysicalBits, Program, read};

/// Why nothing can be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The tables could not be read.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The program could not be read.
    #[error("cannot read {path}: {source}")]
    Program {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Machines that should share their tables do not: this QEMU builds them in another way than the known versions.
    #[error("{vcpus} vCPUs: the tables of machines with {} MiB and {} bits and with {} MiB and {} bits differ", one.0, one.1, other.0, other.1)]
    Differ {
        /// Number of vCPUs.
        vcpus: u16,
        /// Memory in MiB and width of physical addresses of one machine.
        one: (u32, u8),
        /// And of the other.
        other: (u32, u8),
    },
    /// A standard machine is none.
    #[error("a standard machine is refused: {0}")]
    Shape(#[from] ShapeError),
}

impl PublishError {
    const fn differ(vcpus: u16, one: (u32, u8), other: (u32, u8)) -> Self {
        Self::Differ { vcpus, one, other }
    }
}

/// Reads the digests of all standard machines. `binary` is the file whose digest is stated: QEMU itself where `qemu` is a
/// script that starts it. `step` is told what is read next.
///
/// # Errors
/// [`PublishError`].
pub fn publish(qemu: &Path, binary: &Path, mut step: impl FnMut(&str)) -> Result<Document, PublishError> {
    let Program { version, line } = Program::ask(qemu)?;
    let bytes =
        std::fs::read(binary).map_err(|source| PublishError::Program { path: binary.display().to_string(), source })?;
    let machines = VCPUS.iter().map(|vcpus| {
        step(&format!("QEMU {version}: machines with {vcpus} vCPUs"));
        machine(qemu, version, *vcpus)
    });
    Ok(Document {
        qemu: version,
        program: line,
        program_sha256: Sha256Digest::of(&bytes),
        devices: DEVICES.to_vec(),
        machines: machines.collect::<Result<_, _>>()?,
    })
}

fn machine(qemu: &Path, version: QemuVersion, vcpus: u16) -> Result<Machine, PublishError> {
    let smallest = (EXACT[0], WIDTHS[0].0.from);
    let AcpiDigests { loader, rsdp, .. } = one(qemu, version, vcpus, smallest)?;
    let mut tables = Vec::new();
    for (physical_bits, largest) in WIDTHS {
        let exact = EXACT.iter().map(|mib| MemorySpan { from_mib: *mib, to_mib: *mib });
        for memory in exact.chain([MemorySpan { from_mib: SPLIT, to_mib: largest }]) {
            let digests = span(qemu, version, vcpus, physical_bits, memory)?;
            if (loader, rsdp) != (digests.loader, digests.rsdp) {
                return Err(PublishError::differ(vcpus, smallest, (memory.from_mib, physical_bits.from)));
            }
            tables.push(Tables { physical_bits, memory, sha384: digests.tables });
        }
    }
    Ok(Machine { vcpus, loader, rsdp, tables })
}

/// Reads a span at its corners.
fn span(
    qemu: &Path,
    version: QemuVersion,
    vcpus: u16,
    bits: Bits,
    memory: MemorySpan,
) -> Result<AcpiDigests, PublishError> {
    let first = (memory.from_mib, bits.from);
    let digests = one(qemu, version, vcpus, first)?;
    let mut others = vec![(memory.from_mib, bits.to), (memory.to_mib, bits.from), (memory.to_mib, bits.to)];
    others.dedup();
    for other in others.into_iter().filter(|other| *other != first) {
        if one(qemu, version, vcpus, other)? != digests {
            return Err(PublishError::differ(vcpus, first, other));
        }
    }
    Ok(digests)
}

fn one(
    qemu: &Path,
    version: QemuVersion,
    vcpus: u16,
    (memory_mib, physical_bits): (u32, u8),
) -> Result<AcpiDigests, PublishError> {
    let devices = DEVICES.to_vec();
    let shape = MachineShape::new(ShapeFacts { vcpus, memory_mib, physical_bits, qemu: version, devices })?;
    let bits = PhysicalBits::new(physical_bits).ok_or(AcpiError::NoWindow(physical_bits))?;
    Ok(read(qemu, &qemu::table_arguments(&shape), bits)?.digests())
}

const DEVICES: [Device; 4] = [Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock];
const VCPUS: [u16; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Sizes in MiB below [`SPLIT`].
const EXACT: [u32; 6] = [512, 768, 1024, 1536, 2048, 2560];
/// From this size in MiB on, low memory ends at 2 GiB.
const SPLIT: u32 = 2816;
/// Widths of physical addresses, each with the largest memory in MiB that leaves the 64-bit window in its place: emulated
/// processors, and all that reach the 46 bits which the firmware uses at most.
const WIDTHS: [(Bits, u32); 2] = [(Bits { from: 40, to: 40 }, 512 << 10), (Bits { from: 46, to: 52 }, 1 << 20)];
