// SPDX-License-Identifier: Apache-2.0
//! PID 1's own seccomp filters. A call outside of them kills it, and the end of PID 1 panics the kernel.
//!
//! What PID 1 starts inherits its filter, and filters only add up: the first allows all that the guest's programs need until they
//! confine themselves; the second comes when nothing is started any more.

use linux_sys::seccomp::{Condition, Filter, SeccompError};

/// How far the boot has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// From the end of the phase `lockdown`: files, sockets and programs, but nothing that changes the machine.
    Boot {
        /// Whether programs with shared libraries will be started, which map them for execution.
        shared_libraries: bool,
    },
    /// From the end of the phase `serve`: wait for the end of a process, tell the host, power off.
    Watch,
}

/// Confines PID 1, all of its threads, and what it will start.
///
/// After [`Stage::Boot`] nothing can be mounted, no module or other kernel loaded, no clock set, no process traced, no device
/// node made, no namespace entered; sockets are Unix, IPv4 and vsock ones, and of new namespaces only that of the network can be
/// made. After [`Stage::Watch`] no file can be opened and no program started either.
///
/// # Errors
/// The kernel refused the filter; then the guest must end.
pub fn confine(stage: Stage) -> Result<(), SeccompError> {
    match stage {
        Stage::Boot { shared_libraries } => {
            Filter::programs(shared_libraries).allow_if(libc::SYS_reboot, &[POWER_OFF]).apply()
        }
        Stage::Watch => Filter::common()
            .allow(WATCH)
            .allow_if(libc::SYS_socket, &[family(libc::AF_VSOCK)])
            .allow_if(libc::SYS_fcntl, &[flags(libc::F_GETFD), flags(libc::F_SETFD)])
            .allow_if(libc::SYS_reboot, &[POWER_OFF])
            .apply(),
    }
}

/// What a daemon of the image's root may ask of the kernel that does not confine itself: as [`Stage::Boot`], and it speaks to
/// programs of this machine alone and powers nothing off.
pub(crate) fn daemon() -> Filter {
    Filter::programs(true).allow_if(libc::SYS_socket, &[family(libc::AF_UNIX)])
}

const fn family(value: i32) -> Condition {
    Condition::Equals { argument: 0, value: value.cast_unsigned() }
}

const fn flags(command: i32) -> Condition {
    Condition::Equals { argument: 1, value: command.cast_unsigned() }
}

/// The command stands in the third argument (reboot(2)).
const POWER_OFF: Condition = Condition::Equals { argument: 2, value: 0x4321_fedc };

/// Children are waited for; the status line is sent, over a new connection where the old one broke; the phase is accounted.
const WATCH: &[i64] =
    &[libc::SYS_connect, libc::SYS_getrusage, libc::SYS_setsockopt, libc::SYS_shutdown, libc::SYS_wait4];
