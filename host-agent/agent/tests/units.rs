// SPDX-License-Identifier: Apache-2.0
//! The units of systemd: well-formed, sandboxed, and with commands that exist.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

fn units() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../units");
    let mut units: Vec<PathBuf> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    units.sort();
    assert_eq!(units.len(), 3);
    units
}

#[test]
fn commands_of_units_exist() {
    for unit in units() {
        let text = std::fs::read_to_string(&unit).unwrap();
        let commands: Vec<&str> =
            text.lines().filter_map(|line| line.split_once("=/usr/bin/host-agent ")).map(|c| c.1).collect();
        assert!(!commands.is_empty(), "{}", unit.display());
        for command in commands {
            let words: Vec<&str> = command.split(' ').take_while(|word| !word.starts_with(['-', '$'])).collect();
            let help = Command::new(env!("CARGO_BIN_EXE_host-agent")).args(&words).arg("--help").output().unwrap();
            assert_eq!(help.status.code(), Some(0), "{command}");
            let help = String::from_utf8_lossy(&help.stdout).into_owned();
            for option in command.split(' ').filter(|word| word.starts_with("--")) {
                assert!(help.contains(option), "{command}: {option}");
            }
        }
    }
}

#[test]
fn units_are_sandboxed() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("SKIPPED: no systemd-analyze on this machine");
        return;
    }
    for unit in units() {
        let arguments = ["security", "--offline=true", "--no-pager", "--threshold=30"];
        let output = Command::new("systemd-analyze").args(arguments).arg(&unit).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {}", unit.display(), text.lines().last().unwrap_or_default());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        // A word that systemd has from version 254 on; older ones pass over it, as the unit says.
        let known = |line: &&str| !line.contains("Unknown key 'DelegateSubgroup' in section [Service]");
        let errors: String = errors.lines().filter(known).collect();
        assert!(!errors.contains("Unknown") && !errors.contains("Failed to parse"), "{errors}");
    }
}

#[test]
fn bindings_are_written_down_where_only_root_can_write() {
    let text = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../units").join(name);
        std::fs::read_to_string(path).unwrap()
    };
    let gpus = text("chrysalis-gpus.service");
    assert!(gpus.contains("\nStateDirectory=chrysalis-gpus\nStateDirectoryMode=0700\n"), "{gpus}");
    assert!(!gpus.contains("User=") && !gpus.contains("ReadWritePaths="), "{gpus}");
    assert!(!text("chrysalis-guest@.service").contains("chrysalis-gpus/"));
    let help = Command::new(env!("CARGO_BIN_EXE_host-agent")).args(["gpu", "bind", "--help"]).output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("[default: /var/lib/chrysalis-gpus]"));
}

#[test]
fn the_daemons_end_ends_no_guest() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../units/chrysalis-agent.service");
    let text = std::fs::read_to_string(path).unwrap();
    // A private /tmp, or another way to end processes, would take guests down with the daemon.
    assert!(text.contains("\nKillMode=process\n") && text.contains("\nPrivateTmp=no\n"), "{text}");
    assert!(text.contains("\nRuntimeDirectoryPreserve=restart\n"), "{text}");
}

#[test]
fn guests_have_control_groups_that_outlive_the_daemon() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../units/chrysalis-agent.service");
    let text = std::fs::read_to_string(path).unwrap();
    // The groups are looked for beside one that is called `daemon`; systemd starts the next daemon in it, too, and not
    // where it would stand above them.
    for line in ["Delegate=memory pids cpu", "DelegateSubgroup=daemon", "ProtectControlGroups=no", "OOMPolicy=continue"]
    {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
}

#[test]
fn the_daemon_is_started_again_however_often_it_fails() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../units/chrysalis-agent.service");
    let text = std::fs::read_to_string(path).unwrap();
    let (unit, service) = text.split_once("\n[Service]\n").unwrap();
    // systemd's default gives up after 5 starts in 10 s.
    assert!(unit.lines().any(|line| line == "StartLimitIntervalSec=0"), "{unit}");
    for line in ["Restart=on-failure", "RestartSec=5", "RestartPreventExitStatus=2 64"] {
        assert!(service.lines().any(|found| found == line), "{line}");
    }
}
