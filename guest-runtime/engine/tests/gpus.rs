// SPDX-License-Identifier: Apache-2.0
//! The engine's binary and GPUs: one that is compiled for them never computes without, the other one knows none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail loudly")]

use std::process::Command;

/// Exit code and standard error for a model that does not exist.
fn started(more: &[&str]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command.args(["--context", "64", "--model", "/nonexistent/model.gguf", "--socket"]);
    let output = command.arg(directory.path().join("engine.sock")).args(more).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[cfg(not(feature = "cuda"))]
#[test]
fn an_engine_for_the_processor_knows_no_gpus() {
    let (code, said) = started(&["--gpus", "1"]);
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("unexpected argument '--gpus'"), "{said}");
    let (code, said) = started(&[]);
    assert!(code == Some(1) && said.contains("the model file cannot be opened"), "{said}");
}

#[cfg(feature = "cuda")]
#[test]
fn an_engine_for_gpus_ends_without_one() {
    let (code, said) = started(&[]);
    assert!(code == Some(64) && said.contains("--gpus"), "{said}");
    if std::path::Path::new("/dev/nvidiactl").exists() {
        println!("SKIPPED: refusing a machine without GPUs: this one may have some");
        return;
    }
    let (code, said) = started(&["--gpus", "1"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("there are 0 GPUs that can be computed on, and 1 were named"), "{said}");
}
