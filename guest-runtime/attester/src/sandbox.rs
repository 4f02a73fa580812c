// SPDX-License-Identifier: Apache-2.0
//! The attester's seccomp filter.

use linux_sys::{
    seccomp::{Condition, Filter, SeccompError},
    tdx_guest::GET_REPORT0,
};

/// Confines the process to what it needs once its keys are made and its device is open: accept and speak on the sockets it
/// has, open files that exist (which ones, Landlock decides), ask the device for a TD report.
///
/// So it can make no socket of any kind (vsock lies in no network namespace), start nothing, and make, remove or rename no
/// file.
///
/// # Errors
/// The kernel refused the filter; then the process must not go on.
pub fn confine() -> Result<(), SeccompError> {
    let flags = |command: i32| Condition::Equals { argument: 1, value: command.cast_unsigned() };
    Filter::common()
        .allow(SPEAK)
        .allow(READ_FILES)
        .allow_if(libc::SYS_openat, &[Condition::Bits { argument: 2, mask: libc::O_CREAT | libc::O_TRUNC, value: 0 }])
        .allow_if(libc::SYS_ioctl, &[Condition::Equals { argument: 1, value: GET_REPORT0 }])
        .allow_if(libc::SYS_fcntl, &[flags(libc::F_GETFD), flags(libc::F_SETFD)])
        .apply()
}

const SPEAK: &[i64] = &[libc::SYS_accept4, libc::SYS_shutdown];

const READ_FILES: &[i64] = &[libc::SYS_fstat, libc::SYS_lseek, libc::SYS_statx];
