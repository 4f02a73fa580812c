// SPDX-License-Identifier: Apache-2.0
//! QEMU, asked itself.

use crate::host::Host;
use crate::probes::{Answer, Question};
use crate::report::Finding;

pub(super) fn version(host: &Host<'_>) -> Option<Finding> {
    const SOURCE: &str = "qemu --version";
    const FIX: &str =
        "install QEMU 10.1 or newer (Debian: apt install -t trixie-backports qemu-system-x86), or name it with --qemu";
    Some(match host.ask(&Question::QemuVersion) {
        Answer::Unasked => Finding::unknown(SOURCE, "not recorded", "name QEMU with --qemu"),
        Answer::Failed(reason) => Finding::fail(SOURCE, reason, FIX),
        Answer::Given(text) => {
            let line = text.lines().next().unwrap_or_default().to_owned();
            match parse(&line) {
                Some(version) if version >= (10, 1) => Finding::pass(SOURCE, line),
                _ => Finding::fail(SOURCE, line, FIX),
            }
        }
    })
}

pub(super) fn tdx_guest(host: &Host<'_>) -> Option<Finding> {
    const SOURCE: &str = "qemu -object help";
    match host.ask(&Question::QemuObjects) {
        Answer::Given(text) if text.lines().any(|line| line.trim() == "tdx-guest") => {
            Some(Finding::pass(SOURCE, "tdx-guest"))
        }
        Answer::Given(_) => Some(Finding::fail(
            SOURCE,
            "no object tdx-guest",
            "install a QEMU 10.1 or newer that is built for x86_64 with KVM, or name it with --qemu",
        )),
        // Why QEMU does not run stands in the check of its version.
        Answer::Failed(_) => None,
        Answer::Unasked => Some(Finding::unknown(SOURCE, "not recorded", "name QEMU with --qemu")),
    }
}

/// `QEMU emulator version 10.1.0 (…)`.
fn parse(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split_once("version ")?.1.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}
