// SPDX-License-Identifier: Apache-2.0
//! Interfaces of the kernel that nobody needs any more are closed, and PID 1 confines itself. What drives GPUs comes before: it
//! is the last code that enters the kernel.

use linux_sys::{SysError, kernel, memory, mounts};
use types::GuestConfig;

use crate::boot::{Code, Fails as _};
use crate::{
    boot::{Boot, Failure},
    confinement::{Stage, confine},
    gpus::Devices,
};

pub(crate) fn run(boot: &mut Boot, config: &GuestConfig) -> Result<(), Failure> {
    let expected = config.gpus.0;
    let root = boot.allowances.root;
    let devices = root.map_or_else(|| Devices::none(expected), |root| Devices::attach(&root, expected))?;
    if root.is_some() {
        // A kernel with modules cannot force this from its start. From here on it loads none and hides its memory from root.
        kernel::close_module_loading().map_err(Code::ModulesFailed.because())?;
        kernel::raise_lockdown().map_err(Code::LockdownFailed.because())?;
    }
    kernel::close_device_probing().map_err(Code::LockdownFailed.because())?;
    close().map_err(Code::LockdownFailed.because())?;
    devices.start_daemons(&mut boot.children, boot.console.is_open())?;
    confine(Stage::Boot { shared_libraries: root.is_some() }).map_err(Code::LockdownFailed.because())
}

fn close() -> Result<(), SysError> {
    kernel::lock_down()?;
    mounts::root_read_only()?;
    // The model key passes through this process.
    memory::lock()
}
