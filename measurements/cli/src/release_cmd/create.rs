// SPDX-License-Identifier: Apache-2.0
//! `measure release create`: from an image's directory and the shapes of machines to a statement.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use calculator::FirmwareGeneration;
use release::statement::SubjectDigest;
use release::{
    Component, Components, Hardware, ReferenceValues, ShapeRegisters, Statement, Subject, TcbStatus, Validity,
};
use serde::Deserialize;
use serde_json::{Value, json};
use types::{MachineShape, Refusal, Role, Sha256Digest, Sha384Digest};

use crate::measured::{self, AcpiSource};
use crate::output::{Failure, Report, accepted};
use crate::{input, key_file};

#[derive(clap::Args)]
pub(super) struct CreateArgs {
    /// The image's directory, as `image build` wrote it, with `image.json`.
    #[arg(long, value_name = "DIR")]
    image: PathBuf,
    /// The source that the firmware was built from: it decides which events are measured.
    #[arg(long, value_name = "NAME", default_value = "edk2-stable202502")]
    firmware_source: FirmwareGeneration,
    /// Shape of a machine (TOML) whose registers the release lists; may be repeated.
    #[arg(long = "shape", value_name = "FILE", required = true)]
    shapes: Vec<PathBuf>,
    /// ACPI references as `measure acpi --json` prints them; may be repeated. All of them enter the release, which can be
    /// verified on every machine that one of them is for.
    #[arg(long, value_name = "FILE")]
    acpi: Vec<PathBuf>,
    /// A QEMU on this machine to read the ACPI tables of a shape from that has no reference. Without it, what the project
    /// publishes is taken.
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,
    /// Further memory sizes that QEMU before 10.0 will start: such a QEMU writes into the kernel. The shapes' own sizes
    /// are measured anyway.
    #[arg(long = "memory-mib", value_name = "MIB")]
    memory_mib: Vec<u32>,
    /// What guests of this image are for.
    #[arg(long, value_name = "ROLE", default_value = "inference", value_parser = parse_name::<Role>)]
    role: Role,
    /// Commit of the source, 40 or 64 hexadecimal digits.
    #[arg(long, value_name = "COMMIT")]
    source_commit: String,
    /// Command that makes the same image from that commit.
    #[arg(long, value_name = "COMMAND")]
    rebuild: String,
    /// First second of validity, unix seconds; the image's SOURCE_DATE_EPOCH when it is left out.
    #[arg(long, value_name = "UNIX")]
    not_before: Option<u64>,
    /// Days of validity from the first second.
    #[arg(long, value_name = "DAYS", default_value_t = 730)]
    days: u64,
    /// Digest of the release that this one follows.
    #[arg(long, value_name = "SHA256")]
    predecessor: Option<Sha256Digest>,
    /// Accepted TCB status; may be repeated.
    #[arg(long = "tcb-status", value_name = "STATUS", default_value = "UpToDate", value_parser = parse_name::<TcbStatus>)]
    tcb_statuses: Vec<TcbStatus>,
    /// Where the statement goes.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// The part of `image.json` that a statement needs. The files themselves are hashed again.
#[derive(Debug, Deserialize)]
struct ImageManifest {
    schema: String,
    profile: String,
    command_line: String,
    source_date_epoch: u64,
    files: Vec<ManifestFile>,
    #[serde(default)]
    inputs: Vec<ManifestInput>,
}

#[derive(Debug, Deserialize)]
struct ManifestFile {
    name: String,
    size: u64,
    sha256: Sha256Digest,
    sha384: Sha384Digest,
}

#[derive(Debug, Deserialize)]
struct ManifestInput {
    name: String,
    lock_sha256: Sha256Digest,
}

/// An image's description, and the bytes of what is measured.
struct Image {
    manifest: ImageManifest,
    firmware: Vec<u8>,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
}

pub(super) fn run(args: &CreateArgs) -> Result<Report, Failure> {
    let image = read_image(&args.image)?;
    let manifest = &image.manifest;
    let not_before = args.not_before.unwrap_or(manifest.source_date_epoch);
    let seconds = args.days.checked_mul(86_400).and_then(|seconds| not_before.checked_add(seconds));
    let not_after = seconds.context("--days is too large")?;
    let mut tcb_statuses = args.tcb_statuses.clone();
    tcb_statuses.sort_unstable();
    let shapes = args.shapes.iter().map(|path| input::shape(path)).collect::<Result<Vec<_>, _>>()?;
    let memory: Vec<u32> =
        shapes.iter().map(|shape| shape.facts().memory_mib).chain(args.memory_mib.iter().copied()).collect();
    let files = [image.firmware.as_slice(), &image.kernel, &image.initrd];
    let mut predicate = ReferenceValues {
        schema_version: 1,
        profile: manifest.profile.clone(),
        role: args.role,
        hardware: hardware(manifest)?,
        components: Components {
            firmware: component(manifest, FIRMWARE)?,
            kernel: component(manifest, KERNEL)?,
            initrd: component(manifest, INITRD)?,
        },
        image: measured::image(files, &manifest.command_line, &memory, args.firmware_source)?,
        acpi: Vec::new(),
        source_date_epoch: manifest.source_date_epoch,
        registers: Vec::new(),
        locks: sorted(manifest.inputs.iter().map(|input| (&input.name, input.lock_sha256))),
        source_commit: args.source_commit.clone(),
        rebuild_command: args.rebuild.clone(),
        validity: Validity { not_before, not_after },
        predecessor: args.predecessor,
        tcb_statuses,
    };
    compute(&mut predicate, shapes, args)?;
    let subject = sorted(manifest.files.iter().map(|file| (&file.name, file.sha256)));
    let bytes =
        Statement::new(subject, predicate).and_then(|s| s.to_canonical()).context("the statement is refused")?;
    key_file::write(&args.out, &bytes)?;
    let digest = Sha256Digest::of(&bytes);
    let text = format!("release {digest}\nwrote {}; sign it with `measure release sign`", args.out.display());
    Ok(accepted(json!({"digest": digest, "statement": args.out}), text))
}

/// Puts ACPI references and the registers of the shapes into the predicate.
fn compute(predicate: &mut ReferenceValues, shapes: Vec<MachineShape>, args: &CreateArgs) -> Result<(), Failure> {
    let given = measured::references(&args.acpi)?;
    let source = AcpiSource { given: &given, qemu: args.qemu.as_deref() };
    let found = shapes.iter().map(|shape| source.reference(shape)).collect::<Result<Vec<_>, _>>()?;
    predicate.set_acpi(given.into_iter().chain(found).collect());
    for shape in shapes {
        let expected = predicate.registers_for(&shape).map_err(|missing| {
            Refusal::new("shape_unmeasurable", "shape", missing.to_string(), "give the machine more memory")
        })?;
        predicate.registers.push(ShapeRegisters::of(shape, &expected));
    }
    Ok(())
}

fn read_image(dir: &Path) -> anyhow::Result<Image> {
    let path = dir.join("image.json");
    let manifest: ImageManifest = serde_json::from_slice(&input::file(&path, 4 << 20)?)
        .with_context(|| format!("{} does not describe an image", path.display()))?;
    ensure!(manifest.schema == IMAGE_SCHEMA, "{} must have the schema {IMAGE_SCHEMA}", path.display());
    let (mut firmware, mut kernel, mut initrd) = (Vec::new(), Vec::new(), Vec::new());
    for file in &manifest.files {
        ensure!(!file.name.contains('/') && !file.name.starts_with('.'), "image.json names {:?}", file.name);
        let bytes = input::file(&dir.join(&file.name), MAX_IMAGE_FILE)?;
        let same = Sha256Digest::of(&bytes) == file.sha256
            && Sha384Digest::of(&bytes) == file.sha384
            && u64::try_from(bytes.len())? == file.size;
        ensure!(same, "{} is not the file that image.json describes: build the image again", file.name);
        match file.name.as_str() {
            FIRMWARE => firmware = bytes,
            KERNEL => kernel = bytes,
            INITRD => initrd = bytes,
            _ => (),
        }
    }
    if let Ok(written) = key_file::read_text(&dir.join("cmdline")) {
        ensure!(written == manifest.command_line, "the file cmdline is not the command line of image.json");
    }
    Ok(Image { manifest, firmware, kernel, initrd })
}

/// The command line says it, and it is measured: a simulated image can't be released as a real one by mistake.
fn hardware(manifest: &ImageManifest) -> anyhow::Result<Hardware> {
    let named: Vec<_> =
        manifest.command_line.split(' ').filter_map(|word| word.strip_prefix("chrysalis.tee=")).collect();
    match named.as_slice() {
        [] | ["tdx"] => Ok(Hardware::Tdx),
        ["simulated"] => Ok(Hardware::Simulated),
        other => bail!("the command line names the hardware {other:?}"),
    }
}

fn component(manifest: &ImageManifest, name: &str) -> anyhow::Result<Component> {
    let file = manifest.files.iter().find(|file| file.name == name);
    let file = file.with_context(|| format!("image.json has no file {name}"))?;
    Ok(Component { sha256: file.sha256, sha384: file.sha384, size: file.size })
}

fn sorted<'a>(files: impl Iterator<Item = (&'a String, Sha256Digest)>) -> Vec<Subject> {
    let mut subjects: Vec<_> =
        files.map(|(name, sha256)| Subject { name: name.clone(), digest: SubjectDigest { sha256 } }).collect();
    subjects.sort_by(|a, b| a.name.cmp(&b.name));
    subjects
}

/// Reads a name as it stands in documents.
fn parse_name<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(Value::from(text)).map_err(|_| "not one of the documented names".to_owned())
}

const IMAGE_SCHEMA: &str = "chrysalis/image/v1";
const FIRMWARE: &str = "firmware.fd";
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd";
const MAX_IMAGE_FILE: u64 = 4 << 30;
