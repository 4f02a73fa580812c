// SPDX-License-Identifier: Apache-2.0
//! The command line from outside: documents, refusals, exit status.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

struct Outcome {
    status: i32,
    json: Value,
    stderr: String,
}

fn measure(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_measure"));
    arguments.iter().for_each(|argument| {
        command.arg(argument);
    });
    let output = command.output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    Outcome {
        status: output.status.code().unwrap(),
        json: stdout.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn code(outcome: &Outcome) -> &str {
    outcome.json["reasons"][0]["code"].as_str().unwrap_or("none")
}

fn vectors() -> Option<PathBuf> {
    let dir = std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from);
    dir.is_dir().then_some(dir)
}

#[test]
fn wrong_usage_is_64_and_missing_files_are_1() {
    assert_eq!(measure(&[]).status, 64);
    assert_eq!(measure(&[&"compute", &"--nonsense"]).status, 64);
    assert_eq!(measure(&[&"--help"]).status, 0);
    let missing = measure(&[&"replay", &"--event-log", &"/nonexistent/log", &"--json"]);
    assert_eq!(missing.status, 1);
    assert!(missing.stderr.contains("/nonexistent/log"), "{}", missing.stderr);
}

#[test]
fn malformed_inputs_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let log = write("log", b"not a log at all, for sure not");
    let outcome = measure(&[&"replay", &"--event-log", &log, &"--json"]);
    assert_eq!((outcome.status, code(&outcome)), (2, "event_log_malformed"));
    let shape = write("shape.toml", b"vcpus = 0\nmemory_mib = 512\nphysical_bits = 40\nqemu = \"7.2\"\ndevices = []\n");
    let outcome = measure(&[&"acpi", &"--shape", &shape, &"--json"]);
    assert_eq!((outcome.status, code(&outcome)), (2, "shape_malformed"));
    let shape = write("good.toml", b"vcpus = 1\nmemory_mib = 512\nphysical_bits = 40\nqemu = \"7.2\"\ndevices = []\n");
    let outcome = measure(&[
        &"compute",
        &"--firmware",
        &log,
        &"--kernel",
        &log,
        &"--initrd",
        &log,
        &"--cmdline",
        &"quiet",
        &"--shape",
        &shape,
        &"--json",
    ]);
    assert_eq!((outcome.status, code(&outcome)), (2, "firmware_unmeasurable"));
    let outcome = measure(&[&"diff", &log, &log, &"--json"]);
    assert_eq!((outcome.status, code(&outcome)), (2, "result_malformed"));
}

#[test]
fn differences_name_their_events() {
    let dir = tempfile::tempdir().unwrap();
    let zero = "00".repeat(48);
    let result = |rtmr_2: &str, digest: &str| {
        format!(
            r#"{{"mr_td":"{zero}","rtmr_0":"{zero}","rtmr_1":"{zero}","rtmr_2":"{}","events":[{{"register":"rtmr_2","name":"command line","digest":"{}","depends_on":"command-line"}}]}}"#,
            rtmr_2.repeat(48),
            digest.repeat(48)
        )
    };
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::write(&a, result("01", "02")).unwrap();
    std::fs::write(&b, result("03", "04")).unwrap();
    let same = measure(&[&"diff", &a, &a, &"--json"]);
    assert_eq!((same.status, &same.json["identical"]), (0, &Value::Bool(true)));
    let other = measure(&[&"diff", &a, &b, &"--json"]);
    assert_eq!((other.status, code(&other)), (2, "register_mismatch"));
    assert_eq!(other.json["reasons"].as_array().unwrap().len(), 1);
    assert_eq!(other.json["differences"][0]["events"][0]["depends_on"], "command-line");
}

#[test]
fn a_log_and_a_quote_are_compared() {
    let Some(dir) = vectors() else {
        println!("SKIPPED: replay against a real quote (no vectors directory)");
        return;
    };
    let log = dir.join("ccel/gtg_gcp_cos113_ccel.bin");
    let good =
        measure(&[&"replay", &"--event-log", &log, &"--quote", &dir.join("tdx/gtg_v4_gcp_cos113.dat"), &"--json"]);
    assert_eq!(good.status, 0, "{}", good.stderr);
    assert!(good.json["registers"].as_array().unwrap()[..3].iter().all(|register| register["matches"] == true));
    // The same quote in hexadecimal.
    let scratch = tempfile::tempdir().unwrap();
    let hex = scratch.path().join("quote.hex");
    std::fs::write(&hex, hex::encode(std::fs::read(dir.join("tdx/gtg_v4_gcp_cos113.dat")).unwrap())).unwrap();
    assert_eq!(measure(&[&"replay", &"--event-log", &log, &"--quote", &hex, &"--json"]).status, 0);
    // Somebody else's quote: each of the three registers differs.
    let other = measure(&[&"replay", &"--event-log", &log, &"--quote", &dir.join("tdx/dq_v4_b0c06f.dat"), &"--json"]);
    assert_eq!((other.status, code(&other)), (2, "register_mismatch"));
    assert_eq!(other.json["reasons"].as_array().unwrap().len(), 3);
}

#[test]
fn compute_prints_four_registers_and_follows_its_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let firmware = write("firmware.fd", &sample_release::files::firmware());
    let kernel = write("vmlinuz", &sample_release::files::kernel());
    let initrd = write("initrd", &sample_release::files::initrd());
    let shape = |qemu: &str| {
        write(
            &format!("{qemu}.toml"),
            format!("vcpus = 2\nmemory_mib = 1024\nphysical_bits = 40\nqemu = \"{qemu}\"\ndevices = []\n").as_bytes(),
        )
    };
    let digest = "11".repeat(48);
    let reference = |qemu: &str| {
        serde_json::json!({
            "qemu": qemu, "vcpus": 2, "physical_bits": 40, "devices": [], "memory": { "from_mib": 512, "to_mib": 1024 },
            "loader": digest, "rsdp": digest, "tables": digest,
        })
    };
    let acpi = write("acpi.json", serde_json::json!([reference("7.2"), reference("10.1")]).to_string().as_bytes());
    let compute = |cmdline: &str, shape: &Path| {
        let outcome = measure(&[
            &"compute",
            &"--firmware",
            &firmware,
            &"--kernel",
            &kernel,
            &"--initrd",
            &initrd,
            &"--cmdline",
            &cmdline,
            &"--shape",
            &shape,
            &"--acpi",
            &acpi,
            &"--json",
        ]);
        assert_eq!(outcome.status, 0, "{}", outcome.stderr);
        outcome.json
    };
    let (old, new) = (shape("7.2"), shape("10.1"));
    let base = compute("quiet", &new);
    assert_eq!(base.as_object().unwrap().len(), 4);
    let word_more = compute("quiet debug", &new);
    let differing: Vec<_> = base
        .as_object()
        .unwrap()
        .iter()
        .filter(|(k, v)| word_more[k.as_str()] != **v)
        .map(|(k, _)| k.as_str())
        .collect();
    assert_eq!(differing, ["rtmr_2"]);
    let patched = compute("quiet", &old);
    let differing: Vec<_> =
        base.as_object().unwrap().iter().filter(|(k, v)| patched[k.as_str()] != **v).map(|(k, _)| k.as_str()).collect();
    assert_eq!(differing, ["rtmr_1"], "only the kernel's header depends on QEMU here");

    let outcome = measure(&[
        &"compute",
        &"--firmware",
        &firmware,
        &"--kernel",
        &kernel,
        &"--initrd",
        &initrd,
        &"--cmdline",
        &"quiet",
        &"--shape",
        &shape("10.2"),
        &"--acpi",
        &acpi,
        &"--json",
    ]);
    assert_eq!((outcome.status, code(&outcome)), (2, "acpi_reference_missing"));
}
