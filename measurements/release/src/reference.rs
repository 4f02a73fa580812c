// SPDX-License-Identifier: Apache-2.0
//! From a release's component measurements to the registers of a machine.

use calculator::{
    AcpiDigests, AcpiFact, AcpiReference, CalculateError, ExpectedRegisters, FirmwareMeasurements, ImageMeasurements,
    KernelMeasurements, load_options, registers,
};
use types::{MachineShape, QemuVersion, RegisterName, Sha384Digest};

use crate::statement::{Components, ReferenceValues, ShapeRegisters, StatementError, rule};

/// Why a release says nothing about a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoReference {
    /// No ACPI reference has this fact of the machine together with those before it.
    #[error("the release has no ACPI reference for {machine}")]
    Acpi {
        /// The first fact that none has.
        fact: AcpiFact,
        /// The fact in words.
        machine: String,
    },
    /// The kernel that QEMU before 10.0 writes for this memory was not measured.
    #[error("the release has no measurement of the kernel as QEMU {qemu} patches it for {memory_mib} MiB")]
    PatchedKernel {
        /// QEMU's version.
        qemu: QemuVersion,
        /// Memory of the machine.
        memory_mib: u32,
    },
    /// QEMU would not start the image on such a machine.
    #[error("firmware and initrd of the release do not fit a machine of {memory_mib} MiB")]
    Memory {
        /// Memory of the machine.
        memory_mib: u32,
    },
}

impl NoReference {
    /// What would add the missing part.
    #[must_use]
    pub const fn fix(&self) -> &'static str {
        match self {
            Self::Acpi { fact: AcpiFact::Qemu, .. } => {
                "launch with a QEMU version of the release, or have a release published with ACPI references for this one"
            }
            Self::Acpi { fact: AcpiFact::Vcpus, .. } => {
                "launch with a number of vCPUs of the release, or have a release published with ACPI references for this one"
            }
            Self::Acpi { fact: AcpiFact::Devices, .. } => {
                "launch with the devices of the release in their order, or have a release published with ACPI references for these"
            }
            Self::Acpi { fact: AcpiFact::PhysicalBits, .. } => {
                "launch with a width of physical addresses of the release, or have a release published with ACPI references for this one"
            }
            Self::Acpi { fact: AcpiFact::Memory, .. } => {
                "launch with a memory size of the release, or have a release published with ACPI references for this one"
            }
            Self::PatchedKernel { .. } => {
                "launch with QEMU 10.0 or newer, or have a release published whose kernel was measured for this memory"
            }
            Self::Memory { .. } => "launch with more memory",
        }
    }
}

impl ReferenceValues {
    /// Computes the registers of a machine, whether or not [`ReferenceValues::registers`] lists it.
    ///
    /// # Errors
    /// [`NoReference`] names the missing part.
    pub fn registers_for(&self, shape: &MachineShape) -> Result<ExpectedRegisters, NoReference> {
        let acpi = AcpiReference::find(&self.acpi, shape)
            .map_err(|fact| NoReference::Acpi { fact, machine: fact.of(shape) })?;
        self.registers_with(shape, &acpi)
    }

    /// Computes the registers of a machine with ACPI digests from elsewhere. From the guest's own event log they make
    /// RTMR0 say nothing about ACPI.
    ///
    /// # Errors
    /// [`NoReference`] names the missing part.
    pub fn registers_with(&self, shape: &MachineShape, acpi: &AcpiDigests) -> Result<ExpectedRegisters, NoReference> {
        registers(&self.image, shape, acpi).map_err(|error| match error {
            CalculateError::NoPatchedKernel { memory_mib, qemu } => NoReference::PatchedKernel { qemu, memory_mib },
            CalculateError::InitrdTooLarge { memory_mib } | CalculateError::Inconsistent { memory_mib } => {
                NoReference::Memory { memory_mib }
            }
        })
    }

    /// Takes these ACPI references, in the order that a statement must have.
    pub fn set_acpi(&mut self, mut references: Vec<AcpiReference>) {
        references.sort_by(|a, b| order(a).cmp(&order(b)));
        references.dedup();
        self.acpi = references;
    }

    pub(crate) fn check_references(&self) -> Result<(), StatementError> {
        check_image(&self.image, &self.components)?;
        check_acpi(&self.acpi)?;
        for listed in &self.registers {
            let computed = self.registers_for(&listed.shape).ok();
            let same = computed.is_some_and(|computed| *listed == ShapeRegisters::of(listed.shape.clone(), &computed));
            rule(same, "predicate.registers", "what the components give")?;
        }
        Ok(())
    }
}

impl ShapeRegisters {
    /// The table's row for a machine with these expected registers.
    #[must_use]
    pub fn of(shape: MachineShape, expected: &ExpectedRegisters) -> Self {
        let values = |name| {
            let mut values: Vec<Sha384Digest> = Vec::new();
            for allowed in expected.allowed(name).unwrap_or_default() {
                if !values.contains(&allowed.value) {
                    values.push(allowed.value);
                }
            }
            values
        };
        Self {
            shape,
            mr_td: values(RegisterName::MrTd),
            rtmr_0: values(RegisterName::Rtmr0),
            rtmr_1: values(RegisterName::Rtmr1),
            rtmr_2: values(RegisterName::Rtmr2),
        }
    }
}

fn check_image(image: &ImageMeasurements, components: &Components) -> Result<(), StatementError> {
    let ImageMeasurements { firmware, kernel, initrd, command_line } = image;
    let FirmwareMeasurements {
        generation,
        mr_td_per_page,
        mr_td_two_pass,
        configuration_volume,
        td_hob_address,
        added_memory,
    } = firmware;
    let not_zero = [mr_td_per_page, mr_td_two_pass, configuration_volume].into_iter().all(|d| *d != Sha384Digest::ZERO);
    rule(not_zero, "predicate.image.firmware", "measurements without the zero value")?;
    let has_hob = added_memory.iter().any(|range| range.address == *td_hob_address);
    let bounded = (1..=MAX_ADDED_MEMORY).contains(&added_memory.len());
    rule(has_hob && bounded, "predicate.image.firmware.added_memory", "1 to 32 ranges, one at td_hob_address")?;
    let line = load_options(command_line, generation.initrd_word());
    rule(line.is_ok(), "predicate.image.command_line", "1 to 2047 printable ASCII characters without vga=")?;
    let KernelMeasurements { unpatched, initrd_address_max: _, initrd_len, patched } = kernel;
    rule(*unpatched != Sha384Digest::ZERO, "predicate.image.kernel.unpatched", "another than the zero value")?;
    let sorted = patched.windows(2).all(|pair| matches!(pair, [a, b] if a.initrd_address < b.initrd_address));
    let placed = patched.iter().all(|p| p.initrd_address.is_multiple_of(PAGE) && p.digest != Sha384Digest::ZERO);
    rule(
        sorted && placed && patched.len() <= MAX_PATCHED,
        "predicate.image.kernel.patched",
        "at most 256 kernels, sorted by the page-aligned address of the initrd, each once",
    )?;
    // The same bytes are described twice; the firmware's and the kernel's measurements are other digests than the file's.
    let same_initrd = *initrd == components.initrd.sha384;
    rule(same_initrd, "predicate.image.initrd", "the sha384 of predicate.components.initrd")?;
    let same_len = u64::from(*initrd_len) == components.initrd.size;
    rule(same_len, "predicate.image.kernel.initrd_len", "the size of predicate.components.initrd")
}

fn check_acpi(references: &[AcpiReference]) -> Result<(), StatementError> {
    rule((1..=MAX_ACPI).contains(&references.len()), "predicate.acpi", "a list of 1 to 1024 references")?;
    for reference in references {
        let AcpiReference { qemu: _, vcpus, physical_bits, devices, memory, loader, rsdp, tables } = reference;
        rule((1..=1024).contains(vcpus), "predicate.acpi.vcpus", "1 to 1024")?;
        rule((36..=52).contains(physical_bits), "predicate.acpi.physical_bits", "36 to 52")?;
        let repeated = devices.iter().enumerate().any(|(at, device)| devices.iter().skip(at + 1).any(|d| d == device));
        rule(!repeated, "predicate.acpi.devices", "a list without repetition")?;
        let span = 256 <= memory.from_mib && memory.from_mib <= memory.to_mib && memory.to_mib <= 16 << 20;
        rule(span, "predicate.acpi.memory", "a span within 256 to 16777216 MiB")?;
        let zero = [loader, rsdp, tables].contains(&&Sha384Digest::ZERO);
        rule(!zero, "predicate.acpi.tables", "digests without the zero value")?;
    }
    let sorted = references.windows(2).all(|pair| matches!(pair, [a, b] if order(a) < order(b)));
    rule(sorted, "predicate.acpi", "sorted by qemu, vcpus, physical_bits, devices and memory")?;
    let apart = references.windows(2).all(|pair| match pair {
        [a, b] => machine(a) != machine(b) || a.memory.to_mib < b.memory.from_mib,
        _ => true,
    });
    rule(apart, "predicate.acpi.memory", "spans that do not overlap for the same machine")
}

type Machine<'a> = (QemuVersion, u16, u8, &'a [types::Device]);

fn machine(reference: &AcpiReference) -> Machine<'_> {
    (reference.qemu, reference.vcpus, reference.physical_bits, &reference.devices)
}

fn order(reference: &AcpiReference) -> (Machine<'_>, u32) {
    (machine(reference), reference.memory.from_mib)
}

const MAX_ADDED_MEMORY: usize = 32;
const MAX_PATCHED: usize = 256;
const MAX_ACPI: usize = 1024;
const PAGE: u32 = 4096;

#[cfg(test)]
mod tests {
    use calculator::PatchedKernel;
    use types::{canonical, shape::ShapeFacts};

    use super::*;
    use crate::statement::{Statement, tests::sample};

    fn field_of(change: impl Fn(&mut ReferenceValues)) -> &'static str {
        let mut statement = sample();
        change(&mut statement.predicate);
        match Statement::parse(&canonical::to_bytes(&statement).unwrap()) {
            Err(StatementError::Field { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    fn shape(change: impl Fn(&mut ShapeFacts)) -> MachineShape {
        let mut facts = sample().predicate.registers[0].shape.facts();
        change(&mut facts);
        MachineShape::new(facts).unwrap()
    }

    #[test]
    fn a_table_that_lies_is_refused() {
        let other = Sha384Digest::of(b"another image");
        assert_eq!(field_of(|v| v.registers[0].mr_td[0] = other), "predicate.registers");
        assert_eq!(field_of(|v| v.registers[1].rtmr_0[0] = other), "predicate.registers");
        assert_eq!(field_of(|v| v.registers[0].rtmr_1[0] = other), "predicate.registers");
        assert_eq!(field_of(|v| v.registers[0].rtmr_2.push(other)), "predicate.registers");
        // Registers of one shape under another's name; a shape that the references do not cover.
        let swap = |v: &mut ReferenceValues| {
            let (first, second) = (v.registers[0].shape.clone(), v.registers[1].shape.clone());
            (v.registers[0].shape, v.registers[1].shape) = (second, first);
        };
        assert_eq!(field_of(swap), "predicate.registers");
        assert_eq!(field_of(|v| _ = v.acpi.pop()), "predicate.registers");
        // Components that lie under an honest table.
        assert_eq!(field_of(|v| v.image.firmware.mr_td_per_page = other), "predicate.registers");
        assert_eq!(field_of(|v| v.image.kernel.unpatched = other), "predicate.registers");
        assert_eq!(field_of(|v| v.image.command_line.push_str(" debug")), "predicate.registers");
        assert_eq!(field_of(|v| v.acpi[0].tables = other), "predicate.registers");
    }

    #[test]
    fn components_and_references_keep_their_rules() {
        let other = Sha384Digest::of(b"other");
        assert_eq!(field_of(|v| v.image.initrd = other), "predicate.image.initrd");
        assert_eq!(field_of(|v| v.image.kernel.initrd_len += 1), "predicate.image.kernel.initrd_len");
        assert_eq!(field_of(|v| v.components.initrd.sha384 = other), "predicate.image.initrd");
        assert_eq!(field_of(|v| v.image.kernel.unpatched = Sha384Digest::ZERO), "predicate.image.kernel.unpatched");
        assert_eq!(field_of(|v| v.image.firmware.mr_td_two_pass = Sha384Digest::ZERO), "predicate.image.firmware");
        assert_eq!(field_of(|v| v.image.firmware.added_memory.clear()), "predicate.image.firmware.added_memory");
        assert_eq!(field_of(|v| v.image.firmware.td_hob_address += 1), "predicate.image.firmware.added_memory");
        let many = |v: &mut ReferenceValues| v.image.firmware.added_memory = vec![v.image.firmware.added_memory[0]; 33];
        assert_eq!(field_of(many), "predicate.image.firmware.added_memory");
        let patched = |addresses: &'static [u32]| {
            move |v: &mut ReferenceValues| {
                let kernel = |at: &u32| PatchedKernel { initrd_address: *at, digest: Sha384Digest::of(b"k") };
                v.image.kernel.patched = addresses.iter().map(kernel).collect();
            }
        };
        for bad in [&[0x2000, 0x1000][..], &[0x1000, 0x1000], &[0x1001]] {
            assert_eq!(field_of(patched(bad)), "predicate.image.kernel.patched");
        }
        assert_eq!(field_of(|v| v.acpi.clear()), "predicate.acpi");
        assert_eq!(field_of(|v| v.acpi.swap(0, 1)), "predicate.acpi");
        assert_eq!(field_of(|v| v.acpi.push(v.acpi[1].clone())), "predicate.acpi");
        assert_eq!(field_of(|v| v.acpi[0].vcpus = 0), "predicate.acpi.vcpus");
        assert_eq!(field_of(|v| v.acpi[0].physical_bits = 53), "predicate.acpi.physical_bits");
        assert_eq!(field_of(|v| v.acpi[0].devices = vec![types::Device::Vsock; 2]), "predicate.acpi.devices");
        assert_eq!(field_of(|v| v.acpi[0].memory.to_mib = 1023), "predicate.acpi.memory");
        assert_eq!(field_of(|v| v.acpi[0].rsdp = Sha384Digest::ZERO), "predicate.acpi.tables");
        // A span that reaches into the next one of the same machine would make two answers true.
        let overlap = |v: &mut ReferenceValues| {
            let mut second = v.acpi[0].clone();
            (second.memory.from_mib, second.memory.to_mib, second.tables) = (1024, 4096, Sha384Digest::of(b"t"));
            v.acpi[0].memory.from_mib = 512;
            v.acpi.insert(1, second);
        };
        assert_eq!(field_of(overlap), "predicate.acpi.memory");
    }

    #[test]
    fn machines_outside_of_the_table_are_computed_or_the_missing_part_is_named() {
        let mut values = sample().predicate;
        let listed = values.registers_for(&shape(|_| ())).unwrap();
        values.acpi[0].memory.to_mib = 3000;
        assert_eq!(values.registers_for(&shape(|f| f.memory_mib = 2000)).unwrap().rtmr_1, listed.rtmr_1);
        assert_ne!(values.registers_for(&shape(|f| f.memory_mib = 2000)).unwrap().rtmr_0, listed.rtmr_0);
        let missing = |change: fn(&mut ShapeFacts)| match values.registers_for(&shape(change)) {
            Err(NoReference::Acpi { fact, .. }) => fact,
            other => panic!("{other:?}"),
        };
        assert_eq!(missing(|f| f.qemu.minor = 2), AcpiFact::Qemu);
        assert_eq!(missing(|f| f.vcpus = 3), AcpiFact::Vcpus);
        assert_eq!(missing(|f| f.devices.reverse()), AcpiFact::Devices);
        assert_eq!(missing(|f| f.physical_bits = 40), AcpiFact::PhysicalBits);
        assert_eq!(missing(|f| f.memory_mib = 3001), AcpiFact::Memory);
        // QEMU before 10.0 needs a kernel measured for the memory; and firmware needs room.
        let mut old = values.clone();
        old.acpi[0].qemu = QemuVersion { major: 9, minor: 2 };
        let shape_92 = shape(|f| f.qemu = QemuVersion { major: 9, minor: 2 });
        assert!(matches!(old.registers_for(&shape_92), Err(NoReference::PatchedKernel { memory_mib: 1024, .. })));
        values.image.firmware.added_memory[0].address = 1 << 40;
        assert_eq!(values.registers_for(&shape(|_| ())), Err(NoReference::Memory { memory_mib: 1024 }));
    }
}
