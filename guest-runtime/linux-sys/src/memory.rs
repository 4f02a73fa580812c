// SPDX-License-Identifier: Apache-2.0
//! Memory that never leaves the process.

use nix::sys::{
    mman::{MlockAllFlags, mlockall},
    prctl,
};

use crate::SysError;

/// Locks every page as it is first used, now and later, and forbids dumps of the process and tracing by its own user.
///
/// # Errors
/// [`SysError`], for example when the limit on locked memory is too low.
pub fn lock() -> Result<(), SysError> {
    prctl::set_dumpable(false).map_err(SysError::when("forbid dumps"))?;
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault).map_err(SysError::when("lock memory"))
}

/// Forbids dumps of the process and tracing by its own user.
///
/// # Errors
/// [`SysError`].
pub fn forbid_dumps() -> Result<(), SysError> {
    prctl::set_dumpable(false).map_err(SysError::when("forbid dumps"))
}
