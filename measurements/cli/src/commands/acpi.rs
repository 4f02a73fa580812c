// SPDX-License-Identifier: Apache-2.0
//! `measure acpi`: the ACPI digests of a machine.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use calculator::AcpiReference;
use clap::{Args, Subcommand};
use measure::acpi::{self, AcpiFiles, PhysicalBits, Program};
use serde_json::json;
use types::{MachineShape, Refusal};

use crate::{
    input,
    output::{Failure, Report},
};

/// Reads a machine's ACPI digests out of QEMU, without running a guest.
///
/// The result, an ACPI reference for this shape, is what `compute --acpi` and `release create --acpi` take.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// The machine's shape (TOML).
    #[arg(long, required = true)]
    shape: Option<PathBuf>,
    /// The QEMU to ask. Its version must be the shape's.
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Read the digests of all standard machines and write them to a file, as the project publishes them. Takes a minute.
    Publish(PublishArguments),
}

#[derive(Args)]
struct PublishArguments {
    /// The QEMU to ask.
    #[arg(long)]
    qemu: PathBuf,
    /// The file whose digest is stated, where `--qemu` is a script that starts it.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Whether one JSON document is to be printed.
    pub(crate) fn json(&self) -> bool {
        match &self.action {
            Some(Action::Publish(arguments)) => arguments.json,
            None => self.json,
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<Report, Failure> {
    if let Some(Action::Publish(arguments)) = &arguments.action {
        return publish(arguments);
    }
    let shape = input::shape(arguments.shape.as_deref().context("--shape is missing")?)?;
    let reference = AcpiReference::of(&shape, read(&arguments.qemu, &shape)?.digests());
    let AcpiReference { loader, rsdp, tables, .. } = &reference;
    Ok(Report {
        text: format!("etc/table-loader  {loader}\netc/acpi/rsdp     {rsdp}\netc/acpi/tables   {tables}\n"),
        json: json!(reference),
        reasons: vec![],
    })
}

fn publish(arguments: &PublishArguments) -> Result<Report, Failure> {
    let PublishArguments { qemu, binary, out, json: _ } = arguments;
    let binary = match binary {
        Some(binary) => binary.clone(),
        None => on_path(qemu),
    };
    let document = acpi::publish(qemu, &binary, |step| eprintln!("{step}")).context("cannot publish")?;
    let mut text = serde_json::to_string_pretty(&document).context("cannot write JSON")?;
    text.push('\n');
    write_whole(out, text.as_bytes()).with_context(|| format!("cannot write {}", out.display()))?;
    let digests: usize = document.machines.iter().map(|machine| machine.tables.len() + 2).sum();
    Ok(Report {
        text: format!("{}: {} digests of {}\n", out.display(), digests, document.program),
        json: json!({ "out": out, "qemu": document.qemu, "program": document.program, "digests": digests }),
        reasons: vec![],
    })
}

/// Writes a file that is whole or not there.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let mut file = std::fs::File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(part, path)
}

/// The file that the shell would start.
fn on_path(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
        .unwrap_or_else(|| program.into())
}

/// Reads the files from a QEMU whose version must be that of the shape.
pub(crate) fn read(program: &Path, shape: &MachineShape) -> Result<AcpiFiles, Failure> {
    let found = Program::ask(program).context("cannot ask QEMU for its version")?.version;
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
            "use a shape with 40 to 52 bits, or give its digests with --acpi",
        )
        .into());
    };
    let files = acpi::read(program, &qemu::table_arguments(shape), bits).context("cannot read the ACPI tables")?;
    Ok(files)
}

const EXAMPLES: &str = "Examples:
  measure acpi --shape shape.toml --qemu /usr/bin/qemu-system-x86_64 --json > acpi.json
  measure acpi publish --qemu /usr/bin/qemu-system-x86_64 --out qemu-7.2.json";
