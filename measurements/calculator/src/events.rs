// SPDX-License-Identifier: Apache-2.0
//! The events that firmware and kernel measure in a direct boot, in order.

use serde::Serialize;
use types::{RegisterName, Sha384Digest};

use crate::{
    AcpiDigests,
    firmware::FirmwareGeneration,
    image::{ImageMeasurements, load_options},
    td_hob, uefi,
};

/// One event that is expected in a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ExpectedEvent {
    /// The register that the event is extended into.
    pub register: RegisterName,
    /// What is measured.
    pub name: &'static str,
    /// The digest that is extended.
    pub digest: Sha384Digest,
    /// What the digest depends on: where to look when it differs.
    pub depends_on: Dependency,
}

/// What decides an event's digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dependency {
    /// Memory of the machine, and the firmware's sections.
    Memory,
    /// The firmware file.
    Firmware,
    /// The code of the firmware: the same for every image.
    FirmwareSource,
    /// QEMU's version, and all of the machine's shape.
    QemuAndShape,
    /// The kernel file; with QEMU before 10.0 also memory and the length of the initrd.
    Kernel,
    /// The command line.
    CommandLine,
    /// The initrd.
    Initrd,
}

/// The events for a machine with `memory` bytes, given the kernel's digest; `None` when memory is too small
/// for the firmware or the command line is not one that [`ImageMeasurements::of`] accepts.
pub(crate) fn expected(
    image: &ImageMeasurements,
    memory: u64,
    kernel: Sha384Digest,
    acpi: &AcpiDigests,
) -> Option<Vec<ExpectedEvent>> {
    let mut events = edk2_202411(image, memory, kernel, acpi)?;
    // What is another in each generation; a new one must be written down here.
    match image.firmware.generation {
        FirmwareGeneration::Edk2Stable202408 => {
            let second = events.iter_mut().rfind(|event| event.name == SEPARATOR)?;
            second.register = RegisterName::Rtmr0;
        }
        FirmwareGeneration::Edk2Stable202411 | FirmwareGeneration::Edk2Stable202502 => {}
    }
    Some(events)
}

/// EDK II stable 2024.11 and 2025.02: `TdTcg2Dxe.c`, `QemuFwCfgAcpi.c` and `BdsPlatform.c` of `OvmfPkg`.
fn edk2_202411(
    image: &ImageMeasurements,
    memory: u64,
    kernel: Sha384Digest,
    acpi: &AcpiDigests,
) -> Option<Vec<ExpectedEvent>> {
    use Dependency::{CommandLine, Firmware, FirmwareSource, Initrd, Kernel, Memory, QemuAndShape};
    use RegisterName::{Rtmr0, Rtmr1, Rtmr2};
    let hob = td_hob::digest(&image.firmware, memory)?;
    let options = load_options(&image.command_line, image.firmware.generation.initrd_word()).ok()?;
    let global = |name| uefi::absent_variable(uefi::GLOBAL_VARIABLE, name);
    let database = |name| uefi::absent_variable(uefi::IMAGE_SECURITY_DATABASE, name);
    let action = |text: &str| Sha384Digest::of(text.as_bytes());
    let AcpiDigests { loader, rsdp, tables } = *acpi;
    let events = [
        (Rtmr0, "TD HOB", hob, Memory),
        (Rtmr0, "configuration volume", image.firmware.configuration_volume, Firmware),
        (Rtmr0, "variable SecureBoot", global("SecureBoot"), FirmwareSource),
        (Rtmr0, "variable PK", global("PK"), FirmwareSource),
        (Rtmr0, "variable KEK", global("KEK"), FirmwareSource),
        (Rtmr0, "variable db", database("db"), FirmwareSource),
        (Rtmr0, "variable dbx", database("dbx"), FirmwareSource),
        (Rtmr0, SEPARATOR, uefi::separator(), FirmwareSource),
        (Rtmr0, "ACPI loader", loader, QemuAndShape),
        (Rtmr0, "ACPI RSDP", rsdp, QemuAndShape),
        (Rtmr0, "ACPI tables", tables, QemuAndShape),
        (Rtmr1, "kernel", kernel, Kernel),
        (Rtmr0, "variable BootOrder", uefi::boot_order(), FirmwareSource),
        (Rtmr0, "variable Boot0000", uefi::boot_0000(), FirmwareSource),
        (Rtmr1, "calling the boot option", action(CALLING_APPLICATION), FirmwareSource),
        (Rtmr1, SEPARATOR, uefi::separator(), FirmwareSource),
        (Rtmr2, "command line", Sha384Digest::of(&options), CommandLine),
        (Rtmr2, "initrd", image.initrd, Initrd),
        (Rtmr1, "leaving boot services", action(EXIT_INVOKED), FirmwareSource),
        (Rtmr1, "left boot services", action(EXIT_RETURNED), FirmwareSource),
    ];
    Some(
        events
            .into_iter()
            .map(|(register, name, digest, depends_on)| ExpectedEvent { register, name, digest, depends_on })
            .collect(),
    )
}

const SEPARATOR: &str = "separator";
// Action strings of the TCG PC Client Platform Firmware Profile 1.05, section 10.4.4.
const CALLING_APPLICATION: &str = "Calling EFI Application from Boot Option";
const EXIT_INVOKED: &str = "Exit Boot Services Invocation";
const EXIT_RETURNED: &str = "Exit Boot Services Returned with Success";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FirmwareMeasurements, KernelMeasurements, MemoryRange};

    fn events(generation: FirmwareGeneration) -> Vec<(RegisterName, &'static str)> {
        let digest = Sha384Digest::of(b"x");
        let image = ImageMeasurements {
            firmware: FirmwareMeasurements {
                generation,
                mr_td_per_page: digest,
                mr_td_two_pass: digest,
                configuration_volume: digest,
                td_hob_address: 0x1000,
                added_memory: vec![MemoryRange { address: 0x1000, length: 0x1000 }],
            },
            kernel: KernelMeasurements {
                unpatched: digest,
                initrd_address_max: u32::MAX,
                initrd_len: 1,
                patched: vec![],
            },
            initrd: digest,
            command_line: "quiet".into(),
        };
        let acpi = AcpiDigests { loader: digest, rsdp: digest, tables: digest };
        let events = expected(&image, 1 << 30, digest, &acpi).unwrap();
        events.into_iter().map(|event| (event.register, event.name)).collect()
    }

    #[test]
    fn the_second_separator_moved_in_2024_11() {
        let of = |generation, register| -> Vec<&'static str> {
            events(generation).into_iter().filter(|(r, _)| *r == register).map(|(_, name)| name).collect()
        };
        let old = FirmwareGeneration::Edk2Stable202408;
        assert_eq!(of(old, RegisterName::Rtmr0).last(), Some(&SEPARATOR));
        assert_eq!(of(old, RegisterName::Rtmr0).len(), 14);
        assert!(!of(old, RegisterName::Rtmr1).contains(&SEPARATOR));
        for new in [FirmwareGeneration::Edk2Stable202411, FirmwareGeneration::Edk2Stable202502] {
            assert_eq!(of(new, RegisterName::Rtmr0).last(), Some(&"variable Boot0000"));
            assert_eq!(of(new, RegisterName::Rtmr0).len(), 13);
            assert!(of(new, RegisterName::Rtmr1).contains(&SEPARATOR));
        }
    }
}
