// SPDX-License-Identifier: Apache-2.0
//! The agent's command line: exit codes, and errors that name cause and fix.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_host-agent")).args(arguments).output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn wrong_usage_exits_with_64_and_help_with_0() {
    assert_eq!(agent(&["launch"]).status.code(), Some(64));
    assert_eq!(agent(&["fly"]).status.code(), Some(64));
    assert_eq!(agent(&["--help"]).status.code(), Some(0));
}

#[test]
fn a_directory_without_a_guest_is_not_running() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let status = agent(&["status", "--run-dir", path, "--json"]);
    assert_eq!(status.status.code(), Some(2));
    let document: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(document["running"], false);
    assert_eq!(agent(&["stop", "--run-dir", path]).status.code(), Some(0));
    let start = agent(&["start", "--run-dir", path]);
    assert_eq!(start.status.code(), Some(1));
    assert!(errors(&start).contains("launch.json"), "{}", errors(&start));
}

/// A QEMU that only says its version.
fn stand_in_qemu(directory: &Path) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let path = directory.join("qemu");
    std::fs::write(&path, "#!/bin/sh\necho 'QEMU emulator version 7.2.22 (test)'\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn prepare(directory: &Path, qemu: &str, listen: &str) -> Output {
    prepare_with(directory, qemu, listen, &[])
}

fn prepare_with(directory: &Path, qemu: &str, listen: &str, more: &[&str]) -> Output {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let model = format!("m@1:{}", "0".repeat(64));
    let (run, image, pack, spki) = (path("run"), path("image"), path("pack"), "1".repeat(64));
    let arguments = [
        "prepare",
        "--run-dir",
        &run,
        "--image",
        &image,
        "--model-pack",
        &pack,
        "--model",
        &model,
        "--service",
        "127.0.0.1:1",
        "--service-spki",
        &spki,
        "--qemu",
        qemu,
        "--listen",
        listen,
        "--tee",
        "simulated",
    ];
    agent(&[&arguments[..], more].concat())
}

#[test]
fn gpus_need_an_image_that_drives_them() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    std::fs::create_dir(&image).unwrap();
    for name in ["firmware.fd", "vmlinuz", "initrd", "cmdline"] {
        std::fs::write(image.join(name), "x").unwrap();
    }
    let output = prepare_with(directory.path(), "qemu", "127.0.0.1:0", &["--gpus", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("no driver for a GPU"), "{}", errors(&output));
    // A GPU that is named counts, and only so many as are named can be asked for.
    let named = ["--gpu", "0000:17:00.0"];
    let output = prepare_with(directory.path(), "qemu", "127.0.0.1:0", &named);
    assert!(errors(&output).contains("no driver for a GPU"), "{}", errors(&output));
    let output = prepare_with(directory.path(), "qemu", "127.0.0.1:0", &[&named[..], &["--gpus", "2"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("--gpus says 2, --gpu names 1"), "{}", errors(&output));
    let output = prepare_with(directory.path(), "qemu", "127.0.0.1:0", &["--gpu", "first"]);
    assert_eq!(output.status.code(), Some(64));
    let output = prepare_with(directory.path(), "qemu", "127.0.0.1:0", &["--gpus", "17"]);
    assert_eq!(output.status.code(), Some(64));
}

#[test]
fn what_is_missing_is_named_in_turn() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    std::fs::create_dir(&image).unwrap();
    let refused = |qemu: &str| {
        let output = prepare(directory.path(), qemu, "127.0.0.1:0");
        assert_eq!(output.status.code(), Some(1));
        errors(&output)
    };
    assert!(refused("qemu").contains("firmware.fd"));
    for name in ["firmware.fd", "vmlinuz", "initrd", "cmdline"] {
        std::fs::write(image.join(name), "x").unwrap();
    }
    let text = refused("/nonexistent/qemu");
    assert!(text.contains("qemu-system-x86"), "{text}");
    let text = refused(&stand_in_qemu(directory.path()));
    assert!(text.contains("model pack"), "{text}");
    assert!(!directory.path().join("run/launch.json").exists(), "a failed prepare leaves nothing to start");
}

#[test]
fn a_run_directory_too_long_for_sockets_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("x".repeat(100));
    std::fs::create_dir(&deep).unwrap();
    let output = prepare(&deep, "qemu", "127.0.0.1:0");
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("too long"), "{}", errors(&output));
}

#[test]
fn a_taken_port_is_named_with_the_fix() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    std::fs::create_dir(&image).unwrap();
    for name in ["firmware.fd", "vmlinuz", "initrd", "cmdline"] {
        std::fs::write(image.join(name), "x").unwrap();
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let output = prepare(directory.path(), &stand_in_qemu(directory.path()), &address);
    assert_eq!(output.status.code(), Some(1));
    let text = errors(&output);
    assert!(text.contains(&address) && text.contains("--listen"), "{text}");
}

#[test]
fn no_part_of_an_address_is_echoed() {
    let directory = tempfile::tempdir().unwrap();
    let (dir, root) = (directory.path().to_str().unwrap(), "0".repeat(64));
    for (address, field) in [
        ("ftp://models.example/x?signature=SECRET", "--from, number 2"),
        ("https://SECRET@models.example/x", "--from, number 2"),
        ("https://models.example/x?signature=SECRET", "--authorities"),
        ("https://models.example/x?signature=SEC RET", "--from, number 2"),
    ] {
        for form in [&[][..], &["--json"]] {
            let arguments = ["cache", "fetch", "--dir", dir, "--root", &root, "--authorities", "/nonexistent"];
            let output = agent(&[&arguments[..], &["--from", "/", "--from", address], form].concat());
            assert_eq!(output.status.code(), Some(2), "{address}");
            let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(text.contains(field) && !text.contains("cache.dir"), "{text}");
            assert!(!text.contains("SEC") && !text.contains("models.example"), "{text}");
        }
    }
}
