// SPDX-License-Identifier: Apache-2.0
//! `registers.json`: what the image's registers will be on some common machines, for those who compare two builds by eye.
//!
//! Only an aid. A verifier computes the registers of the machine that it meets from a signed release; this file is signed by
//! nobody, and a machine that it lacks is not a wrong one.

use std::path::Path;

use calculator::{FirmwareGeneration, ImageBytes, ImageError, ImageMeasurements};
use serde::{Deserialize, Serialize};
use types::{Device, MachineShape, Sha384Digest, shape::ShapeFacts};

use crate::files::{self, FileError};
use crate::image::{BuildError, ImageManifest};

/// `registers.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredictedRegisters {
    /// [`PREDICTED`].
    pub schema: String,
    /// The source of the firmware, which decides what it measures.
    pub firmware_source: FirmwareGeneration,
    /// Machines whose ACPI tables this project publishes.
    pub machines: Vec<PredictedMachine>,
}

/// Registers of the image on one machine. Where a register has several values, the circumstances decide
/// (`docs/measurements.md`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredictedMachine {
    /// The machine.
    pub shape: MachineShape,
    /// Firmware.
    pub mr_td: Vec<Sha384Digest>,
    /// Firmware's configuration and the host's tables.
    pub rtmr_0: Vec<Sha384Digest>,
    /// Kernel.
    pub rtmr_1: Vec<Sha384Digest>,
    /// Command line and initrd.
    pub rtmr_2: Vec<Sha384Digest>,
}

/// Predicts for the image in `directory` and writes `registers.json` there.
///
/// # Errors
/// [`BuildError`].
pub(crate) fn write(directory: &Path, manifest: &ImageManifest) -> Result<(), BuildError> {
    let read = |name: &str| files::read_capped(&directory.join(name), MAX_FILE);
    let (firmware, kernel, initrd) = (read("firmware.fd")?, read("vmlinuz")?, read("initrd")?);
    let has_disk = manifest.root_disk.is_some();
    let predicted = predict(&firmware, &kernel, &initrd, &manifest.command_line, has_disk)?;
    let path = directory.join("registers.json");
    let text = serde_json::to_vec_pretty(&predicted).map_err(|e| FileError::at(&path, e.into()))?;
    Ok(files::write_whole(&path, &text)?)
}

/// The prediction for an image. `has_disk`: its machines have the root disk, too.
///
/// # Errors
/// [`ImageError`] when the files cannot be measured.
pub(crate) fn predict(
    firmware: &[u8],
    kernel: &[u8],
    initrd: &[u8],
    command_line: &str,
    has_disk: bool,
) -> Result<PredictedRegisters, ImageError> {
    let bytes = ImageBytes { firmware, generation: GENERATION, kernel, initrd, command_line };
    let memory: Vec<u32> = MACHINES.iter().map(|(_, memory_mib, _)| *memory_mib).collect();
    let image = ImageMeasurements::of(&bytes, &memory)?;
    let machines = shapes(has_disk).filter_map(|shape| machine(&image, shape)).collect();
    Ok(PredictedRegisters { schema: PREDICTED.to_owned(), firmware_source: GENERATION, machines })
}

fn machine(image: &ImageMeasurements, shape: MachineShape) -> Option<PredictedMachine> {
    let acpi = published::acpi(&shape)?.digests(&shape).ok()?;
    let expected = calculator::registers(image, &shape, &acpi).ok()?;
    let values = |allowed: &[calculator::AllowedValue]| allowed.iter().map(|allowed| allowed.value).collect();
    Some(PredictedMachine {
        mr_td: values(&expected.mr_td),
        rtmr_0: values(&expected.rtmr_0),
        rtmr_1: values(&expected.rtmr_1),
        rtmr_2: values(&expected.rtmr_2),
        shape,
    })
}

/// Every version of QEMU with published tables, on every machine of the list.
fn shapes(has_disk: bool) -> impl Iterator<Item = MachineShape> {
    let disk = has_disk.then_some(Device::RootDisk);
    let devices = [Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock];
    let devices: Vec<Device> = devices.into_iter().chain(disk).collect();
    published::versions().into_iter().flat_map(move |qemu| {
        let devices = devices.clone();
        MACHINES.into_iter().filter_map(move |(vcpus, memory_mib, physical_bits)| {
            let devices = devices.clone();
            MachineShape::new(ShapeFacts { vcpus, memory_mib, physical_bits, qemu, devices }).ok()
        })
    })
}

/// Schema of `registers.json`.
pub const PREDICTED: &str = "chrysalis/predicted-registers/v1";
/// Most bytes of a measured file.
const MAX_FILE: u64 = 256 << 20;
/// Source of the locked firmware.
const GENERATION: FirmwareGeneration = FirmwareGeneration::Edk2Stable202502;
/// vCPUs, memory in MiB, width of physical addresses: the demonstration's machine, and sizes that providers have.
const MACHINES: [(u16, u32, u8); 5] =
    [(2, 1024, 40), (8, 32_768, 46), (16, 65_536, 46), (16, 65_536, 52), (64, 262_144, 52)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_image_are_refused() {
        assert!(predict(b"firmware", b"kernel", b"initrd", "quiet", false).is_err());
    }

    /// With the image that the tests boot: what a release says of the same machine.
    #[test]
    fn every_version_of_qemu_with_tables_has_its_machines() {
        let versions: std::collections::BTreeSet<_> = shapes(false)
            .filter(|shape| published::acpi(shape).is_some())
            .map(|shape| (shape.facts().qemu, shape.facts().vcpus))
            .collect();
        assert_eq!(versions.len(), published::versions().len() * 4);
    }
}
