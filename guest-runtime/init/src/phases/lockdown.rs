// SPDX-License-Identifier: Apache-2.0
//! Interfaces of the kernel that nobody needs any more are closed.

use linux_sys::{SysError, kernel, memory, mounts};

use crate::boot::Failure;
use crate::boot::{Code, Fails as _};

pub(crate) fn run() -> Result<(), Failure> {
    close().map_err(Code::LockdownFailed.because())
}

fn close() -> Result<(), SysError> {
    kernel::lock_down()?;
    mounts::root_read_only()?;
    // The model key passes through this process.
    memory::lock()
}
