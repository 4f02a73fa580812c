// SPDX-License-Identifier: Apache-2.0
//! Putting devices back to what the journal says that they were.

use crate::journal::Entry;
use crate::pci::{DeviceKind, PciDevice, inventory};

use super::{BindError, Binder, VFIO, driver_file, is_bound};

/// What became of entries of the journal.
pub(super) struct Undone {
    /// Addresses of devices that are as before; the journal has forgotten them.
    pub(super) restored: Vec<String>,
    /// Addresses of the others, which the journal keeps, and why.
    pub(super) failed: Vec<(String, BindError)>,
}

impl Undone {
    /// The restored, or all failures.
    pub(super) fn complete(self) -> Result<Vec<String>, BindError> {
        all_of(self.failed.into_iter().map(|(_, error)| error).collect())?;
        Ok(self.restored)
    }
}

/// All of the errors as one, if there is any.
pub(super) fn all_of(errors: Vec<BindError>) -> Result<(), BindError> {
    let mut errors = errors.into_iter();
    match errors.next() {
        Some(first) => Err(first.and(errors.collect())),
        None => Ok(()),
    }
}

impl Binder<'_> {
    /// Undoes what an interrupted run left half done. A device that is in use stays as it is: it may have become part of
    /// a running guest.
    ///
    /// # Errors
    /// [`BindError`], after everything else was undone; the journal keeps the entries of devices that could not be.
    pub fn recover(&mut self) -> Result<Vec<String>, BindError> {
        self.undo(self.journal.unfinished())?.complete()
    }

    /// Restores the devices of `entries`, the last first, one whatever becomes of another.
    pub(super) fn undo(&mut self, entries: Vec<Entry>) -> Result<Undone, BindError> {
        let mut undone = Undone { restored: Vec::new(), failed: Vec::new() };
        if entries.is_empty() {
            return Ok(undone);
        }
        let devices = inventory(self.tree)?;
        for entry in entries.iter().rev() {
            match self.restore(entry, &devices) {
                Ok(()) => undone.restored.push(entry.address.clone()),
                Err(error) => undone.failed.push((entry.address.clone(), error)),
            }
        }
        undone.restored.reverse();
        if !undone.restored.is_empty() {
            self.journal.remove(&undone.restored)?;
        }
        Ok(undone)
    }

    /// Makes a device's driver and override those of the entry, whatever they are now.
    fn restore(&self, entry: &Entry, devices: &[PciDevice]) -> Result<(), BindError> {
        let Some(device) = devices.iter().find(|device| device.address.to_string() == entry.address) else {
            // Unplugged: there is nothing to put back.
            return Ok(());
        };
        if matches!(device.kind, DeviceKind::Other | DeviceKind::Bridge) {
            return Err(BindError::ForeignEntry(device.address));
        }
        // A driver that was unloaded cannot have it back.
        let loaded = |driver: &&str| self.tree.exists(&format!("sys/bus/pci/drivers/{driver}"));
        let wanted = entry.previous_driver.as_deref().filter(loaded);
        if device.driver.is_some() && device.driver.as_deref() != wanted {
            self.refuse_busy(&reached_with(device, devices))?;
        }
        let failed = |reason: String| BindError::NotRestored {
            address: entry.address.clone(),
            driver: wanted.unwrap_or("none").to_owned(),
            reason,
        };
        let write = |path: &str, value: &str| self.writer.write(path, value).map_err(|error| failed(error.to_string()));
        let previous = entry.previous_override.as_deref().unwrap_or_default();
        write(&device.address.file("driver_override"), &format!("{previous}\n"))?;
        let current = self.driver(&entry.address);
        if current.as_deref() != wanted {
            if let Some(current) = &current {
                write(&driver_file(current, "unbind"), &entry.address)?;
            }
            if let Some(wanted) = wanted {
                write(&driver_file(wanted, "bind"), &entry.address)?;
            }
        }
        let now = self.driver(&entry.address);
        if now.as_deref() == wanted {
            return Ok(());
        }
        Err(failed(format!("its driver is {}", now.as_deref().unwrap_or("none"))))
    }
}

/// The device, and those of its IOMMU group that a guest has together with it.
fn reached_with(device: &PciDevice, devices: &[PciDevice]) -> Vec<PciDevice> {
    let together = |other: &&PciDevice| {
        other.address != device.address
            && is_bound(other)
            && device.driver.as_deref() == Some(VFIO)
            && device.iommu_group.is_some()
            && other.iommu_group == device.iommu_group
    };
    std::iter::once(device).chain(devices.iter().filter(together)).cloned().collect()
}
