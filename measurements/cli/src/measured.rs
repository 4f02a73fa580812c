// SPDX-License-Identifier: Apache-2.0
//! What `compute` and `release create` share: the measurements of an image's files, and where ACPI digests come from.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use calculator::{AcpiReference, CalculateError, FirmwareGeneration, ImageBytes, ImageError, ImageMeasurements};
use serde::Deserialize;
use types::{MachineShape, Refusal};

use crate::{commands::acpi, input, output::Failure};

/// Measures an image. `memory_mib` lists the machines that QEMU before 10.0 will start.
pub(crate) fn image(
    [firmware, kernel, initrd]: [&[u8]; 3],
    command_line: &str,
    memory_mib: &[u32],
    generation: FirmwareGeneration,
) -> Result<ImageMeasurements, Failure> {
    let bytes = ImageBytes { firmware, generation, kernel, initrd, command_line };
    ImageMeasurements::of(&bytes, memory_mib).map_err(image_refusal)
}

/// Where ACPI digests come from, in this order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AcpiSource<'a> {
    /// References from files, as `measure acpi --json` prints them.
    pub(crate) given: &'a [AcpiReference],
    /// A QEMU on this machine. When there is none, what the project publishes is taken.
    pub(crate) qemu: Option<&'a Path>,
}

impl AcpiSource<'_> {
    /// The reference for a machine.
    pub(crate) fn reference(self, shape: &MachineShape) -> Result<AcpiReference, Failure> {
        if let Some(reference) = self.given.iter().find(|reference| reference.digests(shape).is_ok()) {
            return Ok(reference.clone());
        }
        if let Some(qemu) = self.qemu {
            return Ok(AcpiReference::of(shape, acpi::read(qemu, shape)?.digests()));
        }
        if let Some(reference) = published::acpi(shape) {
            return Ok(reference);
        }
        let missing = AcpiReference::find(self.given, shape).err().map(|fact| fact.of(shape)).unwrap_or_default();
        Err(Refusal::new(
            "acpi_reference_missing",
            "acpi",
            format!("no ACPI reference, given or published, is for {missing}"),
            "give one with --acpi (`measure acpi --json` prints it), or name a QEMU of the shape's version with --qemu",
        )
        .into())
    }
}

/// Reads references: each file has one, or a list.
pub(crate) fn references(paths: &[PathBuf]) -> Result<Vec<AcpiReference>, Failure> {
    let mut all = Vec::new();
    for path in paths {
        let bytes = input::file(path, MAX_REFERENCES)?;
        let malformed = || format!("{} has no ACPI references as `measure acpi --json` prints them", path.display());
        match serde_json::from_slice(&bytes).with_context(malformed)? {
            OneOrMore::One(reference) => all.push(*reference),
            OneOrMore::More(list) => all.extend(list),
        }
    }
    Ok(all)
}

/// Why a machine's registers cannot be computed.
pub(crate) fn calculate_refusal(error: CalculateError) -> Failure {
    Refusal::new("shape_unmeasurable", "shape", error.to_string(), "give the machine more memory").into()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(Box<AcpiReference>),
    More(Vec<AcpiReference>),
}

fn image_refusal(error: ImageError) -> Failure {
    let (code, field, fix) = match &error {
        ImageError::Firmware(_) => (
            "firmware_unmeasurable",
            "firmware",
            "use a TDVF with an empty variable store, such as Debian 13's OVMF.fd",
        ),
        ImageError::Kernel(_) => ("kernel_unmeasurable", "kernel", "use a bzImage with an EFI stub, and enough memory"),
        ImageError::EmptyInitrd => ("initrd_empty", "initrd", "give the image's initrd"),
        ImageError::CommandLine(_) => ("command_line_refused", "cmdline", "give the image's command line unchanged"),
    };
    Refusal::new(code, field, error.to_string(), fix).into()
}

const MAX_REFERENCES: u64 = 16 << 20;
