// SPDX-License-Identifier: Apache-2.0
//! The unit of systemd: well-formed, sandboxed, with options that exist; and the pages it names.

use std::{path::PathBuf, process::Command};

fn unit() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../units/chrysalis-attestation.service")
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_attestation-service"))
}

#[test]
fn options_of_the_unit_exist() {
    let text = std::fs::read_to_string(unit()).unwrap();
    assert!(text.lines().any(|line| line == "ExecReload=/bin/kill -HUP $MAINPID"));
    let help = String::from_utf8(program().args(["serve", "--help"]).output().unwrap().stdout).unwrap();
    let command =
        text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/attestation-service serve ")).unwrap();
    let example = text.lines().find_map(|line| line.strip_prefix("#   SERVE=")).unwrap();
    let options: Vec<_> = command.split(' ').chain(example.split(' ')).filter(|word| word.starts_with("--")).collect();
    assert!(options.len() >= 5, "{options:?}");
    for option in options {
        assert!(help.contains(&format!("{option} <")), "{option}");
    }
}

#[test]
fn the_unit_is_sandboxed() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("SKIPPED: no systemd-analyze on this machine");
        return;
    }
    let arguments = ["security", "--offline=true", "--no-pager", "--threshold=30"];
    let output = Command::new("systemd-analyze").args(arguments).arg(unit()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", text.lines().last().unwrap_or_default());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!errors.contains("Unknown") && !errors.contains("Failed to parse"), "{errors}");
}

#[test]
fn there_is_a_page_for_each_command() {
    let out = tempfile::tempdir().unwrap();
    assert_eq!(program().arg("manual").arg("--out").arg(out.path()).status().unwrap().code(), Some(0));
    for page in ["", "-serve", "-owner-cosign", "-audit-verify"] {
        let path = out.path().join(format!("man/man1/attestation-service{page}.1"));
        assert!(std::fs::read_to_string(&path).unwrap().starts_with(".ie"), "{}", path.display());
    }
    for script in [
        "bash-completion/completions/attestation-service",
        "zsh/vendor-completions/_attestation-service",
        "fish/vendor_completions.d/attestation-service.fish",
    ] {
        assert!(std::fs::read_to_string(out.path().join(script)).unwrap().contains("cosign"), "{script}");
    }
}
