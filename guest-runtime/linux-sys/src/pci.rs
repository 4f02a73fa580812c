// SPDX-License-Identifier: Apache-2.0
//! Which PCI devices the host put into the machine. A host that hides one changes nothing here: evidence shows which there are.

use std::{fs, path::Path};

use crate::SysError;

/// The kind of a device, by its class code (PCI Code and ID Assignment, base class and subclass).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// 03.00 and 03.02: display and 3D controllers.
    Gpu,
    /// 06.80: other bridges, as an NVSwitch says of itself.
    Switch,
}

/// How many NVIDIA devices of a class there are.
///
/// # Errors
/// [`SysError`] when the devices cannot be listed, or one does not say what it is. A kernel without PCI has none.
pub fn nvidia(class: Class) -> Result<usize, SysError> {
    count(Path::new("/sys/bus/pci/devices"), class)
}

fn count(devices: &Path, class: Class) -> Result<usize, SysError> {
    let mut count = 0_usize;
    for device in fs::read_dir(devices).map_err(SysError::when("list PCI devices"))? {
        let device = device.map_err(SysError::when("list PCI devices"))?.path();
        let is = number(&device.join("vendor"))? == NVIDIA && class.has(number(&device.join("class"))?);
        count = count.saturating_add(usize::from(is));
    }
    Ok(count)
}

impl Class {
    /// Class codes have three bytes: base class, subclass, programming interface.
    const fn has(self, code: u32) -> bool {
        match self {
            Self::Gpu => matches!(code >> 8, 0x0300 | 0x0302),
            Self::Switch => code >> 8 == 0x0680,
        }
    }
}

fn number(file: &Path) -> Result<u32, SysError> {
    let what = "read what a PCI device is";
    let text = fs::read_to_string(file).map_err(SysError::when(what))?;
    let digits = text.trim_end().strip_prefix("0x").unwrap_or_default();
    u32::from_str_radix(digits, 16).map_err(|error| SysError { what, source: std::io::Error::other(error) })
}

const NVIDIA: u32 = 0x10de;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_counted_by_vendor_and_class() {
        let devices = tempfile::tempdir().unwrap();
        let add = |slot: &str, vendor: &str, class: &str| {
            let device = devices.path().join(slot);
            fs::create_dir(&device).unwrap();
            fs::write(device.join("vendor"), vendor).unwrap();
            fs::write(device.join("class"), class).unwrap();
        };
        add("0000:00:01.0", "0x1af4\n", "0x030000\n");
        assert_eq!(count(devices.path(), Class::Gpu).unwrap(), 0);
        add("0000:00:02.0", "0x10de\n", "0x030200\n");
        add("0000:00:03.0", "0x10de\n", "0x030000\n");
        // An audio function and a switch are no GPU.
        add("0000:00:03.1", "0x10de\n", "0x040300\n");
        add("0000:00:04.0", "0x10de\n", "0x068000\n");
        assert_eq!(count(devices.path(), Class::Gpu).unwrap(), 2);
        assert_eq!(count(devices.path(), Class::Switch).unwrap(), 1);
    }

    #[test]
    fn a_device_that_says_nothing_is_an_error() {
        let devices = tempfile::tempdir().unwrap();
        fs::create_dir(devices.path().join("0000:00:01.0")).unwrap();
        assert!(count(devices.path(), Class::Gpu).is_err());
        assert!(count(Path::new("/nonexistent"), Class::Gpu).is_err());
    }
}
