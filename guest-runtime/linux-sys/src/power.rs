// SPDX-License-Identifier: Apache-2.0
//! The end of the guest.

use nix::sys::reboot::{RebootMode, reboot};

/// Powers the machine off. Where the kernel refuses (as it does for anybody but PID 1 and root) the process ends, and
/// the end of PID 1 is a panic of the kernel: a halt, too.
pub fn off() -> ! {
    let _ = reboot(RebootMode::RB_POWER_OFF);
    std::process::exit(1)
}
