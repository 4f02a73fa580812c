// SPDX-License-Identifier: Apache-2.0
//! Five kinds of tampering, each refused with its reason and nothing released.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::process;

use super::guest::{Ending, Guest, Launch};
use super::programs::Programs;
use super::report::Report;
use super::scene::Scene;

/// Runs all five.
pub(crate) fn run(programs: &Programs, scene: &Scene, report: &mut Report) -> anyhow::Result<()> {
    report.title("refusals (hardware simulated)");
    command_line(programs, scene, report)?;
    initrd(programs, scene, report)?;
    configuration(programs, scene, report)?;
    model_pack(programs, scene, report)?;
    replay(programs, scene, report)
}

/// One word more on the kernel command line: another RTMR2, so the service refuses.
fn command_line(programs: &Programs, scene: &Scene, report: &mut Report) -> anyhow::Result<()> {
    let image = tampered_image(scene, "image-cmdline")?;
    let line = std::fs::read_to_string(scene.image.join("cmdline")).context("cmdline")?;
    std::fs::write(image.join("cmdline"), format!("{line} tampered")).context("cmdline")?;
    refused_by_service(programs, scene, report, "a word added to the kernel command line", &image, "t1")
}

/// One byte of the initrd, in the date of its first entry, which the kernel ignores: only the measurement notices.
fn initrd(programs: &Programs, scene: &Scene, report: &mut Report) -> anyhow::Result<()> {
    let image = tampered_image(scene, "image-initrd")?;
    let path = image.join("initrd");
    // The kernel takes an archive that is not compressed as well.
    let published = std::fs::File::open(scene.image.join("initrd")).context("initrd")?;
    let mut unpacked = std::fs::File::create(&path).context("initrd")?;
    zstd::stream::copy_decode(published, &mut unpacked).context("initrd")?;
    flip(&path, NEWC_DATE_LAST_DIGIT, 0x01)?;
    refused_by_service(programs, scene, report, "a byte changed in the initrd", &image, "t2")
}

/// One field of the configuration after the trust domain was created for another.
fn configuration(programs: &Programs, scene: &Scene, report: &mut Report) -> anyhow::Result<()> {
    let tamper = |directory: &Path| {
        let path = directory.join("config.disk");
        let bytes = std::fs::read(&path).context("config.disk")?;
        let field = br#""context_tokens":512"#;
        let at = bytes.windows(field.len()).position(|w| w == field).context("config.disk has no context_tokens")?;
        flip(&path, (at + field.len() - 1) as u64, b'2' ^ b'3')
    };
    halted_by_guest(
        programs,
        scene,
        report,
        "a field changed in the guest's configuration",
        "t3",
        tamper,
        CONFIG_DIGEST,
    )
}

/// One byte of the encrypted model.
fn model_pack(programs: &Programs, scene: &Scene, report: &mut Report) -> anyhow::Result<()> {
    let tamper = |directory: &Path| {
        let path = directory.join("model.disk");
        let middle = std::fs::metadata(&path).context("model.disk")?.len() / 2;
        flip(&path, middle, 0x01)
    };
    halted_by_guest(programs, scene, report, "a byte flipped in the encrypted model", "t4", tamper, MODEL_DIGEST)
}

/// A challenge that was redeemed before.
fn replay(programs: &Programs, scene: &Scene, report: &mut Report) -> anyhow::Result<()> {
    let name = "a challenge replayed";
    let start = Instant::now();
    let mut probe = scene.replay_probe(programs)?;
    let outcome = process::json("replay", &mut probe)?;
    let accepted = outcome.pointer("/first/released").and_then(Value::as_bool) == Some(true);
    anyhow::ensure!(accepted, "replay: the honest redemption before the replay was refused: {outcome}");
    let reasons = outcome.pointer("/second/reasons").and_then(Value::as_array).cloned().unwrap_or_default();
    let code = reasons.first().and_then(|r| r.get("code")).and_then(Value::as_str).unwrap_or_default().to_owned();
    report.part("replayed challenge", start.elapsed().as_secs_f64());
    record(report, name, &code, "challenge_replayed", "attestation service", &json!(reasons))
}

/// Boots a tampered image; the guest's key request must be refused for its measurements.
fn refused_by_service(
    programs: &Programs,
    scene: &Scene,
    report: &mut Report,
    name: &str,
    image: &Path,
    run: &str,
) -> anyhow::Result<()> {
    let before = scene.audit_entries(programs)?;
    let mut guest = Guest::boot(programs, scene, Launch::demo(image), run, |_| Ok(()))?;
    let ending = guest.follow(None)?;
    report.part(&format!("boot, refused: {name}"), guest.seconds());
    guest.stop()?;
    let Ending::Halted { phase, code } = ending else {
        anyhow::bail!("{name}: the guest SERVES, although it was tampered with");
    };
    anyhow::ensure!(phase == "keys" && code == KEY_REFUSED, "{name}: halted in phase {phase} with code {code}");
    let new = entries_since(programs, scene, before.len())?;
    anyhow::ensure!(!new.iter().any(is_authorised), "{name}: the audit log says that a key was released");
    let reasons = new.iter().find_map(|entry| entry.pointer("/entry/codes").cloned());
    let reasons = reasons.with_context(|| format!("{name}: the audit log has no refusal"))?;
    let code = first_code(&reasons).with_context(|| format!("{name}: a refusal without a code"))?;
    record(report, name, &code, "register_mismatch", "attestation service", &reasons)
}

/// Boots with a tampered disk; the guest itself must halt with the numeric code.
fn halted_by_guest(
    programs: &Programs,
    scene: &Scene,
    report: &mut Report,
    name: &str,
    run: &str,
    tamper: impl FnOnce(&Path) -> anyhow::Result<()>,
    expected: (&str, u64, &str),
) -> anyhow::Result<()> {
    let mut guest = Guest::boot(programs, scene, Launch::demo(&scene.image), run, tamper)?;
    let ending = guest.follow(None)?;
    report.part(&format!("boot, refused: {name}"), guest.seconds());
    guest.stop()?;
    let Ending::Halted { phase, code } = ending else {
        anyhow::bail!("{name}: the guest SERVES, although it was tampered with");
    };
    let (expected_phase, number, word) = expected;
    anyhow::ensure!(phase == expected_phase, "{name}: halted in phase {phase} with code {code}");
    let found = if code == number { word.to_owned() } else { format!("code {code}") };
    record(report, name, &found, word, "guest", &json!([]))
}

fn record(
    report: &mut Report,
    name: &str,
    code: &str,
    expected: &str,
    by: &str,
    reasons: &Value,
) -> anyhow::Result<()> {
    anyhow::ensure!(code == expected, "{name}: refused with {code}, expected {expected}");
    report.line(&format!("✓ {name}: {code} (by the {by})"));
    report.refusals.push(json!({ "name": name, "refused": true, "code": code, "by": by, "reasons": reasons }));
    Ok(())
}

/// The audit entries after the first `known`. A refusal is entered just after it was answered: it is waited for.
fn entries_since(programs: &Programs, scene: &Scene, known: usize) -> anyhow::Result<Vec<Value>> {
    let start = Instant::now();
    loop {
        let new: Vec<_> = scene.audit_entries(programs)?.into_iter().skip(known).collect();
        if !new.is_empty() || start.elapsed() > AUDIT_PATIENCE {
            return Ok(new);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn is_authorised(entry: &Value) -> bool {
    entry.pointer("/entry/decision").and_then(Value::as_str) == Some("authorised")
}

fn first_code(reasons: &Value) -> Option<String> {
    let first = reasons.as_array()?.first()?;
    first.as_str().or_else(|| first.get("code").and_then(Value::as_str)).map(str::to_owned)
}

/// A directory with links to the image's files; what is tampered with replaces its link.
fn tampered_image(scene: &Scene, name: &str) -> anyhow::Result<PathBuf> {
    let directory = scene.directory().join(name);
    std::fs::create_dir(&directory).context("tampered image")?;
    for file in ["firmware.fd", "vmlinuz"] {
        std::os::unix::fs::symlink(scene.image.join(file), directory.join(file)).context("tampered image")?;
    }
    for file in ["initrd", "cmdline"] {
        if !name.ends_with(file) {
            std::os::unix::fs::symlink(scene.image.join(file), directory.join(file)).context("tampered image")?;
        }
    }
    Ok(directory)
}

fn flip(path: &Path, at: u64, mask: u8) -> anyhow::Result<()> {
    let mut file =
        std::fs::OpenOptions::new().read(true).write(true).open(path).with_context(|| path.display().to_string())?;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&byte.map(|b| b ^ mask)).with_context(|| path.display().to_string())
}

/// Last hexadecimal digit of `c_mtime` in the first newc header.
const NEWC_DATE_LAST_DIGIT: u64 = 53;
/// Numeric codes of `docs/status-codes.md`.
const KEY_REFUSED: u64 = 90;
const CONFIG_DIGEST: (&str, u64, &str) = ("configuration", 43, "config_digest_mismatch");
const MODEL_DIGEST: (&str, u64, &str) = ("model", 105, "model_object_digest_mismatch");
/// How long a refusal may take to stand in the audit log.
const AUDIT_PATIENCE: Duration = Duration::from_secs(10);
