// SPDX-License-Identifier: Apache-2.0
//! `measure acpi`: the ACPI digests of a machine.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use calculator::AcpiDigests;
use clap::Args;
use measure::acpi::{self, AcpiFiles, PhysicalBits};
use serde_json::json;
use types::{MachineShape, QemuVersion, Refusal};

use crate::{
    input,
    output::{Failure, Report},
};

/// Reads a machine's ACPI digests out of QEMU, without running a guest.
///
/// The result is what `compute --acpi` takes.
#[derive(Args)]
#[command(
    after_help = "Example:\n  measure acpi --shape shape.toml --qemu /usr/bin/qemu-system-x86_64 --json > acpi.json"
)]
pub(crate) struct Arguments {
    /// The machine's shape (TOML).
    #[arg(long)]
    shape: PathBuf,
    /// The QEMU to ask. Its version must be the shape's.
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// Width of the guest's physical addresses; 40 for emulated processors.
    #[arg(long, default_value = "40", value_parser = physical_bits)]
    phys_bits: PhysicalBits,
    /// Print one JSON document.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let shape = input::shape(&arguments.shape)?;
    let AcpiDigests { loader, rsdp, tables } = read(&arguments.qemu, &shape, arguments.phys_bits)?.digests();
    Ok(Report {
        json: json!({ "loader": loader, "rsdp": rsdp, "tables": tables }),
        text: format!("etc/table-loader  {loader}\netc/acpi/rsdp     {rsdp}\netc/acpi/tables   {tables}\n"),
        reasons: vec![],
    })
}

/// Reads the files from a QEMU whose version must be that of the shape.
pub(crate) fn read(program: &Path, shape: &MachineShape, bits: PhysicalBits) -> Result<AcpiFiles, Failure> {
    let found = version(program)?;
    let wanted = shape.facts().qemu;
    if found != wanted {
        return Err(Refusal::new(
            "qemu_version_mismatch",
            "shape.qemu",
            format!("the shape says QEMU {wanted}, {} is QEMU {found}: its tables may differ", program.display()),
            "name a QEMU of the shape's version with --qemu, or give its digests with --acpi",
        )
        .into());
    }
    let files = acpi::read(program, &qemu::table_arguments(shape), bits).context("cannot read the ACPI tables")?;
    Ok(files)
}

/// Reads the width of physical addresses.
pub(crate) fn physical_bits(text: &str) -> Result<PhysicalBits, String> {
    text.parse().ok().and_then(PhysicalBits::new).ok_or_else(|| "must be 36 to 48".to_owned())
}

fn version(program: &Path) -> anyhow::Result<QemuVersion> {
    let output = std::process::Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_once("version ")
        .and_then(|(_, rest)| {
            let mut numbers = rest.split(['.', ' ', '\n']);
            Some(format!("{}.{}", numbers.next()?, numbers.next()?))
        })
        .and_then(|version| version.parse().ok())
        .with_context(|| format!("{} --version does not name a version", program.display()))
}
