// SPDX-License-Identifier: Apache-2.0
//! Making a device's registers readable for a moment, and leaving it as it was.

use std::os::unix::fs::FileExt as _;

use crate::pci::PciAddress;
use crate::tree::{HostTree, TreeError};

/// While it lives the device is awake and answers at its base address registers.
///
/// The command register is written in configuration space, as sysfs' `enable` refuses devices that have a driver.
#[derive(Debug)]
pub struct RegisterAccess<'a> {
    tree: &'a HostTree,
    address: PciAddress,
    power: Option<String>,
    command: Option<u16>,
}

/// Why a device could not be woken.
#[derive(Debug, thiserror::Error)]
pub enum RegisterAccessError {
    /// A file of the device.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Configuration space.
    #[error("{address}: the configuration space cannot be read or written")]
    Configuration {
        /// The device.
        address: PciAddress,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// All ones: the device is off the bus.
    #[error("{address}: the device does not answer")]
    Silent {
        /// The device.
        address: PciAddress,
    },
}

impl<'a> RegisterAccess<'a> {
    /// Wakes the device and turns on its memory decoding.
    ///
    /// # Errors
    /// [`RegisterAccessError`]; what was changed is undone.
    pub fn take(tree: &'a HostTree, address: PciAddress) -> Result<Self, RegisterAccessError> {
        let mut access = Self { tree, address, power: None, command: None };
        let control = address.file("power/control");
        match tree.text(&control) {
            Ok(value) if value != "on" => {
                tree.write(&control, "on")?;
                access.power = Some(value);
            }
            Ok(_) => {}
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error.into()),
        }
        let command = access.command()?;
        if command == u16::MAX {
            return Err(RegisterAccessError::Silent { address });
        }
        if command & MEMORY == 0 {
            access.set_command(command | MEMORY)?;
            access.command = Some(command);
        }
        Ok(access)
    }

    /// Turns memory decoding on again after a reset.
    ///
    /// # Errors
    /// [`RegisterAccessError`].
    pub fn again(&self) -> Result<(), RegisterAccessError> {
        let command = self.command()?;
        if command == u16::MAX {
            return Err(RegisterAccessError::Silent { address: self.address });
        }
        if command & MEMORY == 0 { self.set_command(command | MEMORY) } else { Ok(()) }
    }

    fn command(&self) -> Result<u16, RegisterAccessError> {
        let mut bytes = [0; 2];
        let file = self.tree.open_read_write(&self.address.file("config"))?;
        file.read_exact_at(&mut bytes, COMMAND)
            .map_err(|source| RegisterAccessError::Configuration { address: self.address, source })?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn set_command(&self, command: u16) -> Result<(), RegisterAccessError> {
        let file = self.tree.open_read_write(&self.address.file("config"))?;
        file.write_all_at(&command.to_le_bytes(), COMMAND)
            .map_err(|source| RegisterAccessError::Configuration { address: self.address, source })
    }
}

impl Drop for RegisterAccess<'_> {
    /// The device may be gone or reset: what cannot be put back needs no putting back.
    fn drop(&mut self) {
        if let Some(command) = self.command.take() {
            let _ = self.set_command(command);
        }
        if let Some(power) = self.power.take() {
            let _ = self.tree.write(&self.address.file("power/control"), &power);
        }
    }
}

/// Offset of the command register (PCI Local Bus Specification 3.0, section 6.2.2).
const COMMAND: u64 = 4;
/// Memory space enable.
const MEMORY: u16 = 1 << 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn device(config: &[u8]) -> (tempfile::TempDir, HostTree, PciAddress) {
        let root = tempfile::tempdir().unwrap();
        let address: PciAddress = "b8:00.0".parse().unwrap();
        let directory = root.path().join(address.directory());
        std::fs::create_dir_all(directory.join("power")).unwrap();
        std::fs::write(directory.join("power/control"), "auto\n").unwrap();
        std::fs::write(directory.join("config"), config).unwrap();
        let tree = HostTree::open(root.path()).unwrap();
        (root, tree, address)
    }

    #[test]
    fn the_device_is_left_as_it_was() {
        let (root, tree, address) = device(&[0xde, 0x10, 0x30, 0x23, 0x00, 0x04, 0, 0]);
        let config = || std::fs::read(root.path().join(address.file("config"))).unwrap();
        let access = RegisterAccess::take(&tree, address).unwrap();
        assert_eq!(config().get(4..6).unwrap(), [0x02, 0x04]);
        assert_eq!(tree.text(&address.file("power/control")).unwrap(), "on");
        std::fs::write(root.path().join(address.file("config")), [0xde, 0x10, 0x30, 0x23, 0, 0, 0, 0]).unwrap();
        access.again().unwrap();
        assert_eq!(config().get(4..6).unwrap(), [0x02, 0x00]);
        drop(access);
        assert_eq!(config().get(4..6).unwrap(), [0x00, 0x04]);
        assert_eq!(tree.text(&address.file("power/control")).unwrap(), "auto");
    }

    #[test]
    fn a_device_off_the_bus_is_named() {
        let (_root, tree, address) = device(&[0xff; 64]);
        assert!(matches!(RegisterAccess::take(&tree, address), Err(RegisterAccessError::Silent { .. })));
        assert_eq!(tree.text(&address.file("power/control")).unwrap(), "auto");
        let (_root, tree, address) = device(&[0xde]);
        assert!(matches!(RegisterAccess::take(&tree, address), Err(RegisterAccessError::Configuration { .. })));
    }
}
