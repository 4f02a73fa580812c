// SPDX-License-Identifier: Apache-2.0
//! The `model` tool: its documents, exit codes and files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Runs the tool in `directory`; gives its exit code and the document in its last line.
fn model(directory: &Path, arguments: &str) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_model"))
        .current_dir(directory)
        .args(arguments.split_whitespace())
        .arg("--json")
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let document = printed.lines().last().map_or(Value::Null, |line| serde_json::from_str(line).unwrap());
    (output.status.code().unwrap(), document)
}

#[test]
fn a_pack_is_made_checked_and_refused_when_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    fs::write(directory.join("weights.gguf"), [7; 5000]).unwrap();
    let pack = "pack --name m --revision 1 --in weights.gguf --out m.pack";
    let (code, made) = model(directory, &format!("{pack} --new-key m.key"));
    assert_eq!((code, made["bytes"].as_u64()), (0, Some(5000)));
    assert_eq!(fs::metadata(directory.join("m.key")).unwrap().permissions().mode() & 0o777, 0o600);
    let name = made["model"].as_str().unwrap();
    assert_eq!(name, format!("m@1:{}", made["identity"].as_str().unwrap()));

    let (code, verified) = model(directory, &format!("verify m.pack --key m.key --model {name}"));
    assert_eq!(
        (code, verified["accepted"].as_bool(), verified["identity_expected"].as_bool()),
        (0, Some(true), Some(true))
    );
    assert_eq!(model(directory, "disk m.pack --out m.disk").0, 0);
    let (code, shown) = model(directory, "inspect m.disk --key m.key");
    assert_eq!((code, shown["manifest"]["files"][0]["path"].as_str()), (0, Some("weights.gguf")));
    assert!(model(directory, "inspect m.disk").1["manifest"].is_null());

    let other = name.replace(":", ":0").get(..name.len()).unwrap().to_owned();
    let (code, refused) = model(directory, &format!("verify m.disk --key m.key --model {other}"));
    assert_eq!((code, refused["reasons"][0]["code"].as_str()), (2, Some("model_identity_mismatch")));
    let object = directory.join("m.pack/objects/000001");
    let mut bytes = fs::read(&object).unwrap();
    bytes[2000] ^= 1;
    fs::write(&object, bytes).unwrap();
    let (code, refused) = model(directory, "verify m.pack");
    assert_eq!((code, refused["reasons"][0]["code"].as_str()), (2, Some("model_object_digest_mismatch")));
}

#[test]
fn wrong_usage_and_missing_files_have_their_own_codes() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    assert_eq!(model(directory, "pack --name m").0, 64);
    assert_eq!(model(directory, "verify missing.pack").0, 1);
    assert_eq!(model(directory, "pack --name m --revision 1 --in missing --new-key k --out p").0, 1);
    fs::write(directory.join("file"), "x").unwrap();
    assert_eq!(model(directory, "pack --name a/b --revision 1 --in file --new-key k --out p").0, 1);
    assert!(!directory.join("k").exists(), "a key that opens nothing was left behind");
    fs::write(directory.join("k"), "kept").unwrap();
    assert_eq!(model(directory, "pack --name m --revision 1 --in file --new-key k --out p").0, 1);
    assert_eq!(fs::read(directory.join("k")).unwrap(), b"kept");
}
