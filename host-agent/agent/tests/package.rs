// SPDX-License-Identifier: Apache-2.0
//! The Debian package: what is in it, and that it is the same twice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/build-deb.sh")
}

fn build(out: &Path) -> Output {
    Command::new(script())
        .arg(env!("CARGO_BIN_EXE_host-agent"))
        .arg(out)
        .env("DEB_COMPRESSION", "none")
        .output()
        .unwrap()
}

fn asked(option: &str, package: &Path) -> String {
    let output = Command::new("dpkg-deb").arg(option).arg(package).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_package_is_whole_and_the_same_twice() {
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        println!("SKIPPED: no dpkg-deb on this machine");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (directory.path().join("first.deb"), directory.path().join("second.deb"));
    for out in [&first, &second] {
        let output = build(out);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap(), "two builds differ");
    let control = asked("--info", &first);
    assert!(control.contains(&format!("Version: {}\n", env!("CARGO_PKG_VERSION"))), "{control}");
    assert!(!control.contains('@') || control.matches('@').count() == 1, "only the maintainer's address: {control}");
    let contents = asked("--contents", &first);
    for (mode, path) in [
        ("-rwxr-xr-x root/root", "./usr/bin/host-agent"),
        ("-rw-r--r-- root/root", "./usr/lib/systemd/system/chrysalis-guest@.service"),
        ("-rw-r--r-- root/root", "./usr/lib/systemd/system/chrysalis-gpus.service"),
        ("-rw-r--r-- root/root", "./usr/lib/systemd/system/chrysalis-agent.service"),
        ("-rw-r--r-- root/root", "./usr/share/doc/chrysalis-host-agent/host-agent.md"),
        ("-rw-r--r-- root/root", "./usr/share/doc/chrysalis-host-agent/agent.toml"),
        ("-rw-r--r-- root/root", "./usr/lib/sysusers.d/chrysalis.conf"),
        ("-rw-r--r-- root/root", "./usr/lib/modules-load.d/chrysalis.conf"),
        ("-rw-r--r-- root/root", "./usr/share/man/man1/host-agent-gpu-bind.1.gz"),
        ("-rw-r--r-- root/root", "./usr/share/bash-completion/completions/host-agent"),
        ("-rw-r--r-- root/root", "./usr/share/doc/chrysalis-host-agent/copyright"),
    ] {
        let line = contents.lines().find(|line| line.ends_with(&format!(" {path}")));
        let line = line.unwrap_or_else(|| panic!("{path} is missing:\n{contents}"));
        assert!(line.starts_with(mode), "{line}");
        assert!(line.contains(" 1970-01-01 00:00 "), "{line}");
    }
    let outside = contents.lines().filter(|line| !line.contains(" ./usr/") && !line.ends_with(" ./"));
    assert_eq!(outside.count(), 0, "{contents}");
}

#[test]
fn wrong_usage_and_programs_that_are_another_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("x.deb");
    assert_eq!(Command::new(script()).output().unwrap().status.code(), Some(64));
    let other = Command::new(script()).arg("/bin/true").arg(&out).output().unwrap();
    assert_eq!(other.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other.stderr).contains("does not say its version"));
    assert!(!out.exists());
}
