// SPDX-License-Identifier: Apache-2.0
//! What is tried, and how much of it at most.

use types::MachineShape;

/// Sizes of memory that are tried, in MiB: every multiple of 64 MiB from 256 MiB to 16 GiB, of 1 GiB to 1 TiB, of
/// 16 GiB to 16 TiB; and those of the machines that the reference lists.
#[must_use]
pub fn memory_sizes(shapes: &[MachineShape]) -> Vec<u32> {
    let own = shapes.iter().take(MAX_SHAPES).map(|shape| shape.facts().memory_mib);
    let small = (256..=16 << 10).step_by(64);
    let medium = (17 << 10..=1 << 20).step_by(1 << 10);
    let large = ((1 << 20) + (16 << 10)..=16 << 20).step_by(16 << 10);
    let mut sizes: Vec<u32> = own.chain(small).chain(medium).chain(large).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// Words that are tried on the command line: common ones for debugging, and those that change what a guest does.
pub const WORDS: [&str; 40] = [
    "debug",
    "quiet",
    "verbose",
    "ignore_loglevel",
    "loglevel=7",
    "loglevel=8",
    "console=ttyS0",
    "console=ttyS0,115200",
    "console=hvc0",
    "console=tty0",
    "earlyprintk=serial",
    "earlyprintk=ttyS0",
    "earlycon",
    "init=/bin/sh",
    "init=/bin/bash",
    "rdinit=/bin/sh",
    "rdinit=/init",
    "single",
    "ro",
    "rw",
    "root=/dev/ram0",
    "root=/dev/vda",
    "root=/dev/vda1",
    "panic=0",
    "panic=1",
    "nokaslr",
    "mitigations=off",
    "lockdown=none",
    "module.sig_enforce=0",
    "nopti",
    "nosmp",
    "maxcpus=1",
    "swiotlb=force",
    "no_timer_check",
    "random.trust_cpu=on",
    "random.trust_bootloader=on",
    "net.ifnames=0",
    "systemd.debug-shell=1",
    "chrysalis.tee=simulated",
    "chrysalis.tee=tdx",
];

/// Memory that is assumed where no machine is known.
pub const FALLBACK_MIB: u32 = 2048;
/// Most combinations of memory size and ACPI files that are tried for RTMR0 without a log.
pub const MAX_MACHINES: usize = 1 << 16;
/// Most command lines that are tried.
pub const MAX_COMMAND_LINES: usize = 1 << 14;
/// Most machines of a reference that are looked at.
pub const MAX_SHAPES: usize = 1024;
/// Most ACPI references that are looked at.
pub const MAX_ACPI: usize = 4096;
/// Most other images, command lines and configurations that are looked at, each.
pub const MAX_KNOWLEDGE: usize = 64;
/// Most events of a register that are shown.
pub const MAX_EVENTS: usize = 256;
/// Most RTMR3 events that are looked at; a boot has eleven.
pub const MAX_RUNTIME_EVENTS: usize = 64;
