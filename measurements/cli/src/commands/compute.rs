// SPDX-License-Identifier: Apache-2.0
//! `measure compute`: the expected registers of an image on a machine.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use calculator::{AcpiReference, AllowedValue, ExpectedRegisters, FirmwareGeneration, registers};
use clap::Args;
use serde_json::json;
use types::Sha384Digest;

use crate::{
    input,
    measured::{self, AcpiSource},
    output::{Failure, Report},
};

/// Computes MRTD and RTMR0 to RTMR2 of an image on a machine.
///
/// ACPI digests are taken from a file that `measure acpi` wrote, are read out of the QEMU that is named (no guest runs),
/// or are those that the project publishes; for other machines they are read out of this machine's QEMU.
#[derive(Args)]
#[command(
    after_help = "Example:\n  measure compute --firmware OVMF.fd --kernel vmlinuz --initrd initrd --cmdline \"$(cat cmdline)\" --shape shape.toml --json\n\nA shape:\n  vcpus = 2\n  memory_mib = 1024\n  physical_bits = 40\n  qemu = \"7.2\"\n  devices = [\"config-disk\", \"model-disk\", \"network\", \"vsock\"]"
)]
pub(crate) struct Arguments {
    /// Firmware (TDVF), as Debian 13's OVMF.fd.
    #[arg(long)]
    firmware: PathBuf,
    /// The source that the firmware was built from: it decides which events are measured.
    #[arg(long, value_name = "NAME", default_value = "edk2-stable202502")]
    firmware_source: FirmwareGeneration,
    /// Kernel (bzImage with EFI stub).
    #[arg(long)]
    kernel: PathBuf,
    /// Initrd.
    #[arg(long)]
    initrd: PathBuf,
    /// Kernel command line, as QEMU gets it.
    #[arg(long)]
    cmdline: String,
    /// The machine's shape (TOML).
    #[arg(long)]
    shape: PathBuf,
    /// The QEMU to read ACPI tables from, whatever is published. Its version must be the shape's.
    #[arg(long, conflicts_with = "acpi")]
    qemu: Option<PathBuf>,
    /// ACPI references as `measure acpi --json` prints them; may be repeated. One must be for the shape.
    #[arg(long, value_name = "FILE")]
    acpi: Vec<PathBuf>,
    /// Add the events behind the registers, and other allowed values, to the JSON document.
    #[arg(long)]
    events: bool,
    /// Print one JSON document.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let shape = input::shape(&arguments.shape)?;
    let firmware = input::file(&arguments.firmware, MAX_FIRMWARE)?;
    let kernel = input::file(&arguments.kernel, MAX_KERNEL)?;
    let initrd = input::file(&arguments.initrd, MAX_INITRD)?;
    let files = [firmware.as_slice(), &kernel, &initrd];
    let image = measured::image(files, &arguments.cmdline, &[shape.facts().memory_mib], arguments.firmware_source)?;
    let given = measured::references(&arguments.acpi)?;
    let known = !given.is_empty() || published::acpi(&shape).is_some();
    let qemu = arguments.qemu.as_deref().or_else(|| (!known).then_some(Path::new(DEFAULT_QEMU)));
    let reference = AcpiSource { given: &given, qemu }.reference(&shape)?;
    let acpi =
        AcpiReference::find(&[reference], &shape).map_err(|_| anyhow::anyhow!("the reference is for another shape"))?;
    let expected = registers(&image, &shape, &acpi).map_err(measured::calculate_refusal)?;
    report(&expected, arguments.events)
}

fn report(expected: &ExpectedRegisters, events: bool) -> Result<Report, Failure> {
    let ExpectedRegisters { mr_td, rtmr_0, rtmr_1, rtmr_2, events: list } = expected;
    let mut json = json!({
        "mr_td": first(mr_td)?, "rtmr_0": first(rtmr_0)?, "rtmr_1": first(rtmr_1)?, "rtmr_2": first(rtmr_2)?,
    });
    if let (true, Some(fields)) = (events, json.as_object_mut()) {
        fields.insert("events".to_owned(), json!(list));
        fields.insert(
            "allowed".to_owned(),
            json!({ "mr_td": mr_td, "rtmr_0": rtmr_0, "rtmr_1": rtmr_1, "rtmr_2": rtmr_2 }),
        );
    }
    let mut text = String::new();
    for (name, values) in [("mr_td", mr_td), ("rtmr_0", rtmr_0), ("rtmr_1", rtmr_1), ("rtmr_2", rtmr_2)] {
        for AllowedValue { value, reason } in values {
            text.push_str(&format!("{name:<7} {value}  {reason}\n"));
        }
    }
    Ok(Report { json, text, reasons: vec![] })
}

fn first(values: &[AllowedValue]) -> Result<Sha384Digest, Failure> {
    let first = values.first().context("a register has no value")?;
    Ok(first.value)
}

const DEFAULT_QEMU: &str = "qemu-system-x86_64";
const MAX_FIRMWARE: u64 = 64 << 20;
const MAX_KERNEL: u64 = 256 << 20;
const MAX_INITRD: u64 = 2 << 30;
