// SPDX-License-Identifier: Apache-2.0
//! `measure explain`, `replay` and `diff` from outside: documents, tables, exit status.
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

use attested_channel::{BootFacts, Moment, expected_events};
use release::Hardware;
use serde_json::Value;
use types::{
    Base64, Device, Document as _, Evidence, Freshness, GpuEvidence, GuestConfig, Hex32, MachineShape, ModelId,
    QemuVersion, Registers, Role, RuntimeEvent, Sha256Digest, Sha384Digest, TimeState,
    config::{EngineSettings, Fixed, Free, Network, Policy, ServiceLink},
    shape::ShapeFacts,
};

struct Outcome {
    status: i32,
    json: Value,
    text: String,
}

fn measure(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_measure"));
    arguments.iter().for_each(|argument| {
        command.arg(argument);
    });
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let json = text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    Outcome { status: output.status.code().unwrap(), json, text }
}

fn codes(outcome: &Outcome) -> Vec<&str> {
    let reasons = outcome.json["reasons"].as_array().map(Vec::as_slice).unwrap_or_default();
    reasons.iter().map(|reason| reason["code"].as_str().unwrap()).collect()
}

fn shape(vcpus: u16) -> MachineShape {
    let qemu = QemuVersion { major: 10, minor: 1 };
    let devices = vec![Device::ConfigDisk, Device::Vsock];
    MachineShape::new(ShapeFacts { vcpus, memory_mib: 2048, physical_bits: 46, qemu, devices }).unwrap()
}

/// A quote with these registers and an empty signature part: nobody verifies it here.
fn quote(registers: &Registers) -> Vec<u8> {
    let mut body = vec![0; 584];
    for (at, value) in [
        (136, registers.mr_td),
        (184, registers.mr_config_id),
        (328, registers.rtmr_0),
        (376, registers.rtmr_1),
        (424, registers.rtmr_2),
        (472, registers.rtmr_3),
    ] {
        body[at..at + 48].copy_from_slice(value.as_bytes());
    }
    let mut header = vec![4, 0, 2, 0, 0x81, 0, 0, 0, 0, 0, 0, 0];
    header.extend(tdx_spec::quote::QE_VENDOR_INTEL);
    header.extend([0; 20]);
    [&header[..], &body, &4_u32.to_le_bytes(), &[0; 4]].concat()
}

/// A directory with a statement, a shape and the quote of a machine that runs the release.
struct Scene {
    dir: tempfile::TempDir,
    registers: Registers,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let statement = sample_release::statement(Hardware::Simulated, &[shape(2), shape(4)], 1_700_000_000);
        std::fs::write(dir.path().join("statement.json"), statement.to_canonical().unwrap()).unwrap();
        let registers = sample_release::registers(&statement.predicate, &shape(2), Sha384Digest::ZERO);
        let scene = Self { dir, registers };
        scene.write(
            "shape.toml",
            b"vcpus = 2\nmemory_mib = 2048\nphysical_bits = 46\nqemu = \"10.1\"\ndevices = [\"config-disk\", \"vsock\"]\n",
        );
        scene
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn explain(&self, registers: &Registers, more: &[&dyn AsRef<std::ffi::OsStr>]) -> Outcome {
        let quote = self.write("quote", &quote(registers));
        let (release, shape) = (self.dir.path().join("statement.json"), self.dir.path().join("shape.toml"));
        let own: [&dyn AsRef<std::ffi::OsStr>; 7] =
            [&"explain", &"--quote", &quote, &"--release", &release, &"--shape", &shape];
        measure(&[&own[..], more].concat())
    }
}

#[test]
fn a_quote_of_the_release_matches_and_says_what_was_not_verified() {
    let scene = Scene::new();
    let outcome = scene.explain(&scene.registers, &[&"--json"]);
    assert_eq!((outcome.status, codes(&outcome)), (0, vec![]), "{}", outcome.text);
    assert_eq!(outcome.json["schema"], "chrysalis/explanation/v1");
    assert_eq!(outcome.json["matches"], true);
    assert_eq!((&outcome.json["quote"], &outcome.json["reference"]), (&"unverified".into(), &"unverified".into()));
    let table = scene.explain(&scene.registers, &[]);
    assert_eq!(table.status, 0);
    assert!(table.text.contains("quote    NOT verified") && table.text.contains("✓ rtmr_0"), "{}", table.text);
    assert!(table.text.contains("hardware simulated"));
}

#[test]
fn causes_are_reasons_and_lines_of_the_table() {
    let scene = Scene::new();
    let statement = sample_release::statement(Hardware::Simulated, &[shape(4)], 1_700_000_000);
    let mut registers = sample_release::registers(&statement.predicate, &shape(4), Sha384Digest::ZERO);
    let options = format!("{} debug initrd=initrd\0", sample_release::COMMAND_LINE);
    let options: Vec<u8> = options.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let initrd = Sha384Digest::of(&sample_release::files::initrd());
    registers.rtmr_2 = Sha384Digest::ZERO.extend(&Sha384Digest::of(&options)).extend(&initrd);
    let outcome = scene.explain(&registers, &[&"--json"]);
    assert_eq!((outcome.status, codes(&outcome)), (2, vec!["vcpu_count_differs", "command_line_changed"]));
    assert_eq!(outcome.json["nearest"]["changes"][0]["field"], "shape.vcpus");
    let table = scene.explain(&registers, &[]);
    assert_eq!(table.status, 2);
    for text in ["✗ rtmr_0", "✗ rtmr_2", "added: debug", "fix    launch with", "shape.vcpus 2 -> 4", "2 causes"] {
        assert!(table.text.contains(text), "{text} is missing in\n{}", table.text);
    }
    // A command line that is in no list is found when it is named.
    let options: Vec<u8> = "no such line initrd=initrd\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    registers.rtmr_2 = Sha384Digest::ZERO.extend(&Sha384Digest::of(&options)).extend(&initrd);
    let outcome = scene.explain(&registers, &[&"--json"]);
    assert_eq!(codes(&outcome), ["vcpu_count_differs", "cause_unknown"]);
    let outcome = scene.explain(&registers, &[&"--json", &"--cmdline", &"no such line"]);
    assert_eq!(codes(&outcome), ["vcpu_count_differs", "command_line_changed"]);
}

#[test]
fn a_release_is_verified_by_its_trust_policy_or_refused() {
    let scene = Scene::new();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let statement = sample_release::statement(Hardware::Simulated, &[shape(2)], now);
    let (bundle, policy) = sample_release::publish(&statement, now);
    let bundle = scene.write("bundle", &bundle);
    let trust = scene.write("trust", &types::canonical::to_bytes(&policy).unwrap());
    let quote = scene.write("quote", &quote(&scene.registers));
    let explain = |release: &Path, more: &[&dyn AsRef<std::ffi::OsStr>]| {
        let own: [&dyn AsRef<std::ffi::OsStr>; 6] = [&"explain", &"--quote", &quote, &"--json", &"--release", &release];
        measure(&[&own[..], more].concat())
    };
    let verified = explain(&bundle, &[&"--trust", &trust]);
    assert_eq!((verified.status, &verified.json["reference"]), (0, &"verified".into()), "{}", verified.text);
    assert_eq!(verified.json["shape_from"], "nearest");
    assert_eq!(explain(&bundle, &[]).json["reference"], "unverified");
    let statement = scene.dir.path().join("statement.json");
    let refused = explain(&statement, &[&"--trust", &trust]);
    assert_eq!((refused.status, codes(&refused)), (2, vec!["release_bundle_malformed"]));
    let malformed = explain(&scene.write("x", b"{}"), &[]);
    assert_eq!((malformed.status, codes(&malformed)), (2, vec!["release_statement_malformed"]));
}

#[test]
fn evidence_brings_its_own_log_configuration_and_events() {
    let scene = Scene::new();
    let config = GuestConfig {
        schema: GuestConfig::SCHEMA.into(),
        role: Fixed(Role::Inference),
        shape: Policy(shape(2)),
        model: Policy(ModelId::new("m", "1", types::Blake3Digest::of(b"m")).unwrap()),
        service: ServiceLink { vsock_port: Free(7000), spki_sha256: Policy(Sha256Digest::of(b"k")) },
        network: Network {
            address: Free([10, 0, 2, 15].into()),
            prefix: Free(24),
            port: Free(8443),
            client_address: Free::default(),
        },
        engine: EngineSettings {
            context_tokens: Free(512),
            threads_decode: Free(1),
            threads_prefill: Free(2),
            prompt_rows: None,
        },
        gpus: Free(0),
    };
    let bytes = config.to_canonical().unwrap();
    let time = TimeState { floor: 1, attested: None };
    let gpu = GpuEvidence::NONE;
    let facts = BootFacts {
        config: GuestConfig::mr_config_id(&bytes),
        time: &time,
        gpu: &gpu,
        model: &config.model.0,
        spki_sha256: Sha256Digest::of(b"spki"),
        instance_key: Hex32::new([3; 32]),
    };
    let events = expected_events(&facts, Moment::KeyRelease).unwrap();
    let mut registers = scene.registers.clone();
    registers.mr_config_id = facts.config;
    registers.rtmr_3 = types::event::replay(&events);
    let explain = |registers: &Registers, events: Vec<RuntimeEvent>| {
        let evidence = Evidence {
            schema: Evidence::SCHEMA.into(),
            role: Role::Inference,
            quote: Base64::new(quote(registers)).unwrap(),
            spki_sha256: facts.spki_sha256,
            instance_key: facts.instance_key,
            hpke_key: Hex32::new([0; 32]),
            gpu: gpu.clone(),
            receipt_head: Sha256Digest::ZERO,
            receipt_count: 0,
            freshness: Freshness::none(),
            events,
            firmware_log: None,
            guest_config: Base64::new(bytes.clone()).unwrap(),
            time: time.clone(),
        };
        let path = scene.write("evidence.json", &evidence.to_canonical().unwrap());
        let release = scene.dir.path().join("statement.json");
        measure(&[&"explain", &"--evidence", &path, &"--release", &release, &"--json"])
    };
    let good = explain(&registers, events.clone());
    assert_eq!((good.status, codes(&good)), (0, vec![]), "{}", good.text);
    let verdicts: Vec<_> = good.json["registers"].as_array().unwrap().iter().map(|r| r["verdict"].clone()).collect();
    assert!(verdicts.iter().all(|verdict| verdict == "match"), "{verdicts:?}");
    let mut swapped = events.clone();
    swapped.swap(3, 4);
    assert_eq!(codes(&explain(&registers, swapped)), ["runtime_event_order", "runtime_log_mismatch"]);
    registers.mr_config_id = Sha384Digest::of(b"another configuration");
    assert_eq!(codes(&explain(&registers, events)), ["configuration_differs"]);
}

#[test]
fn malformed_subjects_are_refused_by_name_and_wrong_usage_is_64() {
    let scene = Scene::new();
    let release = scene.dir.path().join("statement.json");
    let junk = scene.write("junk", b"junk");
    let code = |arguments: &[&dyn AsRef<std::ffi::OsStr>]| {
        let outcome = measure(&[&[&"explain" as &dyn AsRef<_>, &"--json", &"--release", &release], arguments].concat());
        (outcome.status, codes(&outcome).first().map(|code| (*code).to_owned()).unwrap_or_default())
    };
    assert_eq!(code(&[&"--quote", &junk]), (2, "quote_malformed".to_owned()));
    assert_eq!(code(&[&"--evidence", &junk]), (2, "evidence_malformed".to_owned()));
    let quote = scene.write("quote", &quote(&scene.registers));
    assert_eq!(code(&[&"--quote", &quote, &"--event-log", &junk]), (2, "event_log_malformed".to_owned()));
    assert_eq!(code(&[&"--quote", &quote, &"--config", &junk]), (2, "config_malformed".to_owned()));
    assert_eq!(code(&[]).0, 64);
    assert_eq!(code(&[&"--quote", &quote, &"--evidence", &junk]).0, 64);
}

#[test]
fn documents_are_compared_by_field() {
    let scene = Scene::new();
    let a = scene.dir.path().join("shape.toml");
    let text = std::fs::read_to_string(&a).unwrap();
    let b = scene.write("b.toml", text.replace("vcpus = 2", "vcpus = 8").as_bytes());
    let outcome = measure(&[&"diff", &a, &b, &"--json"]);
    assert_eq!((outcome.status, codes(&outcome)), (2, vec!["field_differs"]));
    assert_eq!(outcome.json["differences"][0]["field"], "vcpus");
    assert_eq!(outcome.json["differences"][0]["affects"], "rtmr_0");
    assert_eq!(measure(&[&"diff", &a, &a, &"--json"]).status, 0);
    let statement = scene.dir.path().join("statement.json");
    let (bundle, _) = sample_release::publish(
        &sample_release::statement(Hardware::Simulated, &[shape(2), shape(4)], 1_700_000_000),
        1_700_000_000,
    );
    let bundle = scene.write("bundle", &bundle);
    let outcome = measure(&[&"diff", &statement, &bundle, &"--json"]);
    assert_eq!((outcome.status, &outcome.json["identical"]), (0, &true.into()), "a bundle is its statement");
    assert_eq!(codes(&measure(&[&"diff", &statement, &scene.write("log", b"junk"), &"--json"])), ["result_malformed"]);
}

#[test]
fn real_logs_are_explained_replayed_and_compared() {
    let dir = std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from);
    if !dir.is_dir() {
        println!("SKIPPED: explain and diff of real logs (no vectors directory)");
        return;
    }
    let scene = Scene::new();
    let release = scene.dir.path().join("statement.json");
    let (quote, log) = (dir.join("tdx/gtg_v4_gcp_cos113.dat"), dir.join("ccel/gtg_gcp_cos113_ccel.bin"));
    let outcome = measure(&[&"explain", &"--quote", &quote, &"--event-log", &log, &"--release", &release, &"--json"]);
    assert_eq!((outcome.status, &outcome.json["log"]), (2, &"agrees".into()));
    let codes = codes(&outcome);
    for code in ["firmware_differs", "secure_boot_variables", "boot_options_differ", "event_added"] {
        assert!(codes.contains(&code), "{codes:?}");
    }
    assert!(!codes.iter().any(|code| code.starts_with("log_")), "{codes:?}");
    let other = dir.join("ccel/trustee_ovmf_2gib_ccel.bin");
    let foreign = measure(&[&"explain", &"--quote", &quote, &"--event-log", &other, &"--release", &release, &"--json"]);
    assert_eq!(foreign.json["log"], "differs");
    let differing = measure(&[&"diff", &log, &other, &"--json"]);
    assert_eq!((differing.status, &differing.json["kind"]), (2, &"event_log".into()));
    assert_eq!(measure(&[&"diff", &log, &log, &"--json"]).status, 0);
    let replayed = measure(&[&"replay", &"--event-log", &log, &"--quote", &quote, &"--events"]);
    assert!(replayed.text.contains("Calling EFI Application from Boot Option"), "{}", replayed.text);
}
