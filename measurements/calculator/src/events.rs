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
    // One order for each generation; a new one must be written down here.
    match image.firmware.generation {
        FirmwareGeneration::Edk2Stable202502 => edk2_202502(image, memory, kernel, acpi),
    }
}

/// EDK II stable 2025.02: `TdTcg2Dxe.c`, `QemuFwCfgAcpi.c` and `BdsPlatform.c` of `OvmfPkg`.
fn edk2_202502(
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
        (Rtmr0, "separator", uefi::separator(), FirmwareSource),
        (Rtmr0, "ACPI loader", loader, QemuAndShape),
        (Rtmr0, "ACPI RSDP", rsdp, QemuAndShape),
        (Rtmr0, "ACPI tables", tables, QemuAndShape),
        (Rtmr1, "kernel", kernel, Kernel),
        (Rtmr0, "variable BootOrder", uefi::boot_order(), FirmwareSource),
        (Rtmr0, "variable Boot0000", uefi::boot_0000(), FirmwareSource),
        (Rtmr1, "calling the boot option", action(CALLING_APPLICATION), FirmwareSource),
        (Rtmr1, "separator", uefi::separator(), FirmwareSource),
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

// Action strings of the TCG PC Client Platform Firmware Profile 1.05, section 10.4.4.
const CALLING_APPLICATION: &str = "Calling EFI Application from Boot Option";
const EXIT_INVOKED: &str = "Exit Boot Services Invocation";
const EXIT_RETURNED: &str = "Exit Boot Services Returned with Success";
