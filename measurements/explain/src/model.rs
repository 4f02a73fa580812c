// SPDX-License-Identifier: Apache-2.0
//! What the reference expects of a machine, as far as it can say.

use calculator::{AcpiDigests, AcpiReference, Dependency, ExpectedRegisters, ImageMeasurements, registers};
use event_log::Kind;
use types::{MachineShape, QemuVersion, RegisterName, Sha384Digest, shape::ShapeFacts};

use crate::{document::ExpectedValue, limits::FALLBACK_MIB};

/// An event as far as the reference can say it.
#[derive(Debug, Clone)]
pub(crate) struct ModelEvent {
    pub(crate) register: RegisterName,
    pub(crate) name: &'static str,
    pub(crate) depends_on: Dependency,
    /// `None` where the reference cannot say.
    pub(crate) digest: Option<Sha384Digest>,
}

/// What a machine should measure.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) events: Vec<ModelEvent>,
    /// Values of MRTD, RTMR0, RTMR1, RTMR2.
    pub(crate) values: [Vec<ExpectedValue>; 4],
    /// What the reference lacks for this machine.
    pub(crate) lacks: Vec<Lack>,
}

/// Something that a reference does not say about a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// Which machine it is.
    Shape,
    /// Digests of its ACPI files.
    Acpi,
    /// The kernel with the header that this QEMU writes for this memory.
    Kernel,
    /// How the firmware runs with this memory.
    Memory,
}

impl Model {
    /// The expectation for a machine, or for an unknown one.
    pub(crate) fn of(image: &ImageMeasurements, acpi: &[AcpiReference], shape: Option<&MachineShape>) -> Self {
        let Some(shape) = shape else {
            return Self::partial(image, None, None, vec![Lack::Shape]);
        };
        let digests = AcpiReference::find(acpi, shape).ok();
        match digests.map(|digests| registers(image, shape, &digests)) {
            Some(Ok(expected)) => Self::full(&expected),
            _ => {
                let mut lacks = Vec::new();
                if digests.is_none() {
                    lacks.push(Lack::Acpi);
                }
                Self::partial(image, Some(shape), digests.as_ref(), lacks)
            }
        }
    }

    /// The expected events of one register.
    pub(crate) fn of_register(&self, register: RegisterName) -> impl Iterator<Item = &ModelEvent> {
        self.events.iter().filter(move |event| event.register == register)
    }

    fn full(expected: &ExpectedRegisters) -> Self {
        let event = |event: &calculator::ExpectedEvent| ModelEvent {
            register: event.register,
            name: event.name,
            depends_on: event.depends_on,
            digest: Some(event.digest),
        };
        let values = COMPUTED.map(|name| {
            let values = expected.allowed(name).unwrap_or_default().iter();
            values.map(|v| ExpectedValue { value: v.value, reason: v.reason.to_owned() }).collect()
        });
        Self { events: expected.events.iter().map(event).collect(), values, lacks: Vec::new() }
    }

    /// What can be said without ACPI digests or a patched kernel: the calculation is made for a machine that has
    /// both, and what does not carry over is blanked.
    fn partial(
        image: &ImageMeasurements,
        shape: Option<&MachineShape>,
        acpi: Option<&AcpiDigests>,
        mut lacks: Vec<Lack>,
    ) -> Self {
        let zero = AcpiDigests { loader: Sha384Digest::ZERO, rsdp: Sha384Digest::ZERO, tables: Sha384Digest::ZERO };
        let digests = acpi.copied().unwrap_or(zero);
        // Attempts in order: the machine itself, with an unpatched kernel, with ordinary memory.
        let own = shape.and_then(|shape| registers(image, shape, &digests).ok());
        let unpatched = || {
            let stand_in = stand_in(shape?.facts().memory_mib)?;
            registers(image, &stand_in, &digests).ok()
        };
        let ordinary = || registers(image, &stand_in(FALLBACK_MIB)?, &digests).ok();
        let (kernel_known, memory_known) = (own.is_some(), shape.is_some());
        let (expected, memory_known) = match own.or_else(unpatched) {
            Some(expected) => (Some(expected), memory_known),
            None => (ordinary(), false),
        };
        if shape.is_some() && !memory_known {
            lacks.push(Lack::Memory);
        } else if shape.is_some() && !kernel_known {
            lacks.push(Lack::Kernel);
        }
        let Some(expected) = expected else {
            return Self { events: Vec::new(), values: Default::default(), lacks };
        };
        let mut model = Self::full(&expected);
        for event in &mut model.events {
            let known = match event.depends_on {
                Dependency::Memory => memory_known,
                Dependency::QemuAndShape => acpi.is_some(),
                Dependency::Kernel => kernel_known,
                _ => true,
            };
            if !known {
                event.digest = None;
            }
        }
        model.blank_values(shape, image);
        model.lacks = lacks;
        model
    }

    /// Values of registers with an unknown event are unknown; MRTD depends on QEMU's version alone.
    fn blank_values(&mut self, shape: Option<&MachineShape>, image: &ImageMeasurements) {
        let unknown =
            COMPUTED.map(|name| self.events.iter().any(|event| event.register == name && event.digest.is_none()));
        for (values, unknown) in self.values.iter_mut().zip(unknown) {
            if unknown {
                values.clear();
            }
        }
        let [mr_td, ..] = &mut self.values;
        // The stand-in's version is not the machine's: both page orders may be.
        if shape.is_none_or(|shape| shape.facts().qemu < STAND_IN_QEMU) {
            let value = |value, reason: &str| ExpectedValue { value, reason: reason.to_owned() };
            *mr_td = vec![
                value(image.firmware.mr_td_per_page, "each page added and measured in turn"),
                value(image.firmware.mr_td_two_pass, "all pages of a section added, then measured"),
            ];
        }
    }
}

impl ModelEvent {
    /// What a log's event must claim to be to stand beside this one.
    pub(crate) fn kind(&self) -> Kind {
        match (self.depends_on, self.name) {
            (Dependency::Memory, _) => Kind::HandoffTables,
            (Dependency::Firmware, _) => Kind::FirmwareBlob,
            (Dependency::QemuAndShape, _) => Kind::PlatformConfiguration,
            (Dependency::Kernel, _) => Kind::Image,
            (Dependency::CommandLine, _) => Kind::LoadOptions,
            (Dependency::Initrd, _) => Kind::Initrd,
            (Dependency::FirmwareSource, "separator") => Kind::Separator,
            (_, name) => match name.strip_prefix("variable ") {
                Some(variable) if variable.starts_with("Boot") => Kind::BootVariable(variable.to_owned()),
                Some(variable) => Kind::ConfigurationVariable(variable.to_owned()),
                None => Kind::Action,
            },
        }
    }
}

/// The replayed value of known events.
pub(crate) fn fold<'a>(digests: impl IntoIterator<Item = &'a Sha384Digest>) -> Sha384Digest {
    digests.into_iter().fold(Sha384Digest::ZERO, |value, digest| value.extend(digest))
}

/// The expected events of an image on a machine with this memory, without regard to QEMU's version: for values
/// that depend on memory and firmware alone.
pub(crate) fn events_with_memory(image: &ImageMeasurements, memory_mib: u32) -> Option<Vec<calculator::ExpectedEvent>> {
    let zero = AcpiDigests { loader: Sha384Digest::ZERO, rsdp: Sha384Digest::ZERO, tables: Sha384Digest::ZERO };
    Some(registers(image, &stand_in(memory_mib)?, &zero).ok()?.events)
}

/// A machine whose QEMU leaves the kernel as it is.
fn stand_in(memory_mib: u32) -> Option<MachineShape> {
    MachineShape::new(ShapeFacts { vcpus: 1, memory_mib, physical_bits: 46, qemu: STAND_IN_QEMU, devices: vec![] }).ok()
}

/// The machine in words.
pub(crate) fn describe(shape: &MachineShape) -> String {
    let ShapeFacts { vcpus, memory_mib, physical_bits, qemu, devices } = shape.facts();
    format!("{vcpus} vCPUs, {memory_mib} MiB, QEMU {qemu}, {physical_bits} address bits, {} devices", devices.len())
}

/// The registers that an image and a machine decide, in the order of [`Model::values`].
pub(crate) const COMPUTED: [RegisterName; 4] =
    [RegisterName::MrTd, RegisterName::Rtmr0, RegisterName::Rtmr1, RegisterName::Rtmr2];
const STAND_IN_QEMU: QemuVersion = QemuVersion { major: 10, minor: 1 };
