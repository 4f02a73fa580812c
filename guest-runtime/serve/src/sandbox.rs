// SPDX-License-Identifier: Apache-2.0
//! The API process's seccomp filter.

use linux_sys::seccomp::{Condition, Filter, SeccompError};

/// Confines the process once it listens: it can accept connections, speak on them, and make Unix sockets (each handshake's
/// signature is asked for over one). It opens no file, listens on nothing more, starts nothing, and reaches neither vsock
/// nor any other kind of socket; Landlock forbids connecting by TCP.
///
/// Call it when all that is opened by name has been opened.
///
/// # Errors
/// [`ConfineError`]; then the process must not go on.
pub fn confine() -> Result<(), ConfineError> {
    // A static program reads random numbers from a file, which the library opens at the first one.
    getrandom::fill(&mut [0; 1]).map_err(|_| ConfineError::Randomness)?;
    let flags = |command: i32| Condition::Equals { argument: 1, value: command.cast_unsigned() };
    let unix = Condition::Equals { argument: 0, value: libc::AF_UNIX.cast_unsigned() };
    Filter::common()
        .allow(SPEAK)
        // The TLS library looks for a device of other hypervisors, which no guest has, at its first random number.
        .refuse(&[libc::SYS_newfstatat])
        .allow_if(libc::SYS_socket, &[unix])
        .allow_if(libc::SYS_fcntl, &[flags(libc::F_GETFD), flags(libc::F_SETFD), flags(libc::F_GETFL)])
        .apply()?;
    Ok(())
}

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The kernel's generator gave nothing.
    #[error("no randomness")]
    Randomness,
    /// The filter.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

const SPEAK: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];
