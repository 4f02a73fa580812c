// SPDX-License-Identifier: Apache-2.0
//! Pseudo file systems, and directories in memory for what the processes share.

use std::path::Path;

use linux_sys::{SysError, memory, mounts};

use crate::boot::{Code, Fails as _};
use crate::{
    boot::{Boot, Failure},
    console::{Allowances, Console},
    users,
};

pub(crate) fn run(boot: &mut Boot) -> Result<(), Failure> {
    memory::prepare().map_err(Code::MountFailed.because())?;
    mount().map_err(Code::MountFailed.because())?;
    boot.allowances = Allowances::read()?;
    boot.console = Console::open(boot.allowances);
    Ok(())
}

/// Mounts what every guest has. Public for tests that look round in a guest.
///
/// # Errors
/// [`SysError`] at the first that fails.
pub fn mount() -> Result<(), SysError> {
    // A process sees no other user's processes.
    mounts::pseudo("proc", "/proc", Some("hidepid=2"))?;
    mounts::pseudo("sysfs", "/sys", None)?;
    mounts::pseudo("devtmpfs", "/dev", None)?;
    mounts::pseudo("configfs", "/sys/kernel/config", None)?;
    mounts::pseudo("tmpfs", "/run", Some("mode=0755,size=1m"))?;
    mounts::pseudo("tmpfs", MODEL, Some("mode=0750,size=95%,huge=within_size"))?;
    mounts::give(Path::new(MODEL), 0, users::ENGINE, 0o750)?;
    // What the engine makes here belongs to serve's group, by the directory's set-group-id bit.
    mounts::directory(ENGINE, 0o755)?;
    mounts::give(Path::new(ENGINE), users::ENGINE, users::SERVE, 0o2750)
}

/// The decrypted model, readable by the engine alone.
pub(crate) const MODEL: &str = "/run/model";
/// Where the engine binds its socket.
pub(crate) const ENGINE: &str = "/run/engine";
