// SPDX-License-Identifier: Apache-2.0
//! From an image's measurements and a machine's shape to the values that its registers may have.

use serde::{Deserialize, Serialize};
use types::{MachineShape, QemuVersion, RegisterName, Sha384Digest, shape::ShapeFacts};

use crate::{
    events::{self, ExpectedEvent},
    image::ImageMeasurements,
};

/// Digests of the three ACPI files that QEMU gives to the firmware, each over the file as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcpiDigests {
    /// `etc/table-loader`.
    pub loader: Sha384Digest,
    /// `etc/acpi/rsdp`.
    pub rsdp: Sha384Digest,
    /// `etc/acpi/tables`.
    pub tables: Sha384Digest,
}

/// A value that a register may have, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AllowedValue {
    /// The value.
    pub value: Sha384Digest,
    /// Which circumstances lead to it.
    pub reason: &'static str,
}

/// What the registers of an image on a machine must be. RTMR3 and the creator's registers are not part of
/// it: they follow from the evidence, and from policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExpectedRegisters {
    /// Values of MRTD. The likeliest stands first.
    pub mr_td: Vec<AllowedValue>,
    /// Values of RTMR0.
    pub rtmr_0: Vec<AllowedValue>,
    /// Values of RTMR1.
    pub rtmr_1: Vec<AllowedValue>,
    /// Values of RTMR2.
    pub rtmr_2: Vec<AllowedValue>,
    /// The events behind RTMR0 to RTMR2, in order.
    pub events: Vec<ExpectedEvent>,
}

/// Why no registers can be expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CalculateError {
    /// The initrd does not fit, so QEMU would not start the machine.
    #[error("the initrd does not fit on a machine of {memory_mib} MiB")]
    InitrdTooLarge {
        /// Memory of the machine.
        memory_mib: u32,
    },
    /// The measurements lack the patched kernel that QEMU before 10.0 makes for this memory.
    #[error(
        "the image's measurements have no patched kernel for {memory_mib} MiB and QEMU {qemu}: measure it for that memory"
    )]
    NoPatchedKernel {
        /// Memory of the machine.
        memory_mib: u32,
        /// QEMU's version.
        qemu: QemuVersion,
    },
    /// Memory is too small for the firmware, or the image's measurements are inconsistent.
    #[error("the image's measurements do not fit a machine of {memory_mib} MiB")]
    Inconsistent {
        /// Memory of the machine.
        memory_mib: u32,
    },
}

impl ExpectedRegisters {
    /// The allowed values of a register; `None` for registers that this crate says nothing about.
    #[must_use]
    pub fn allowed(&self, name: RegisterName) -> Option<&[AllowedValue]> {
        match name {
            RegisterName::MrTd => Some(&self.mr_td),
            RegisterName::Rtmr0 => Some(&self.rtmr_0),
            RegisterName::Rtmr1 => Some(&self.rtmr_1),
            RegisterName::Rtmr2 => Some(&self.rtmr_2),
            RegisterName::Rtmr3 | RegisterName::MrConfigId | RegisterName::MrOwner | RegisterName::MrOwnerConfig => {
                None
            }
        }
    }

    /// True when `value` is one of the allowed values of `name`; false, too, for a register that this crate
    /// says nothing about.
    #[must_use]
    pub fn allows(&self, name: RegisterName, value: &Sha384Digest) -> bool {
        self.allowed(name).is_some_and(|values| values.iter().any(|allowed| allowed.value == *value))
    }
}

/// Computes the registers of `image` on a machine of `shape` whose ACPI files have these digests.
///
/// The ACPI digests must come from QEMU itself, for exactly this version and shape; taken from a guest's own
/// event log they make RTMR0 say nothing about ACPI.
///
/// # Errors
/// [`CalculateError`].
pub fn registers(
    image: &ImageMeasurements,
    shape: &MachineShape,
    acpi: &AcpiDigests,
) -> Result<ExpectedRegisters, CalculateError> {
    // vCPUs, devices and the width of physical addresses enter through the ACPI digests.
    let ShapeFacts { vcpus: _, memory_mib, physical_bits: _, qemu, devices: _ } = shape.facts();
    let (kernel, kernel_reason) = kernel_digest(image, memory_mib, qemu)?;
    let events = events::expected(image, u64::from(memory_mib) << 20, kernel, acpi)
        .ok_or(CalculateError::Inconsistent { memory_mib })?;
    let replayed = |register, reason| {
        let own = events.iter().filter(|event| event.register == register);
        let value = own.fold(Sha384Digest::ZERO, |value, event| value.extend(&event.digest));
        vec![AllowedValue { value, reason }]
    };
    Ok(ExpectedRegisters {
        mr_td: mr_td(image, qemu),
        rtmr_0: replayed(RegisterName::Rtmr0, "firmware, memory and ACPI tables as given"),
        rtmr_1: replayed(RegisterName::Rtmr1, kernel_reason),
        rtmr_2: replayed(RegisterName::Rtmr2, "command line and initrd as given"),
        events,
    })
}

fn mr_td(image: &ImageMeasurements, qemu: QemuVersion) -> Vec<AllowedValue> {
    let per_page = AllowedValue {
        value: image.firmware.mr_td_per_page,
        reason: "each page added and measured in turn (QEMU 10.1 and later)",
    };
    let two_pass = AllowedValue {
        value: image.firmware.mr_td_two_pass,
        reason: "all pages of a section added, then measured (QEMU before 10.1 with TDX patches)",
    };
    if qemu >= FIRST_WITH_TDX { vec![per_page] } else { vec![per_page, two_pass] }
}

fn kernel_digest(
    image: &ImageMeasurements,
    memory_mib: u32,
    qemu: QemuVersion,
) -> Result<(Sha384Digest, &'static str), CalculateError> {
    if qemu >= FIRST_UNPATCHED && image.firmware.generation.takes_untouched_kernel() {
        return Ok((image.kernel.unpatched, "kernel as in the file (QEMU 10.0 and later)"));
    }
    let address = image.kernel.initrd_address(memory_mib).ok_or(CalculateError::InitrdTooLarge { memory_mib })?;
    let patched = image.kernel.patched.iter().find(|patched| patched.initrd_address == address);
    let patched = patched.ok_or(CalculateError::NoPatchedKernel { memory_mib, qemu })?;
    Ok((patched.digest, "kernel with the setup header that QEMU before 10.0 writes"))
}

/// First version that offers the kernel without changes.
const FIRST_UNPATCHED: QemuVersion = QemuVersion { major: 10, minor: 0 };
/// First version that starts trust domains without patches.
const FIRST_WITH_TDX: QemuVersion = QemuVersion { major: 10, minor: 1 };
