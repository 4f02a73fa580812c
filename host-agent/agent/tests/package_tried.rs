// SPDX-License-Identifier: Apache-2.0
//! The Debian package, installed, upgraded, removed and purged by dpkg on a copy of this machine.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(name)
}

fn build(program: &Path, out: &Path) {
    let output =
        Command::new(packaging("build-deb.sh")).arg(program).arg(out).env("DEB_COMPRESSION", "none").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A package of this program, and of an older one: a script that says another version.
fn packages(directory: &Path) -> (PathBuf, PathBuf) {
    let program = Path::new(env!("CARGO_BIN_EXE_host-agent"));
    let older = directory.join("older");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" != --version ] || {{ echo host-agent 0.0.1; exit 0; }}\nexec {} \"$@\"\n",
        program.display()
    );
    std::fs::write(&older, text).unwrap();
    std::fs::set_permissions(&older, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (first, second) = (directory.join("older.deb"), directory.join("newer.deb"));
    build(&older, &first);
    build(program, &second);
    (first, second)
}

fn tried(older: &Path, newer: &Path) -> Option<Output> {
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        println!("SKIPPED: no dpkg-deb on this machine");
        return None;
    }
    let output = Command::new(packaging("try-deb.sh")).arg(older).arg(newer).output().unwrap();
    if output.status.code() == Some(77) {
        print!("{}", String::from_utf8_lossy(&output.stdout));
        return None;
    }
    Some(output)
}

#[test]
fn it_installs_upgrades_and_goes_without_a_trace() {
    let directory = tempfile::tempdir().unwrap();
    let (older, newer) = packages(directory.path());
    let Some(output) = tried(&older, &newer) else { return };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(&format!("upgraded to {}, removed and purged", env!("CARGO_PKG_VERSION"))), "{said}");
}

/// What is wrong with a package is found: each change is one that the trial must name.
#[test]
fn a_package_that_is_wrong_is_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let (older, newer) = packages(directory.path());
    let changes: [(&str, &str); 6] = [
        ("chmod 777 usr/bin/host-agent", "others than root can write"),
        ("sed -i 's/^m chrysalis kvm$//' usr/lib/sysusers.d/chrysalis.conf", "not in the group kvm"),
        ("sed -i 's/while .*; do$/while false; do/' DEBIAN/prerm", "did not wait for the daemon's end"),
        ("sed -i 's/^rm -rf\\|^    rm -rf.*//' DEBIAN/postrm", "purging left /var/lib/chrysalis"),
        ("sed -i 's/^ExecStart=/ExecStart=relative/' usr/lib/systemd/system/chrysalis-agent.service", "systemd says"),
        ("mkdir -p usr/share/man/man1; echo '.XX' | gzip -9n > usr/share/man/man1/host-agent.1.gz", "host-agent.1.gz"),
    ];
    for (change, expected) in changes {
        let tree = directory.path().join("tree");
        let script = format!(
            "set -e; rm -rf '{0}'; dpkg-deb -R '{1}' '{0}'; cd '{0}'; {change}; cd /; dpkg-deb -Znone --root-owner-group -b '{0}' '{2}'",
            tree.display(),
            newer.display(),
            directory.path().join("wrong.deb").display(),
        );
        let made = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(made.status.success(), "{change}: {}", String::from_utf8_lossy(&made.stderr));
        // The group is given when the first of both is installed.
        let wrong = directory.path().join("wrong.deb");
        let first = if expected.contains("kvm") { &wrong } else { &older };
        let Some(output) = tried(first, &wrong) else { return };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{change}: {said}");
        assert!(said.contains(expected), "{change}: {said}");
    }
}
