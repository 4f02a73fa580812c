// SPDX-License-Identifier: Apache-2.0
//! Disks by their serial. The host chooses serials, so a serial only says which bytes to parse, never to trust them.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use crate::SysError;

/// Opens, for reading, the only disk whose serial is `serial`.
///
/// # Errors
/// [`BlockError`].
pub fn open_by_serial(serial: &str) -> Result<File, BlockError> {
    let name = name_by_serial(serial)?;
    File::open(Path::new("/dev").join(name)).map_err(SysError::when("open a disk")).map_err(BlockError::Sys)
}

/// The kernel's name of the only disk whose serial is `serial`.
pub(crate) fn name_by_serial(serial: &str) -> Result<PathBuf, BlockError> {
    find(Path::new("/sys/class/block"), serial)
}

/// Why no disk was opened.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// No disk has the serial.
    #[error("no disk has the serial that was asked for")]
    Missing,
    /// More than one disk has it.
    #[error("more than one disk has the serial that was asked for")]
    Ambiguous,
    /// A system call failed.
    #[error(transparent)]
    Sys(SysError),
}

fn find(class: &Path, serial: &str) -> Result<PathBuf, BlockError> {
    let entries = fs::read_dir(class).map_err(SysError::when("list disks")).map_err(BlockError::Sys)?;
    let mut found = None;
    for entry in entries.flatten() {
        if serial_of(&entry.path()).is_some_and(|s| s == serial.as_bytes())
            && found.replace(PathBuf::from(entry.file_name())).is_some()
        {
            return Err(BlockError::Ambiguous);
        }
    }
    found.ok_or(BlockError::Missing)
}

/// At most 20 bytes by the virtio specification (section 5.2.6.1); anything longer is no serial.
fn serial_of(disk: &Path) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    File::open(disk.join("serial")).ok()?.take(64).read_to_end(&mut text).ok()?;
    let end = text.iter().rposition(|b| !matches!(b, b'\n' | b' ' | 0)).map_or(0, |last| last.saturating_add(1));
    text.truncate(end);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_serial_names_one_disk() {
        let class = tempfile::tempdir().unwrap();
        for (name, serial) in [("vda", "config\n"), ("vdb", "model"), ("vdc", "model"), ("vdd", "config-2")] {
            fs::create_dir(class.path().join(name)).unwrap();
            fs::write(class.path().join(name).join("serial"), serial).unwrap();
        }
        fs::create_dir(class.path().join("vde")).unwrap();
        assert_eq!(find(class.path(), "config").unwrap(), PathBuf::from("vda"));
        assert!(matches!(find(class.path(), "model"), Err(BlockError::Ambiguous)));
        assert!(matches!(find(class.path(), "conf"), Err(BlockError::Missing)));
        assert!(matches!(find(class.path(), ""), Err(BlockError::Missing)));
    }
}
