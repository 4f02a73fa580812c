// SPDX-License-Identifier: Apache-2.0
//! Files that lie about their sizes, given to the program itself: it says why, before the library has seen them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod model;

use std::{path::Path, process::Command};

/// Exit code, and what it said.
fn run(model: &Path) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(["--context", "256", "--model"])
        .arg(model)
        .arg("--socket")
        .arg(directory.path().join("socket"))
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Version 3, one tensor, and one key whose value follows.
fn file(key: &str, value: &[u8]) -> Vec<u8> {
    let counts: Vec<u8> = [1_u64, 1].into_iter().flat_map(u64::to_le_bytes).collect();
    [b"GGUF\x03\0\0\0", &counts[..], &(key.len() as u64).to_le_bytes(), key.as_bytes(), value].concat()
}

#[test]
fn a_file_that_lies_about_its_sizes_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let array = |count: u64| [&[9_u8, 0, 0, 0, 8, 0, 0, 0][..], &count.to_le_bytes()].concat();
    for (bytes, expected) in [
        (file("tokenizer.ggml.tokens", &array(1 << 60)), "value 0: 1152921504606846976, at most 4194304 are allowed"),
        (file("tokenizer.ggml.tokens", &array(1 << 20)), "value 0: 8388608 bytes are announced where 0 are left"),
        (b"GGUF\x03\0\0\0\xff\xff\xff\xff\0\0\0\0".to_vec(), "tensors: 4294967295, at most 65536 are allowed"),
        (b"{}".to_vec(), "magic: 4 bytes are announced where 2 are left"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let (code, said) = run(&path);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("is not what it says") && said.contains(expected), "{said}");
    }
    let (code, said) = run(&directory.path().join("absent"));
    assert!(code == Some(1) && said.contains("cannot be opened"), "{said}");
}

/// A whole model that was cut off, or to which something was added.
#[test]
fn a_real_model_of_another_length_is_refused() {
    let Some(model) = model::model("a real model that was cut off") else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let mut bytes = std::fs::read(model).unwrap();
    let header = gguf::check(&mut &bytes[..], bytes.len() as u64).unwrap();
    assert!(header.tensors > 1 && header.keys > 1, "{header:?}");
    bytes.truncate(bytes.len() - 4096);
    std::fs::write(&path, &bytes).unwrap();
    let (code, said) = run(&path);
    assert!(code == Some(1) && said.contains("data: ends at"), "{code:?} {said}");
    bytes.resize(bytes.len() + 3 * 4096, 0);
    std::fs::write(&path, &bytes).unwrap();
    let (code, said) = run(&path);
    assert!(code == Some(1) && said.contains("data: ends at"), "{code:?} {said}");
}
