// SPDX-License-Identifier: Apache-2.0
//! Manual pages and completions know every command.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::process::Command;

#[test]
fn every_command_has_its_page_and_completions() {
    let out = tempfile::tempdir().unwrap();
    let status =
        Command::new(env!("CARGO_BIN_EXE_host-agent")).args(["manual", "--out"]).arg(out.path()).status().unwrap();
    assert!(status.success());
    let read = |path: &str| std::fs::read_to_string(out.path().join(path)).unwrap();
    for page in [
        "host-agent",
        "host-agent-preflight-record",
        "host-agent-gpu-bind",
        "host-agent-gpu-mode",
        "host-agent-launch",
        "host-agent-agent",
        "host-agent-cache-fetch",
    ] {
        let text = read(&format!("man/man1/{page}.1"));
        assert!(text.contains(".SH SYNOPSIS") || text.contains(".SH \"SYNOPSIS\""), "{page}");
    }
    assert!(read("man/man1/host-agent-gpu.1").contains("udev"));
    for script in [
        "bash-completion/completions/host-agent",
        "zsh/vendor-completions/_host-agent",
        "fish/vendor_completions.d/host-agent.fish",
    ] {
        let text = read(script);
        for word in ["preflight", "gpu-registers", "udev-rule", "unbind", "launch"] {
            assert!(text.contains(word), "{script} lacks {word}");
        }
    }
}
