// SPDX-License-Identifier: Apache-2.0
//! `measure acpi`: the ACPI digests of a machine.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use calculator::AcpiReference;
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
/// The result, an ACPI reference for this shape, is what `compute --acpi` and `release create --acpi` take.
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
    /// Print one JSON document.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Report, Failure> {
    let shape = input::shape(&arguments.shape)?;
    let reference = AcpiReference::of(&shape, read(&arguments.qemu, &shape)?.digests());
    let AcpiReference { loader, rsdp, tables, .. } = &reference;
    Ok(Report {
        text: format!("etc/table-loader  {loader}\netc/acpi/rsdp     {rsdp}\netc/acpi/tables   {tables}\n"),
        json: json!(reference),
        reasons: vec![],
    })
}

/// Reads the files from a QEMU whose version must be that of the shape.
pub(crate) fn read(program: &Path, shape: &MachineShape) -> Result<AcpiFiles, Failure> {
    let found = version(program)?;
    let facts = shape.facts();
    let wanted = facts.qemu;
    if found != wanted {
        return Err(Refusal::new(
            "qemu_version_mismatch",
            "shape.qemu",
            format!("the shape says QEMU {wanted}, {} is QEMU {found}: its tables may differ", program.display()),
            "name a QEMU of the shape's version with --qemu, or give its digests with --acpi",
        )
        .into());
    }
    let Some(bits) = PhysicalBits::new(facts.physical_bits) else {
        return Err(Refusal::new(
            "physical_bits_unsupported",
            "shape.physical_bits",
            format!("where firmware puts 64-bit PCI addresses with {} address bits is not known", facts.physical_bits),
            "use a shape with 36 to 48 bits, or give its digests with --acpi",
        )
        .into());
    };
    let files = acpi::read(program, &qemu::table_arguments(shape), bits).context("cannot read the ACPI tables")?;
    Ok(files)
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
