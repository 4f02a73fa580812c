// SPDX-License-Identifier: Apache-2.0
//! Pseudo file systems, and the root that the image's measured hash verifies. Nothing that a host made is ever mounted.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use nix::mount::{MsFlags, mount};

use crate::SysError;

/// Mounts the kernel's own file system `kind` at `target`, making the directory where it is missing.
///
/// # Errors
/// [`SysError`].
pub fn pseudo(kind: &str, target: &str, options: Option<&str>) -> Result<(), SysError> {
    directory(target, 0o755)?;
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    if kind != "devtmpfs" {
        flags |= MsFlags::MS_NODEV;
    }
    mount(Some(kind), target, Some(kind), flags, options).map_err(SysError::when("mount a pseudo file system"))
}

/// Mounts the read-only file system on a device that [`crate::verity`] made. Programs in it may be executed; none of them gets
/// another user's rights, and no device in it is one.
///
/// # Errors
/// [`SysError`].
pub fn verified(device: &Path, target: &str) -> Result<(), SysError> {
    directory(target, 0o755)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(device), target, Some("erofs"), flags, None::<&str>).map_err(SysError::when("mount the verified root"))
}

/// Remounts the root file system read-only.
///
/// # Errors
/// [`SysError`].
pub fn root_read_only() -> Result<(), SysError> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(SysError::when("make the root read-only"))
}

/// Makes a directory with exactly this mode; one that exists keeps its contents.
///
/// # Errors
/// [`SysError`].
pub fn directory(path: &str, mode: u32) -> Result<(), SysError> {
    if !Path::new(path).is_dir() {
        fs::create_dir(path).map_err(SysError::when("make a directory"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(SysError::when("set a directory's mode"))?;
    }
    Ok(())
}

/// Gives a file or directory to a user and group and sets its mode.
///
/// # Errors
/// [`SysError`].
pub fn give(path: &Path, uid: u32, gid: u32, mode: u32) -> Result<(), SysError> {
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(SysError::when("change an owner"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(SysError::when("change a mode"))
}
