// SPDX-License-Identifier: Apache-2.0
//! Device nodes that no driver makes by itself.

use std::{fs, path::Path};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::{SysError, mounts};

/// Makes a character device's node that root owns and the group `group` may use.
///
/// # Errors
/// [`SysError`], also when something stands there already.
pub fn character(path: &Path, major: u32, minor: u32, group: u32) -> Result<(), SysError> {
    let (owner, device) = (Mode::S_IRUSR | Mode::S_IWUSR, makedev(major.into(), minor.into()));
    mknod(path, SFlag::S_IFCHR, owner, device).map_err(SysError::when("make a device node"))?;
    mounts::give(path, 0, group, 0o660)
}

/// The number that the kernel gave to a character driver when it was loaded; `None` when there is no such driver.
///
/// # Errors
/// [`SysError`] when the list cannot be read.
pub fn major_of(driver: &str) -> Result<Option<u32>, SysError> {
    let text = fs::read_to_string("/proc/devices").map_err(SysError::when("list drivers"))?;
    Ok(major_in(&text, driver))
}

/// Lines of a number and a name, characters first, blocks after an empty line.
fn major_in(text: &str, driver: &str) -> Option<u32> {
    let characters = text.lines().take_while(|line| !line.starts_with("Block"));
    characters.filter_map(|line| line.trim().split_once(' ')).find(|(_, name)| *name == driver)?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_found_among_characters_alone() {
        let text = "Character devices:\n  1 mem\n195 nvidia\n510 nvidia-uvm\n\nBlock devices:\n254 virtblk\n";
        assert_eq!(major_in(text, "nvidia"), Some(195));
        assert_eq!(major_in(text, "nvidia-uvm"), Some(510));
        assert_eq!(major_in(text, "virtblk"), None);
        assert_eq!(major_in(text, "nvid"), None);
        assert_eq!(major_of("mem").unwrap(), Some(1));
    }
}
