// SPDX-License-Identifier: Apache-2.0
//! `measure release create`: from an image's directory and expected registers to a statement.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use release::statement::SubjectDigest;
use release::{
    Component, Components, Hardware, ReferenceValues, ShapeRegisters, Statement, Subject, TcbStatus, Validity,
};
use serde::Deserialize;
use serde_json::{Value, json};
use types::{MachineShape, Role, Sha256Digest, Sha384Digest};

use crate::output::{Report, accepted};
use crate::{input, key_file};

#[derive(clap::Args)]
pub(super) struct CreateArgs {
    /// The image's directory, as `image build` wrote it, with `image.json`.
    #[arg(long, value_name = "DIR")]
    image: PathBuf,
    /// Expected registers, as `measure compute --json` prints them (with --events all allowed values); may be repeated. A document that does not name its
    /// shape needs a --shape at the same place.
    #[arg(long = "registers", value_name = "FILE", required = true)]
    registers: Vec<PathBuf>,
    /// Shape of the machine that the registers at the same place are for; may be repeated.
    #[arg(long = "shape", value_name = "FILE")]
    shapes: Vec<PathBuf>,
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

pub(super) fn run(args: &CreateArgs) -> Result<Report> {
    let manifest = read_manifest(&args.image)?;
    let not_before = args.not_before.unwrap_or(manifest.source_date_epoch);
    let seconds = args.days.checked_mul(86_400).and_then(|seconds| not_before.checked_add(seconds));
    let not_after = seconds.context("--days is too large")?;
    let mut tcb_statuses = args.tcb_statuses.clone();
    tcb_statuses.sort_unstable();
    let predicate = ReferenceValues {
        schema_version: 1,
        profile: manifest.profile.clone(),
        role: args.role,
        hardware: hardware(&manifest)?,
        components: Components {
            firmware: component(&manifest, FIRMWARE)?,
            kernel: component(&manifest, KERNEL)?,
            initrd: component(&manifest, INITRD)?,
        },
        command_line: manifest.command_line.clone(),
        source_date_epoch: manifest.source_date_epoch,
        registers: read_registers(args)?,
        locks: sorted(manifest.inputs.iter().map(|input| (&input.name, input.lock_sha256))),
        source_commit: args.source_commit.clone(),
        rebuild_command: args.rebuild.clone(),
        validity: Validity { not_before, not_after },
        predecessor: args.predecessor,
        tcb_statuses,
    };
    let subject = sorted(manifest.files.iter().map(|file| (&file.name, file.sha256)));
    let bytes = Statement::new(subject, predicate)?.to_canonical()?;
    key_file::write(&args.out, &bytes)?;
    let digest = Sha256Digest::of(&bytes);
    let text = format!("release {digest}\nwrote {}; sign it with `measure release sign`", args.out.display());
    Ok(accepted(json!({"digest": digest, "statement": args.out}), text))
}

fn read_manifest(dir: &Path) -> Result<ImageManifest> {
    let path = dir.join("image.json");
    let manifest: ImageManifest = serde_json::from_slice(&input::file(&path, 4 << 20)?)
        .with_context(|| format!("{} does not describe an image", path.display()))?;
    ensure!(manifest.schema == IMAGE_SCHEMA, "{} must have the schema {IMAGE_SCHEMA}", path.display());
    for file in &manifest.files {
        ensure!(!file.name.contains('/') && !file.name.starts_with('.'), "image.json names {:?}", file.name);
        let bytes = input::file(&dir.join(&file.name), MAX_IMAGE_FILE)?;
        let same = Sha256Digest::of(&bytes) == file.sha256
            && Sha384Digest::of(&bytes) == file.sha384
            && u64::try_from(bytes.len())? == file.size;
        ensure!(same, "{} is not the file that image.json describes: build the image again", file.name);
    }
    if let Ok(written) = key_file::read_text(&dir.join("cmdline")) {
        ensure!(written == manifest.command_line, "the file cmdline is not the command line of image.json");
    }
    Ok(manifest)
}

/// The command line says it, and it is measured: a simulated image can't be released as a real one by mistake.
fn hardware(manifest: &ImageManifest) -> Result<Hardware> {
    let named: Vec<_> =
        manifest.command_line.split(' ').filter_map(|word| word.strip_prefix("chrysalis.tee=")).collect();
    match named.as_slice() {
        [] | ["tdx"] => Ok(Hardware::Tdx),
        ["simulated"] => Ok(Hardware::Simulated),
        other => bail!("the command line names the hardware {other:?}"),
    }
}

fn component(manifest: &ImageManifest, name: &str) -> Result<Component> {
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

fn read_registers(args: &CreateArgs) -> Result<Vec<ShapeRegisters>> {
    let mut all = Vec::new();
    for (place, path) in args.registers.iter().enumerate() {
        let document: Value = serde_json::from_slice(&input::file(path, 4 << 20)?)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        let shape = args.shapes.get(place).map(|shape| read_shape(shape)).transpose()?;
        let entries = match document {
            Value::Array(entries) => entries,
            one => vec![one],
        };
        for entry in entries {
            all.push(shape_registers(&entry, shape.as_ref()).with_context(|| format!("in {}", path.display()))?);
        }
    }
    Ok(all)
}

fn read_shape(path: &Path) -> Result<MachineShape> {
    toml::from_str(&key_file::read_text(path)?).with_context(|| format!("{} is not a machine's shape", path.display()))
}

fn shape_registers(document: &Value, given: Option<&MachineShape>) -> Result<ShapeRegisters> {
    let named = document.get("shape").map(|shape| serde_json::from_value(shape.clone())).transpose()?;
    let shape = match (named, given) {
        (Some(named), Some(given)) if &named != given => bail!("the document is for another shape than --shape"),
        (Some(shape), _) => shape,
        (None, Some(given)) => given.clone(),
        (None, None) => bail!("the registers name no shape: give a --shape at the same place"),
    };
    let values = |name: &str| {
        let value = document.get("allowed").unwrap_or(document).get(name);
        let value = value.with_context(|| format!("{name} is missing"))?;
        allowed(value).with_context(|| format!("{name} is not one digest or a list of them"))
    };
    Ok(ShapeRegisters {
        shape,
        mr_td: values("mr_td")?,
        rtmr_0: values("rtmr_0")?,
        rtmr_1: values("rtmr_1")?,
        rtmr_2: values("rtmr_2")?,
    })
}

/// A digest, an object with a digest as `value`, or a list of these, without repetition.
fn allowed(value: &Value) -> Result<Vec<Sha384Digest>> {
    let items = match value {
        Value::Array(items) => items.iter().collect(),
        one => vec![one],
    };
    let mut digests: Vec<Sha384Digest> = Vec::new();
    for item in items {
        let digest = serde_json::from_value(item.get("value").unwrap_or(item).clone())?;
        if !digests.contains(&digest) {
            digests.push(digest);
        }
    }
    Ok(digests)
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
