// SPDX-License-Identifier: Apache-2.0
//! `model`: make, check and look into encrypted model packs.

mod meter;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use meter::Meter;
use model::disk::Disk;
use model::{Created, Directory, Key, KeyName, Labels, Limits, PackError, Source};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use types::ModelId;

/// Encrypted model packs: make them, check them, look into them.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Print one JSON document as the last line of standard output.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Encrypt a file or a directory into a new pack.
    Pack(Pack),
    /// Check a pack: its ciphertext, and with the key everything in it.
    Verify(Verify),
    /// Show a pack's public part, and with the key its files.
    Inspect(Inspect),
    /// Lay a pack out as a raw disk for a guest. Needs no key.
    Disk(ToDisk),
}

#[derive(Debug, Args)]
struct Pack {
    /// The model's name.
    #[arg(long)]
    name: String,
    /// The model's revision.
    #[arg(long)]
    revision: String,
    /// The file or directory to pack. Hidden files are left out.
    #[arg(long = "in")]
    input: PathBuf,
    /// The directory to make.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    key: PackKey,
    /// Name of the key, for the attestation service [default: the model's name].
    #[arg(long)]
    key_id: Option<String>,
    /// Version of the key.
    #[arg(long, default_value_t = 1)]
    key_version: u32,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct PackKey {
    /// A key file: 32 raw bytes or 64 hexadecimal digits.
    #[arg(long)]
    key: Option<PathBuf>,
    /// Make a random key and write it to this new file, readable by you alone.
    #[arg(long)]
    new_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Verify {
    /// A pack's directory or disk.
    pack: PathBuf,
    /// The key; without it only the ciphertext is checked.
    #[arg(long)]
    key: Option<PathBuf>,
    /// The model expected, as name@revision:identity; without it the pack's own word is taken for what it is.
    #[arg(long, requires = "key")]
    model: Option<ModelId>,
}

#[derive(Debug, Args)]
struct Inspect {
    /// A pack's directory or disk.
    pack: PathBuf,
    /// The key; without it only the public part is shown.
    #[arg(long)]
    key: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ToDisk {
    /// A pack's directory.
    pack: PathBuf,
    /// The disk image to write.
    #[arg(long)]
    out: PathBuf,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be done if the message cannot be printed.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(WRONG_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let result = match &arguments.command {
        Command::Pack(command) => pack(command),
        Command::Verify(command) => verify(command),
        Command::Inspect(command) => inspect(command),
        Command::Disk(command) => to_disk(command),
    };
    match result {
        Ok(answer) => print(&answer, arguments.json),
        Err(error) => fail(&error, arguments.json),
    }
}

/// What a command found: lines for people, a document for programs.
struct Answer {
    lines: Vec<String>,
    document: Value,
}

fn print(answer: &Answer, as_json: bool) -> ExitCode {
    let text = if as_json { answer.document.to_string() } else { answer.lines.join("\n") };
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn fail(error: &anyhow::Error, as_json: bool) -> ExitCode {
    let refusal = error.downcast_ref::<PackError>().filter(|error| error.is_refusal()).map(PackError::refusal);
    let Some(refusal) = refusal else {
        eprintln!("model: {error:#}");
        return ExitCode::FAILURE;
    };
    eprintln!("model: refused: {refusal}");
    if as_json {
        let document = json!({ "accepted": false, "reasons": [refusal] });
        // The exit code says it, too.
        let _ = writeln!(std::io::stdout(), "{document}");
    }
    ExitCode::from(REFUSED)
}

fn pack(command: &Pack) -> Result<Answer> {
    let total = model::input_size(&command.input)?.saturating_mul(2);
    let key = match (&command.key.key, &command.key.new_key) {
        (Some(path), _) => read_key(path)?,
        (None, Some(path)) => write_new_key(path)?,
        (None, None) => anyhow::bail!("a key is needed"),
    };
    let key_name =
        KeyName { id: command.key_id.clone().unwrap_or_else(|| command.name.clone()), version: command.key_version };
    let labels = Labels { name: &command.name, revision: &command.revision, key: key_name };
    let meter = Meter::start("packing", total);
    let created =
        model::create(&labels, &command.input, &key, &command.out, Limits::default(), &|bytes| meter.advance(bytes));
    meter.stop();
    if let (Err(_), Some(path)) = (&created, &command.key.new_key) {
        // A key that opens nothing.
        let _ = std::fs::remove_file(path);
    }
    Ok(describe_created(&created?, command))
}

fn describe_created(created: &Created, command: &Pack) -> Answer {
    let Created { model, index, manifest, skipped } = created;
    for path in skipped {
        eprintln!("model: left out the hidden {}", path.display());
    }
    let mut lines = vec![
        model.to_string(),
        format!(
            "pack: {} ({} files, {} bytes)",
            command.out.display(),
            manifest.files.len(),
            manifest.plaintext_length()
        ),
        format!("key: {}, commitment {}", index.key, index.key_commitment),
    ];
    lines.extend(command.key.new_key.as_ref().map(|path| format!("new key: {}", path.display())));
    let document = json!({
        "model": model.to_string(),
        "identity": model.identity(),
        "out": command.out,
        "key": index.key,
        "key_commitment": index.key_commitment,
        "files": manifest.files.len(),
        "bytes": manifest.plaintext_length(),
        "objects": index.objects.len(),
        "ciphertext_bytes": index.ciphertext_length(),
        "skipped": skipped,
    });
    Answer { lines, document }
}

fn verify(command: &Verify) -> Result<Answer> {
    let source = open(&command.pack)?;
    let meter = Meter::start("verifying", source.index().ciphertext_length());
    let progress = |bytes| meter.advance(bytes);
    let identity = source.index().identity;
    let Some(key) = &command.key else {
        let result = model::verify_ciphertext(&*source, &progress);
        meter.stop();
        result?;
        let lines = vec![format!(
            "ciphertext as published; identity {identity} says the pack itself, content not checked (no key)"
        )];
        return Ok(Answer {
            lines,
            document: json!({ "accepted": true, "scope": "ciphertext", "identity": identity }),
        });
    };
    let key = read_key(key)?;
    let expected = match &command.model {
        Some(model) => model.clone(),
        None => model::open_manifest(&*source, &key, &identity)?.id(identity)?,
    };
    let result = model::verify(&*source, &key, &expected, model::Ciphertexts::Hashed, &progress);
    meter.stop();
    let opened = result?;
    let compared = if command.model.is_some() { "as expected" } else { "by the pack's own word" };
    let lines = vec![
        opened.model().to_string(),
        format!("{} files, {} bytes verified, identity {compared}", opened.files().len(), opened.bytes()),
    ];
    let document = json!({
        "accepted": true,
        "scope": "content",
        "model": opened.model().to_string(),
        "identity": opened.model().identity(),
        "identity_expected": command.model.is_some(),
        "files": opened.files(),
        "bytes": opened.bytes(),
    });
    Ok(Answer { lines, document })
}

fn inspect(command: &Inspect) -> Result<Answer> {
    let source = open(&command.pack)?;
    let index = source.index();
    let mut lines = vec![
        format!("identity: {}", index.identity),
        format!("key: {}, commitment {}", index.key, index.key_commitment),
        format!(
            "objects: {}, {} bytes of ciphertext in segments of {}",
            index.objects.len(),
            index.ciphertext_length(),
            index.segment_size
        ),
    ];
    let manifest = match &command.key {
        Some(key) => Some(model::open_manifest(&*source, &read_key(key)?, &index.identity)?),
        None => None,
    };
    if let Some(manifest) = &manifest {
        lines.insert(0, manifest.id(index.identity)?.to_string());
        lines.extend(manifest.files.iter().map(|file| format!("{}  {:>14}  {}", file.blake3, file.size, file.path)));
    }
    Ok(Answer { lines, document: json!({ "index": index, "manifest": manifest }) })
}

fn to_disk(command: &ToDisk) -> Result<Answer> {
    let source = open(&command.pack)?;
    let meter = Meter::start("writing the disk", source.index().ciphertext_length());
    let result = model::disk::compose(&*source, &command.out, &|bytes| meter.advance(bytes));
    meter.stop();
    result?;
    let bytes = std::fs::metadata(&command.out)?.len();
    let identity = source.index().identity;
    let lines = vec![format!("disk: {} ({bytes} bytes, identity {identity})", command.out.display())];
    Ok(Answer { lines, document: json!({ "disk": command.out, "bytes": bytes, "identity": identity }) })
}

fn open(path: &Path) -> Result<Box<dyn Source>> {
    let metadata = std::fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?;
    if metadata.is_dir() {
        return Ok(Box::new(Directory::open(path)?));
    }
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Box::new(Disk::open(file)?))
}

fn read_key(path: &Path) -> Result<Key> {
    let reading = || format!("cannot read the key {}", path.display());
    let file = File::open(path).with_context(reading)?;
    if file.metadata().with_context(reading)?.mode() & OTHERS_MAY != 0 {
        eprintln!("model: others may read the key {}: chmod 600 it", path.display());
    }
    let mut content = zeroize::Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE));
    let cap = u64::try_from(MAX_KEY_FILE).unwrap_or(u64::MAX);
    file.take(cap).read_to_end(&mut content).with_context(reading)?;
    Key::from_file_content(&content).with_context(reading)
}

fn write_new_key(path: &Path) -> Result<Key> {
    let writing = || format!("cannot make the key {}", path.display());
    let key = Key::random().with_context(writing)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(writing)?;
    let text = key.to_hex();
    file.write_all(text.as_bytes())
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all())
        .with_context(writing)?;
    Ok(key)
}

const EXAMPLES: &str = "Examples:
  model pack --name SmolLM2-135M --revision q4_1 --in model.gguf --new-key model.key --out smollm2.pack
  model verify smollm2.pack --key model.key --model SmolLM2-135M@q4_1:IDENTITY
  model inspect smollm2.pack
  model disk smollm2.pack --out smollm2.disk

Exit codes: 0 accepted, 2 refused, 64 wrong usage, 1 anything else.";
const WRONG_USAGE: u8 = 64;
const REFUSED: u8 = 2;
/// One more than the longest form, so that a longer file is seen as one.
const MAX_KEY_FILE: usize = 66;
const OTHERS_MAY: u32 = 0o077;
