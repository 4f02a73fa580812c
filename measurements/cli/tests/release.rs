// SPDX-License-Identifier: Apache-2.0
//! The publisher's and the auditor's way through the command line, and sigstore's conformance cases.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use types::{Sha256Digest, Sha384Digest};

/// Runs `measure … --json` in a directory and gives exit code and document.
fn measure(dir: &Path, line: &str) -> (i32, Value) {
    let words = line.split(' ').chain(["--json"]);
    let output = Command::new(env!("CARGO_BIN_EXE_measure")).args(words).current_dir(dir).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let document = serde_json::from_str(stdout.lines().last().unwrap_or("null")).unwrap_or(Value::Null);
    let code = output.status.code().unwrap();
    assert!(code != 1, "{line}: {}", String::from_utf8_lossy(&output.stderr));
    (code, document)
}

fn accepted(dir: &Path, line: &str) -> Value {
    let (code, document) = measure(dir, line);
    assert_eq!(code, 0, "{line}: {document}");
    document
}

fn refused(dir: &Path, line: &str) -> String {
    let (code, document) = measure(dir, line);
    assert_eq!(code, 2, "{line}: {document}");
    let reason = &document["reasons"][0];
    assert!(["field", "detail", "fix"].iter().all(|name| !reason[name].as_str().unwrap().is_empty()), "{reason}");
    reason["code"].as_str().unwrap().to_owned()
}

fn fails(dir: &Path, line: &str, code: i32, says: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_measure")).args(line.split(' ')).current_dir(dir).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
    assert!(stderr.contains(says), "{line}: {stderr}");
}

/// An image's directory as the builder leaves it, and ACPI references for two shapes.
fn prepare(dir: &Path) {
    fs::create_dir(dir.join("image")).unwrap();
    let line = b"quiet chrysalis.tee=simulated".to_vec();
    let files = [
        ("firmware.fd", sample_release::files::firmware()),
        ("vmlinuz", sample_release::files::kernel()),
        ("initrd", sample_release::files::initrd()),
        ("cmdline", line),
    ]
    .map(|(name, bytes)| {
        fs::write(dir.join("image").join(name), &bytes).unwrap();
        json!({"name": name, "size": bytes.len(), "sha256": Sha256Digest::of(&bytes),
               "sha384": Sha384Digest::of(&bytes), "origin": "test"})
    });
    let manifest = json!({"schema": "chrysalis/image/v1", "profile": "sim", "command_line": "quiet chrysalis.tee=simulated",
        "source_date_epoch": 1_700_000_000, "files": files, "inputs": [], "initrd": [], "toolchain": {}});
    fs::write(dir.join("image/image.json"), manifest.to_string()).unwrap();
    let mut references = Vec::new();
    for (name, vcpus, qemu) in [("small.toml", 1, "10.1"), ("large.toml", 8, "9.2")] {
        let text = format!(
            "vcpus = {vcpus}\nmemory_mib = 1024\nphysical_bits = 46\nqemu = \"{qemu}\"\ndevices = [\"vsock\"]\n"
        );
        references.push(sample_release::acpi(&toml::from_str(&text).unwrap()));
        fs::write(dir.join(name), text).unwrap();
    }
    let large = references.pop().unwrap();
    fs::write(dir.join("small.json"), json!(references[0]).to_string()).unwrap();
    fs::write(dir.join("large.json"), json!([large]).to_string()).unwrap();
    accepted(dir, "release keygen --kind release --out r.key");
    accepted(dir, "release keygen --kind log --name example.invalid/releases --out l.key");
    for number in 1..=3 {
        accepted(dir, &format!("release keygen --kind witness --name witness-{number} --out w{number}.key"));
    }
    accepted(
        dir,
        "release trust --key r.key.pub --log-key l.key.pub --witness w1.key.pub --witness w2.key.pub \
         --witness w3.key.pub --threshold 2 --out trust.json --trusted-root-out root.json",
    );
}

const CREATE: &str = "release create --image image --acpi small.json --acpi large.json --shape small.toml \
    --shape large.toml --memory-mib 4096 --source-commit 0123456789abcdef0123456789abcdef01234567 --rebuild make --days 36500 --out s.json";
const PUBLISH: &str =
    "release publish --bundle b.json --key r.key.pub --log log --create --log-key l.key --witness-key w1.key";

#[test]
fn a_release_goes_from_image_to_verified_bundle() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    prepare(dir);
    let created = accepted(dir, CREATE);
    accepted(dir, "release sign --statement s.json --key r.key --out b.json");
    assert_eq!(refused(dir, "bundle verify --bundle b.json --trust trust.json"), "release_not_logged");
    let published = accepted(dir, &format!("{PUBLISH} --out one-witness.json"));
    assert_eq!((&published["digest"], &published["log_index"]), (&created["digest"], &json!(0)));
    assert_eq!(refused(dir, "bundle verify --bundle one-witness.json --trust trust.json"), "release_witnesses_missing");
    // The same bundle again: no second entry, one more cosignature.
    let again = accepted(dir, &format!("{PUBLISH} --witness-key w2.key --out p.json"));
    assert_eq!((&again["log_index"], &again["tree_size"]), (&json!(0), &json!(1)));

    let verified = accepted(dir, "bundle verify --bundle p.json --trust trust.json --artifact image/initrd");
    assert_eq!((&verified["digest"], &verified["hardware"]), (&created["digest"], &json!("simulated")));
    let other = "bundle verify --bundle p.json --trust trust.json --artifact image/image.json";
    assert_eq!(refused(dir, other), "bundle_artifact_mismatch");
    let early = "bundle verify --bundle p.json --trust trust.json --at 2020-01-01T00:00:00Z";
    assert_eq!(refused(dir, early), "release_not_valid_now");
    let statement: release::Statement = release::Statement::parse(&fs::read(dir.join("s.json")).unwrap()).unwrap();
    // QEMU before 10.1 with patches for TDX adds pages in one of two orders.
    assert_eq!(statement.predicate.registers.iter().map(|r| r.mr_td.len()).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(statement.predicate.registers[1].shape.facts().vcpus, 8);
    assert_eq!(statement.predicate.image.kernel.patched.len(), 2, "for 1024 and 4096 MiB");

    // Other verifiers' formats: only what verifies is exported where trust is given.
    for (format, out) in [("rvps", "p.rvps"), ("corim", "p.corim")] {
        let export = format!("release export --format {format} --out {out} --release");
        let exported = accepted(dir, &format!("{export} p.json --trust trust.json"));
        assert_eq!((&exported["digest"], &exported["verified"]), (&created["digest"], &json!(true)));
        let bytes = fs::read(dir.join(out)).unwrap();
        assert_eq!(accepted(dir, &format!("{export} s.json"))["verified"], json!(false));
        assert_eq!(fs::read(dir.join(out)).unwrap(), bytes, "the same release");
        assert_eq!(refused(dir, &format!("{export} b.json --trust trust.json")), "release_not_logged");
    }
    let signed = "release export --format corim --release p.json --trust trust.json --key r.key --out p.corim";
    assert_eq!(accepted(dir, signed)["signed"], json!(true));
    fails(dir, &signed.replace("corim", "rvps"), 1, "carries no signature");

    // A verifier that is not ours takes the same bundle, and our witness check stands beside it.
    let stock = "bundle verify --bundle p.json --trusted-root root.json --key r.key.pub";
    accepted(dir, &format!("{stock} --artifact image/vmlinuz"));
    accepted(dir, &format!("{stock} --artifact image/vmlinuz --witness w1.key.pub --witness w2.key.pub --threshold 2"));
    let third = format!("{stock} --artifact image/vmlinuz --witness w1.key.pub --witness w3.key.pub --threshold 2");
    assert_eq!(refused(dir, &third), "bundle_witnesses_missing");
    assert_eq!(refused(dir, &format!("{stock} --artifact image/image.json")), "bundle_artifact_mismatch");
}

#[test]
fn a_log_is_verified_against_what_was_known_of_it() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    prepare(dir);
    for (number, profile) in ["sim", "debug", "cpu"].iter().enumerate() {
        let mut manifest: Value = serde_json::from_slice(&fs::read(dir.join("image/image.json")).unwrap()).unwrap();
        manifest["profile"] = json!(profile);
        fs::write(dir.join("image/image.json"), manifest.to_string()).unwrap();
        accepted(dir, CREATE);
        accepted(dir, "release sign --statement s.json --key r.key --out b.json");
        let published = accepted(dir, &format!("{PUBLISH} --out p.json"));
        assert_eq!(published["log_index"], json!(number));
        fs::copy(dir.join("log/checkpoint"), dir.join(format!("checkpoint-{}", number + 1))).unwrap();
    }
    let verify = "log verify --dir log --key l.key.pub";
    assert_eq!(accepted(dir, &format!("{verify} --known checkpoint-2"))["size"], json!(3));
    accepted(dir, &format!("{verify} --witness w1.key.pub --threshold 1"));
    let missing = format!("{verify} --witness w1.key.pub --witness w2.key.pub --threshold 2");
    assert_eq!(refused(dir, &missing), "log_witnesses_missing");

    // Cut back to what it was: whole in itself, smaller than known.
    let checkpoint = fs::read(dir.join("log/checkpoint")).unwrap();
    fs::copy(dir.join("checkpoint-2"), dir.join("log/checkpoint")).unwrap();
    accepted(dir, verify);
    assert_eq!(refused(dir, &format!("{verify} --known checkpoint-3")), "log_shrunk");
    // The witness remembers the third entry: another one in its place gets no cosignature.
    let mut manifest: Value = serde_json::from_slice(&fs::read(dir.join("image/image.json")).unwrap()).unwrap();
    manifest["profile"] = json!("fork");
    fs::write(dir.join("image/image.json"), manifest.to_string()).unwrap();
    accepted(dir, CREATE);
    accepted(dir, "release sign --statement s.json --key r.key --out b.json");
    fails(dir, &format!("{PUBLISH} --out p.json"), 1, "the witness witness-1 refused");
    assert_eq!(refused(dir, &format!("{verify} --known checkpoint-3")), "log_forked");

    fs::write(dir.join("log/checkpoint"), checkpoint).unwrap();
    assert_eq!(refused(dir, verify), "log_root_mismatch", "tiles of the fork under the old checkpoint");
    accepted(dir, "release keygen --kind log --name example.invalid/releases --out other.key");
    assert_eq!(refused(dir, "log verify --dir log --key other.key.pub"), "log_checkpoint");
}

#[test]
fn mistakes_are_named() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    prepare(dir);
    let fails = |line: &str, code: i32, says: &str| fails(dir, line, code, says);
    fails("release keygen --kind release --out r.key", 1, "never replaced");
    fails("release keygen --kind log --out x.key", 64, "--name");
    fails("bundle verify --bundle p.json", 64, "--trust");
    fails("bundle verify --bundle p.json --trusted-root root.json --identity i", 64, "--issuer");
    fails(&CREATE.replace(" --shape small.toml --shape large.toml", ""), 64, "--shape");
    let no_reference = CREATE.replace(" --acpi large.json", "");
    assert_eq!(refused(dir, &no_reference), "acpi_reference_missing");
    fs::write(dir.join("digests.json"), r#"{"loader":"","rsdp":"","tables":""}"#).unwrap();
    fails(&CREATE.replace("large.json", "digests.json"), 1, "digests.json has no ACPI references");
    fs::write(dir.join("vga.toml"), "vcpus = 1").unwrap();
    assert_eq!(refused(dir, &CREATE.replace("large.toml", "vga.toml")), "shape_malformed");
    fails(&PUBLISH.replace("b.json", "none.json"), 64, "--out");
    fails(&format!("{} --out p.json", PUBLISH.replace("b.json", "none.json")), 1, "none.json");
    fs::write(dir.join("image/initrd"), b"another").unwrap();
    fails(CREATE, 1, "initrd is not the file");
    fs::write(dir.join("image/initrd"), b"initrd").unwrap();
    fails(&CREATE.replace("make", "a\tb"), 1, "rebuild_command");
    accepted(dir, CREATE);
    fs::set_permissions(dir.join("r.key"), fs::Permissions::from_mode(0o640)).unwrap();
    fails("release sign --statement s.json --key r.key --out b.json", 1, "chmod 600");
}
