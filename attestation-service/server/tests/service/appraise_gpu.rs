// SPDX-License-Identifier: Apache-2.0
//! `appraise-gpu` on files, with the real program.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

#[test]
fn real_evidence_is_judged_from_files() {
    let dir = std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from)
        .join("nvidia");
    if !dir.is_dir() {
        println!("SKIPPED: real GPU evidence ({} is absent)", dir.display());
        return;
    }
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (report, chain) = (file("h100_545.00_report.txt"), file("h100_545.00_chain.txt"));
    let (driver, vbios) = (file("h100_545.00_driver_rim.swidtag"), file("h100_545.00_vbios_rim.swidtag"));
    let device = ["--report", &report, "--chain", &chain];
    let rims = ["--rim", &driver, "--rim", &vbios];
    let at = ["--at", "2024-12-01T00:00:00Z"];

    let (code, document) = call(&[&device[..], &rims, &at].concat());
    assert_eq!((code, &document["accepted"], &document["hardware"]), (0, &true.into(), &"nvidia".into()), "{document}");
    assert_eq!((&document["nonce"], &document["revocation"]), (&"not_given".into(), &"not_checked".into()));
    assert_eq!(document["gpus"][0]["driver_version"], "545.00");
    let nonce = std::fs::read_to_string(&report).unwrap()[8..72].to_owned();
    let (code, document) = call(&[&device[..], &rims, &at, &["--nonce", &nonce]].concat());
    assert_eq!((code, &document["nonce"]), (0, &"checked".into()));

    let refused = |args: &[&[&str]]| {
        let (code, document) = call(&args.concat());
        assert_eq!(code, 2, "{document}");
        codes(&document)
    };
    let other = "0".repeat(64);
    assert_eq!(refused(&[&device, &rims, &at, &["--nonce", &other]]), ["gpu_nonce"]);
    assert_eq!(refused(&[&device, &rims[..2], &at]), ["rim_missing"]);
    let late = ["--at", "2026-06-01T00:00:00Z"];
    assert_eq!(refused(&[&device, &rims, &late])[0], "rim_expired");
    let broken = file("incorrect_signature_driver_rim.xml");
    assert_eq!(refused(&[&device, &["--rim", &broken], &late])[0], "rim_signature");
    let newer = file("NV_GPU_DRIVER_GH100_550.144.03.xml");
    assert_eq!(refused(&[&device, &["--rim", &newer], &late]), ["rim_version", "rim_missing"]);
    let unsigned = file("hopperAttestationReportInvalidSignature.txt");
    let found = refused(&[&["--report", &unsigned, "--chain", &chain], &rims, &at]);
    assert_eq!(found[0], "gpu_report_signature");
    assert_eq!(refused(&[&device, &["--chain", &chain], &rims, &at]), ["gpu_evidence_incomplete"]);

    let temporary = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = temporary.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let dev_tools = write("state", r#"{"confidential":true,"dev_tools":true,"protected_pcie":false}"#);
    assert_eq!(refused(&[&device, &rims, &at, &["--driver-state", &dev_tools]]), ["gpu_dev_tools"]);
    let unknown = write("unknown", r#"{"confidential":true,"dev_tools":false,"protected_pcie":false,"x":1}"#);
    assert_eq!(refused(&[&device, &rims, &at, &["--driver-state", &unknown]]), ["gpu_driver_state_malformed"]);
    let policy = write("policy", "{}");
    assert_eq!(refused(&[&device, &rims, &at, &["--policy", &policy]]), ["gpu_policy_malformed"]);
}

#[test]
fn wrong_usage_is_named() {
    assert_eq!(call(&[]).0, 64);
    let files = ["--report", "r", "--chain", "c", "--at", "2026-01-01T00:00:00Z"];
    assert_eq!(call(&[&files[..], &["--nonce", "12"]].concat()).0, 64);
    assert_eq!(call(&[&files[..], &["--switch-report", "s"]].concat()).0, 64);
    // A file that is not there is no verdict.
    let (code, document) = call(&files);
    assert_eq!((code, &document["accepted"]), (1, &false.into()));
}

fn call(args: &[&str]) -> (i32, Value) {
    let program = env!("CARGO_BIN_EXE_attestation-service");
    let output = Command::new(program).arg("appraise-gpu").args(args).arg("--json").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap_or_default();
    (output.status.code().unwrap(), serde_json::from_str(last).unwrap_or(Value::Null))
}

fn codes(document: &Value) -> Vec<String> {
    let reasons = document["reasons"].as_array().unwrap();
    reasons.iter().map(|reason| reason["code"].as_str().unwrap().to_owned()).collect()
}
