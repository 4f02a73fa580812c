// SPDX-License-Identifier: Apache-2.0
//! Taking devices from the host's drivers and giving them back (Linux, Documentation/driver-api/vfio.rst).

mod error;
mod recovery;

use serde::Serialize;
use types::Refusal;

use crate::busy::{Usage, usage};
use crate::group::{GroupError, iommu_group};
use crate::journal::{Entry, Journal, Phase};
use crate::pci::{DeviceKind, PciAddress, PciDevice, inventory};
use crate::tree::{HostTree, TreeError};

pub use error::BindError;
use recovery::{Undone, all_of};

/// Where writes to sysfs go: the tree itself, or in tests a tree that behaves like a kernel.
pub trait SysfsWriter {
    /// Writes `value` into an existing file.
    ///
    /// # Errors
    /// [`TreeError`].
    fn write(&self, path: &str, value: &str) -> Result<(), TreeError>;
}

impl SysfsWriter for HostTree {
    fn write(&self, path: &str, value: &str) -> Result<(), TreeError> {
        Self::write(self, path, value)
    }
}

/// Changes bindings, one process at a time.
pub struct Binder<'a> {
    tree: &'a HostTree,
    writer: &'a dyn SysfsWriter,
    journal: Journal,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Outcome {
    /// Devices whose driver changed.
    pub changed: Vec<PciAddress>,
    /// Devices that already were as asked.
    pub unchanged: Vec<PciAddress>,
    /// Devices that an interrupted earlier run had left half changed, and that are as before again.
    pub recovered: Vec<String>,
    /// Why others that it left half changed are still so: in use, or not to be restored. None of them was asked for now.
    pub not_recovered: Vec<Refusal>,
}

impl<'a> Binder<'a> {
    /// A binder that reads `tree` and writes through `writer`.
    #[must_use]
    pub fn new(tree: &'a HostTree, writer: &'a dyn SysfsWriter, journal: Journal) -> Self {
        Self { tree, writer, journal }
    }

    /// Binds the devices at `addresses`, and all that share their IOMMU groups, to `vfio-pci`.
    ///
    /// # Errors
    /// [`BindError`]; all checks come before the first change, and a failure undoes what was changed.
    pub fn bind(&mut self, addresses: &[PciAddress]) -> Result<Outcome, BindError> {
        self.change(addresses, Self::bind_devices)
    }

    /// Gives the devices at `addresses`, and all that share their IOMMU groups, back to the drivers that they had before
    /// [`Self::bind`], or to none.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn unbind(&mut self, addresses: &[PciAddress]) -> Result<Outcome, BindError> {
        self.change(addresses, Self::unbind_devices)
    }

    /// Gives back everything that this journal says was bound, but for the devices at `keep` and all that share their IOMMU
    /// groups; undoes what an interrupted run left half done. What is in use stays, and `not_recovered` says why: a later
    /// call gives it back.
    ///
    /// # Errors
    /// [`BindError`]: the journal or the devices can't be read, or one could not be restored.
    pub fn release(&mut self, keep: &[PciAddress]) -> Result<Outcome, BindError> {
        let Undone { restored, failed } = self.undo(self.journal.unfinished())?;
        let mut not_recovered: Vec<Refusal> = failed.iter().map(|(_, error)| error.refusal()).collect();
        let bound = self.journal.bound();
        if bound.is_empty() {
            return Ok(Outcome { recovered: restored, not_recovered, ..Outcome::default() });
        }
        let devices = inventory(self.tree)?;
        let mut kept = keep.to_vec();
        for &address in keep {
            // Of a device that is gone nothing else is kept.
            let members = iommu_group(&devices, address).map(|group| group.members).unwrap_or_default();
            kept.extend(members.iter().map(|member| member.address));
        }
        let mut entries = Vec::new();
        for entry in bound.into_iter().filter(|entry| !kept.iter().any(|kept| kept.to_string() == entry.address)) {
            let device = devices.iter().find(|device| device.address.to_string() == entry.address);
            match device.map_or(Ok(()), |device| self.refuse_busy(std::slice::from_ref(device))) {
                Ok(()) => entries.push(Entry { phase: Phase::Changing, ..entry }),
                Err(error) => not_recovered.push(error.refusal()),
            }
        }
        if !entries.is_empty() {
            self.journal.put(&entries)?;
        }
        let given_back = self.undo(entries)?.complete()?;
        let changed = given_back.iter().filter_map(|address| address.parse().ok()).collect();
        Ok(Outcome { changed, recovered: restored, not_recovered, ..Outcome::default() })
    }

    /// Recovers, then acts. What cannot be recovered stops only what is about the same devices.
    fn change(
        &mut self,
        addresses: &[PciAddress],
        action: fn(&mut Self, Vec<PciDevice>) -> Result<Outcome, BindError>,
    ) -> Result<Outcome, BindError> {
        let Undone { restored, failed } = self.undo(self.journal.unfinished())?;
        let result = self.selected(addresses).and_then(|devices| {
            let concerned = failed.iter().any(|(entry, _)| devices.iter().any(|d| d.address.to_string() == *entry));
            if concerned { Ok(None) } else { action(self, devices).map(Some) }
        });
        let failed: Vec<BindError> = failed.into_iter().map(|(_, error)| error).collect();
        match result {
            Ok(Some(outcome)) => {
                let not_recovered = failed.iter().map(BindError::refusal).collect();
                Ok(Outcome { recovered: restored, not_recovered, ..outcome })
            }
            Ok(None) => {
                all_of(failed)?;
                Ok(Outcome::default())
            }
            Err(error) => Err(error.and(failed)),
        }
    }

    fn bind_devices(&mut self, devices: Vec<PciDevice>) -> Result<Outcome, BindError> {
        let (unchanged, to_change): (Vec<_>, Vec<_>) = devices.into_iter().partition(is_bound);
        if !to_change.is_empty() && !self.tree.exists("sys/bus/pci/drivers/vfio-pci") {
            return Err(BindError::DriverMissing);
        }
        self.refuse_busy(&to_change)?;
        let entries: Vec<Entry> = to_change.iter().map(|device| entry_of(device, Phase::Changing)).collect();
        if !entries.is_empty() {
            self.journal.put(&entries)?;
        }
        for device in &to_change {
            if let Err(error) = self.take(device) {
                self.undo(entries)?.complete()?;
                return Err(error);
            }
        }
        let bound: Vec<Entry> = entries.into_iter().map(|entry| Entry { phase: Phase::Bound, ..entry }).collect();
        if !bound.is_empty() {
            self.journal.put(&bound)?;
        }
        Ok(Outcome { changed: addresses_of(&to_change), unchanged: addresses_of(&unchanged), ..Outcome::default() })
    }

    fn unbind_devices(&mut self, devices: Vec<PciDevice>) -> Result<Outcome, BindError> {
        let (to_change, unchanged): (Vec<_>, Vec<_>) = devices.into_iter().partition(is_bound);
        self.refuse_busy(&to_change)?;
        let former = |device: &PciDevice| match self.journal.entry(device.address) {
            Some(entry) => Entry { phase: Phase::Changing, ..entry.clone() },
            None => Entry {
                address: device.address.to_string(),
                phase: Phase::Changing,
                previous_driver: None,
                previous_override: None,
            },
        };
        let entries: Vec<Entry> = to_change.iter().map(former).collect();
        if !entries.is_empty() {
            self.journal.put(&entries)?;
        }
        self.undo(entries)?.complete()?;
        Ok(Outcome { changed: addresses_of(&to_change), unchanged: addresses_of(&unchanged), ..Outcome::default() })
    }

    fn selected(&self, addresses: &[PciAddress]) -> Result<Vec<PciDevice>, BindError> {
        let devices = inventory(self.tree)?;
        let mut selected: Vec<PciDevice> = Vec::new();
        for &address in addresses {
            let device = devices.iter().find(|d| d.address == address).ok_or(GroupError::NotFound(address))?;
            if matches!(device.kind, DeviceKind::Other | DeviceKind::Bridge) {
                return Err(BindError::NotAGpu(address));
            }
            for member in iommu_group(&devices, address)?.members {
                if member.boot_display {
                    return Err(BindError::BootDisplay(member.address));
                }
                if !selected.contains(&member) {
                    selected.push(member);
                }
            }
        }
        Ok(selected)
    }

    fn refuse_busy(&self, devices: &[PciDevice]) -> Result<(), BindError> {
        let used: Usage = usage(self.tree, devices);
        let Some(address) = devices.first().map(|device| device.address) else { return Ok(()) };
        if let Some(holder) = used.holders.first() {
            let more = used.holders.len() - 1;
            let others = if more > 0 { format!(" and {more} more") } else { String::new() };
            let by = format!("process {} has {} open{others}", holder.pid, holder.node);
            return Err(BindError::Busy { address, by, unseen: false });
        }
        if used.unseen > 0 {
            let by = format!("the open files of {} processes cannot be seen", used.unseen);
            return Err(BindError::Busy { address, by, unseen: true });
        }
        Ok(())
    }

    fn take(&self, device: &PciDevice) -> Result<(), BindError> {
        let address = device.address;
        self.writer.write(&address.file("driver_override"), "vfio-pci\n")?;
        if let Some(driver) = &device.driver {
            self.writer.write(&driver_file(driver, "unbind"), &address.to_string())?;
        }
        self.writer.write("sys/bus/pci/drivers_probe", &address.to_string())?;
        match self.driver(&address.to_string()) {
            Some(driver) if driver == VFIO => Ok(()),
            found => Err(BindError::Failed {
                address,
                driver: VFIO.to_owned(),
                reason: format!("its driver is {}", found.as_deref().unwrap_or("none")),
            }),
        }
    }

    fn driver(&self, address: &str) -> Option<String> {
        self.tree.link_name(&format!("sys/bus/pci/devices/{address}/driver"))
    }
}

fn is_bound(device: &PciDevice) -> bool {
    device.driver.as_deref() == Some(VFIO)
}

fn addresses_of(devices: &[PciDevice]) -> Vec<PciAddress> {
    devices.iter().map(|device| device.address).collect()
}

fn entry_of(device: &PciDevice, phase: Phase) -> Entry {
    Entry {
        address: device.address.to_string(),
        phase,
        previous_driver: device.driver.clone(),
        previous_override: device.driver_override.clone(),
    }
}

fn driver_file(driver: &str, file: &str) -> String {
    format!("sys/bus/pci/drivers/{driver}/{file}")
}

/// The driver that hands devices to guests.
const VFIO: &str = "vfio-pci";
