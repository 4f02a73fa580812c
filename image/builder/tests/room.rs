// SPDX-License-Identifier: Apache-2.0
//! What a tool in the build root sees and can do, with this machine's own `/usr` in place of the locked packages.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// A root with this machine's programs, a lent directory and a scratch directory.
fn plan(root: &Path, lent: &Path, script: &str) -> Value {
    for directory in ["usr", "dev", "proc", "tmp", "lent", "scratch"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    for name in ["bin", "lib", "lib64"] {
        let _ = std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name));
    }
    json!({
        "root": root,
        "mounts": [
            {"kind": "bind", "from": "/usr", "to": "/usr", "writable": false},
            {"kind": "bind", "from": lent, "to": "/lent", "writable": true},
            {"kind": "scratch", "to": "/scratch"},
            {"kind": "text", "to": "/scratch/said", "text": "said"},
            {"kind": "bind", "from": "/usr/bin", "to": "/scratch/deep/shown", "writable": false},
            {"kind": "seal", "to": "/scratch"},
        ],
        "program": "sh",
        "arguments": ["-c", script],
        "variables": [["PATH", "/usr/bin"], ["GIVEN", "yes"]],
        "directory": "/lent",
    })
}

fn enter(plan: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_image"));
    command.args(["enter-room", "--stage", "outer"]).env("LEAKED", "no");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A stage that refuses early may not read it all.
    let _ = child.stdin.take().unwrap().write_all(plan);
    child.wait_with_output().unwrap()
}

/// Runs a script in a room; `None` where this machine allows none.
fn run(script: &str) -> Option<(Output, tempfile::TempDir)> {
    let (root, lent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let output = enter(plan(root.path(), lent.path(), script).to_string().as_bytes());
    if output.status.code() == Some(199) && String::from_utf8_lossy(&output.stderr).contains("namespaces") {
        println!("SKIPPED: the build root's room (this machine allows no namespaces)");
        return None;
    }
    Some((output, lent))
}

#[test]
fn a_tool_sees_what_is_shown_and_nothing_else() {
    let script = "set -e; id -u; uname -n; umask; pwd; env | sort; cat /scratch/said; echo; ls / | tr '\\n' ' '; echo; \
                  ls /scratch/deep/shown/sh; grep -c : /proc/net/dev; test -c /dev/null; echo written > file";
    let Some((output, lent)) = run(script) else { return };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..4], ["0", "chrysalis", "0022", "/lent"]);
    assert!(said.contains("GIVEN=yes\n") && !said.contains("LEAKED"), "{said}");
    assert!(
        said.contains("\nsaid\nbin dev lent lib lib64 proc scratch tmp usr \n/scratch/deep/shown/sh\n1\n"),
        "{said}"
    );
    assert_eq!(std::fs::read(lent.path().join("file")).unwrap(), b"written\n");
}

#[test]
fn only_what_is_lent_can_be_changed() {
    for path in ["/new", "/usr/new", "/scratch/new", "/scratch/said"] {
        let Some((output, _)) = run(&format!("echo x >> {path}")) else { return };
        assert!(!output.status.success(), "{path} could be written");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("Read-only") || said.contains("read-only"), "{path}: {said}");
    }
}

#[test]
fn the_status_of_the_tool_is_returned() {
    let Some((output, _)) = run("exit 7") else { return };
    assert_eq!(output.status.code(), Some(7));
    let Some((output, _)) = run("kill -TERM $$") else { return };
    assert_eq!(output.status.code(), Some(143));
    // What the tool leaves behind ends with it.
    let Some((output, _)) = run("sleep 1000 & exit 0") else { return };
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_plan_that_is_none_or_cannot_be_carried_out_is_named() {
    let output = enter(b"{}");
    assert_eq!(output.status.code(), Some(199));
    let (root, lent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut missing = plan(root.path(), lent.path(), "true");
    missing["mounts"][0]["from"] = json!("/no/such/place");
    let output = enter(missing.to_string().as_bytes());
    assert_eq!(output.status.code(), Some(199));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("/no/such/place") || said.contains("namespaces"), "{said}");
}
