// SPDX-License-Identifier: Apache-2.0
//! A guest out of numbers: an image, a machine, the log that firmware would write, the registers of a quote.

use calculator::{
    AcpiReference, Dependency, FirmwareGeneration, FirmwareMeasurements, ImageMeasurements, KernelMeasurements,
    MemoryRange, MemorySpan, PatchedKernel, registers,
};
use event_log::{EventLog, Indexing};
use explain::{Explanation, FirmwareLog, Input, Knowledge, Reference, Runtime, Standing, explain};
use types::{
    Device, EventName, GuestConfig, MachineShape, QemuVersion, RegisterName, Registers, RuntimeEvent, Sha384Digest,
    event::replay, shape::ShapeFacts,
};

pub(crate) fn digest(text: &str) -> Sha384Digest {
    Sha384Digest::of(text.as_bytes())
}

/// An image whose kernel was measured for QEMU 7.2 with 1 GiB and with 2.75 GiB and more.
pub(crate) fn image() -> ImageMeasurements {
    let mut image = ImageMeasurements {
        firmware: FirmwareMeasurements {
            generation: FirmwareGeneration::Edk2Stable202502,
            mr_td_per_page: digest("per page"),
            mr_td_two_pass: digest("two pass"),
            configuration_volume: digest("volume"),
            td_hob_address: 0x80_9000,
            added_memory: vec![
                MemoryRange { address: 0x81_0000, length: 0x1_0000 },
                MemoryRange { address: 0x80_9000, length: 0x2000 },
            ],
        },
        kernel: KernelMeasurements {
            unpatched: digest("kernel"),
            initrd_address_max: 0x7fff_ffff,
            initrd_len: 20 << 20,
            patched: vec![],
        },
        initrd: digest("initrd"),
        command_line: "panic=-1 quiet loglevel=0 chrysalis.tee=tdx".into(),
    };
    for (mib, name) in [(1024_u64, "patched for 1024"), (2048, "patched for 2048")] {
        // As QEMU computes it: below the ACPI data at the end of low memory.
        let initrd_address = ((mib << 20) - 0x28000 - 1 - (20 << 20)) & !0xfff;
        image
            .kernel
            .patched
            .push(PatchedKernel { initrd_address: u32::try_from(initrd_address).unwrap(), digest: digest(name) });
    }
    image
}

pub(crate) fn shape(change: impl FnOnce(&mut ShapeFacts)) -> MachineShape {
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

/// ACPI files that depend on everything but memory within a span.
pub(crate) fn acpi(shape: &MachineShape, from_mib: u32, to_mib: u32) -> AcpiReference {
    let ShapeFacts { vcpus, memory_mib: _, physical_bits, qemu, devices } = shape.facts();
    let name = |file: &str| digest(&format!("{file} {vcpus} {physical_bits} {qemu} {devices:?} {from_mib}"));
    let (loader, tables) = (name("loader"), name("tables"));
    let memory = MemorySpan { from_mib, to_mib };
    AcpiReference { qemu, vcpus, physical_bits, devices, memory, loader, rsdp: digest("rsdp"), tables }
}

/// What the reference knows: two sizes of machine, two versions of QEMU, two spans of memory.
pub(crate) fn all_acpi() -> Vec<AcpiReference> {
    let mut all = Vec::new();
    for (major, minor) in [(10, 1), (7, 2)] {
        for vcpus in [2, 4] {
            let shape = shape(|facts| {
                facts.vcpus = vcpus;
                facts.qemu = QemuVersion { major, minor };
            });
            all.extend([acpi(&shape, 256, 2815), acpi(&shape, 2816, 1 << 20)]);
        }
    }
    all
}

/// An event as firmware logs it.
#[derive(Debug, Clone)]
pub(crate) struct Logged {
    pub(crate) register: RegisterName,
    pub(crate) event_type: u32,
    pub(crate) digest: Sha384Digest,
    pub(crate) data: Vec<u8>,
}

/// A guest that ran.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) events: Vec<Logged>,
    pub(crate) registers: Registers,
    pub(crate) runtime: Vec<RuntimeEvent>,
    pub(crate) configuration: Vec<u8>,
}

impl Guest {
    /// Launches an image on a machine with its own ACPI files.
    pub(crate) fn new(image: &ImageMeasurements, shape: &MachineShape) -> Self {
        let references = all_acpi();
        let acpi = AcpiReference::find(&references, shape).unwrap();
        let expected = registers(image, shape, &acpi).unwrap();
        let events = expected.events.iter().map(logged).collect();
        let configuration = b"{\"configuration\":1}".to_vec();
        let zero = Sha384Digest::ZERO;
        let mut guest = Self {
            events,
            registers: Registers {
                mr_td: expected.mr_td[0].value,
                rtmr_0: zero,
                rtmr_1: zero,
                rtmr_2: zero,
                rtmr_3: zero,
                mr_config_id: GuestConfig::mr_config_id(&configuration),
                mr_owner: zero,
                mr_owner_config: zero,
            },
            runtime: boot()[..7].to_vec(),
            configuration,
        };
        guest.measure();
        guest
    }

    /// Sets RTMR0 to RTMR3 to what the events lead to.
    pub(crate) fn measure(&mut self) {
        let of = |register| {
            let own = self.events.iter().filter(|event| event.register == register);
            own.fold(Sha384Digest::ZERO, |value, event| value.extend(&event.digest))
        };
        let rtmrs = [RegisterName::Rtmr0, RegisterName::Rtmr1, RegisterName::Rtmr2].map(of);
        [self.registers.rtmr_0, self.registers.rtmr_1, self.registers.rtmr_2] = rtmrs;
        self.registers.rtmr_3 = replay(&self.runtime);
    }

    /// The event with a name, as the calculator calls it.
    pub(crate) fn event(&mut self, event_type: u32, nth: usize) -> &mut Logged {
        self.events.iter_mut().filter(|event| event.event_type == event_type).nth(nth).unwrap()
    }

    pub(crate) fn log(&self) -> Vec<u8> {
        let mut bytes = [&1_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), &[0; 20], &33_u32.to_le_bytes()].concat();
        bytes.extend(b"Spec ID Event03\0");
        bytes.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0xc, 0, 48, 0, 0]);
        for Logged { register, event_type, digest, data } in &self.events {
            let index: u32 = match register {
                RegisterName::Rtmr0 => 1,
                RegisterName::Rtmr1 => 2,
                RegisterName::Rtmr2 => 3,
                _ => 4,
            };
            let numbers = [index, *event_type, 1].map(u32::to_le_bytes).concat();
            let len = u32::try_from(data.len()).unwrap().to_le_bytes();
            bytes.extend([&numbers[..], &[0xc, 0], digest.as_bytes(), &len, data].concat());
        }
        bytes
    }
}

/// The events of a complete boot.
pub(crate) fn boot() -> Vec<RuntimeEvent> {
    EventName::ALL.iter().map(|name| RuntimeEvent::new(*name, name.as_str().as_bytes()).unwrap()).collect()
}

/// What an explanation is asked for; the rest is as in [`Guest::new`].
pub(crate) struct Question<'a> {
    pub(crate) guest: &'a Guest,
    pub(crate) image: ImageMeasurements,
    pub(crate) shape: Option<MachineShape>,
    pub(crate) with_log: bool,
    pub(crate) knowledge: Knowledge<'a>,
    pub(crate) acpi: Vec<AcpiReference>,
}

impl<'a> Question<'a> {
    pub(crate) fn new(guest: &'a Guest) -> Self {
        Self {
            guest,
            image: image(),
            shape: Some(shape(|_| ())),
            with_log: true,
            knowledge: Knowledge::default(),
            acpi: all_acpi(),
        }
    }

    pub(crate) fn without_log(guest: &'a Guest) -> Self {
        Self { with_log: false, ..Self::new(guest) }
    }

    pub(crate) fn on(self, shape: MachineShape) -> Self {
        Self { shape: Some(shape), ..self }
    }

    pub(crate) fn ask(&self) -> Explanation {
        let bytes = self.guest.log();
        let log = EventLog::parse(&bytes).unwrap();
        let boot = boot();
        let shapes = [shape(|_| ()), shape(|facts| facts.memory_mib = 65536)];
        explain(&Input {
            registers: &self.guest.registers,
            quote: Standing::Unverified,
            reference: Reference {
                standing: Standing::Verified,
                image: &self.image,
                acpi: &self.acpi,
                shapes: &shapes,
            },
            shape: self.shape.as_ref(),
            log: self.with_log.then_some(FirmwareLog { log: &log, indexing: Indexing::MeasurementRegister }),
            runtime: Some(Runtime { claimed: &self.guest.runtime, expected: &boot }),
            configuration: Some(&self.guest.configuration),
            knowledge: self.knowledge,
        })
    }

    /// The codes of all findings.
    pub(crate) fn codes(&self) -> Vec<&'static str> {
        self.ask().findings.iter().map(|finding| finding.code).collect()
    }
}

/// An expected event with the type and data that OVMF and Linux log.
fn logged(event: &calculator::ExpectedEvent) -> Logged {
    let (event_type, data) = match (event.depends_on, event.name) {
        (Dependency::Memory, _) => (0x8000_000b, [&[9][..], b"TdxTable\0", &[0; 32]].concat()),
        (Dependency::Firmware, _) => (0x8000_000a, [&[3][..], b"Fv\0", &[0; 16]].concat()),
        (Dependency::QemuAndShape, _) => (0xa, b"ACPI DATA".to_vec()),
        (Dependency::Kernel, _) => (0x8000_0003, [0_u64, 77, 0, 0].map(u64::to_le_bytes).concat()),
        (Dependency::CommandLine, _) => (6, b"\xed\x22\x3b\x8f\x1a\0\0\0LOADED_IMAGE::LoadOptions\0".to_vec()),
        (Dependency::Initrd, _) => (6, b"\xec\x22\x3b\x8f\x0d\0\0\0Linux initrd\0".to_vec()),
        (_, "separator") => (4, vec![0; 4]),
        (_, name) => match name.strip_prefix("variable ") {
            Some(variable) => {
                let kind = if variable.starts_with("Boot") { 0x8000_0002 } else { 0x8000_0001 };
                (kind, self::variable(variable, &[]))
            }
            None => (0x8000_0007, name.as_bytes().to_vec()),
        },
    };
    Logged { register: event.register, event_type, digest: event.digest, data }
}

/// `UEFI_VARIABLE_DATA`; the vendor does not matter here.
pub(crate) fn variable(name: &str, value: &[u8]) -> Vec<u8> {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let lengths = [name.len() as u64 / 2, value.len() as u64].map(u64::to_le_bytes).concat();
    [&[0x11; 16][..], &lengths, &name, value].concat()
}
