// SPDX-License-Identifier: Apache-2.0
//! Descriptors handed from one process to another by number.
#![allow(unsafe_code, reason = "a descriptor known by number has no owner yet")]

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::SysError;

/// Takes descriptor `number`, which the parent left open for this process, and closes it on exec from now on.
///
/// Call it once per number, before anything else could own that number: at the top of `main`.
///
/// # Errors
/// [`SysError`] when it is not open.
pub fn inherited(number: RawFd) -> Result<OwnedFd, SysError> {
    // SAFETY: F_GETFD on any number is harmless; it fails when nothing is open there.
    let open = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if number < 3 || open < 0 {
        return Err(SysError { what: "take an inherited descriptor", source: std::io::Error::last_os_error() });
    }
    // SAFETY: it is open, and by this function's contract nothing else in the process owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(SysError::when("mark an inherited descriptor"))?;
    Ok(owned)
}
