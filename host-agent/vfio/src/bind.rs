// SPDX-License-Identifier: Apache-2.0
//! Taking devices from the host's drivers and giving them back (Linux, Documentation/driver-api/vfio.rst).

use serde::Serialize;
use types::Refusal;

use crate::busy::{Usage, usage};
use crate::group::{GroupError, iommu_group};
use crate::journal::{Entry, Journal, JournalError, Phase};
use crate::pci::{DeviceKind, PciAddress, PciDevice, inventory};
use crate::tree::{HostTree, TreeError};

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
}

/// Why bindings were not changed. Nothing is left half changed unless [`BindError::NotRestored`] says so.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The group rule.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Only GPUs, their companions and NVSwitches are handed to guests.
    #[error("{0} is no NVIDIA GPU or NVSwitch")]
    NotAGpu(PciAddress),
    /// The firmware's display stays with the host.
    #[error("{0} shows the host's boot messages")]
    BootDisplay(PciAddress),
    /// Somebody has it open.
    #[error("{address} is in use: {by}")]
    Busy {
        /// The device that was asked for.
        address: PciAddress,
        /// Who, or why it is not known.
        by: String,
        /// Whether it is only not known, for lack of permission.
        unseen: bool,
    },
    /// The kernel has no `vfio-pci`.
    #[error("the driver vfio-pci is not loaded")]
    DriverMissing,
    /// sysfs does not let us.
    #[error("{path}: permission denied")]
    Permission {
        /// The file.
        path: String,
    },
    /// The driver did not take the device, or sysfs refused otherwise; everything is as before.
    #[error("{address} could not be bound to {driver}: {reason}")]
    Failed {
        /// The device.
        address: PciAddress,
        /// The driver.
        driver: String,
        /// What happened.
        reason: String,
    },
    /// It failed, and putting it back failed, too. The journal keeps it for the next run.
    #[error("{address} could not be put back to {driver}: {reason}")]
    NotRestored {
        /// The device.
        address: String,
        /// The driver it had.
        driver: String,
        /// What happened.
        reason: String,
    },
    /// Reading sysfs.
    #[error(transparent)]
    Tree(TreeError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl From<TreeError> for BindError {
    fn from(error: TreeError) -> Self {
        match &error {
            TreeError::Io { path, .. } if error.is_forbidden() => Self::Permission { path: path.clone() },
            _ => Self::Tree(error),
        }
    }
}

impl BindError {
    /// The refusal with its stable code and fix.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let (code, field, fix) = match self {
            Self::Group(GroupError::NotFound(a)) => {
                ("gpu_not_found", a.to_string(), "list what is there: host-agent gpu list".to_owned())
            }
            Self::Group(GroupError::NoGroup(a)) => (
                "iommu_group_missing",
                a.to_string(),
                "enable VT-d in the firmware, add intel_iommu=on to the kernel command line, reboot".to_owned(),
            ),
            Self::Group(GroupError::Shared { address, .. }) => (
                "iommu_group_shared",
                address.to_string(),
                "enable ACS in the firmware, or put the card into a slot with a root port of its own".to_owned(),
            ),
            Self::NotAGpu(a) => ("not_a_gpu", a.to_string(), "name a GPU of host-agent gpu list".to_owned()),
            Self::BootDisplay(a) => (
                "boot_display",
                a.to_string(),
                "set the primary display to the onboard controller in the firmware, reboot".to_owned(),
            ),
            Self::Busy { address, unseen: true, .. } => {
                ("permission_missing", address.to_string(), "run it as root".to_owned())
            }
            Self::Busy { address, .. } => (
                "gpu_busy",
                address.to_string(),
                "stop what uses it: the guest, or systemctl stop nvidia-persistenced nvidia-fabricmanager".to_owned(),
            ),
            Self::DriverMissing => ("vfio_pci_missing", "vfio-pci".to_owned(), "modprobe vfio-pci".to_owned()),
            Self::Permission { path } => ("permission_missing", path.clone(), "run it as root".to_owned()),
            Self::Failed { address, .. } => {
                ("bind_failed", address.to_string(), "look at the kernel's messages: dmesg | tail".to_owned())
            }
            Self::NotRestored { address, .. } => (
                "restore_failed",
                address.clone(),
                "run the command again; if it fails again, reboot: bindings do not outlive the kernel".to_owned(),
            ),
            Self::Tree(_) => {
                ("sysfs_unreadable", "sysfs".to_owned(), "run it on the host, not in a container".to_owned())
            }
            Self::Journal(JournalError::Locked { .. }) => {
                ("bindings_locked", "state-dir".to_owned(), "wait for the other host-agent to end".to_owned())
            }
            Self::Journal(JournalError::Directory { .. }) => (
                "state_directory_open_to_others",
                "state-dir".to_owned(),
                "name a directory that belongs to root and that only root can write".to_owned(),
            ),
            Self::Journal(_) => {
                ("journal_unusable", "state-dir".to_owned(), "repair or remove the file named here".to_owned())
            }
        };
        Refusal::new(code, &field, self.to_string(), fix)
    }
}

impl<'a> Binder<'a> {
    /// A binder that reads `tree` and writes through `writer`.
    #[must_use]
    pub fn new(tree: &'a HostTree, writer: &'a dyn SysfsWriter, journal: Journal) -> Self {
        Self { tree, writer, journal }
    }

    /// Undoes what an interrupted run left half done.
    ///
    /// # Errors
    /// [`BindError::NotRestored`]: the journal keeps the entry.
    pub fn recover(&mut self) -> Result<Vec<String>, BindError> {
        let unfinished = self.journal.unfinished();
        for entry in unfinished.iter().rev() {
            self.restore(entry)?;
        }
        let addresses: Vec<String> = unfinished.into_iter().map(|entry| entry.address).collect();
        if !addresses.is_empty() {
            self.journal.remove(&addresses)?;
        }
        Ok(addresses)
    }

    /// Binds the devices at `addresses`, and all that share their IOMMU groups, to `vfio-pci`.
    ///
    /// # Errors
    /// [`BindError`]; all checks come before the first change, and a failure undoes what was changed.
    pub fn bind(&mut self, addresses: &[PciAddress]) -> Result<Outcome, BindError> {
        let recovered = self.recover()?;
        let devices = self.selected(addresses)?;
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
                self.recover()?;
                return Err(error);
            }
        }
        let bound: Vec<Entry> = entries.into_iter().map(|entry| Entry { phase: Phase::Bound, ..entry }).collect();
        if !bound.is_empty() {
            self.journal.put(&bound)?;
        }
        Ok(Outcome { changed: addresses_of(&to_change), unchanged: addresses_of(&unchanged), recovered })
    }

    /// Gives the devices at `addresses`, and all that share their IOMMU groups, back to the drivers that they had before
    /// [`Self::bind`], or to none.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn unbind(&mut self, addresses: &[PciAddress]) -> Result<Outcome, BindError> {
        let recovered = self.recover()?;
        let (to_change, unchanged): (Vec<_>, Vec<_>) = self.selected(addresses)?.into_iter().partition(is_bound);
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
        self.recover()?;
        Ok(Outcome { changed: addresses_of(&to_change), unchanged: addresses_of(&unchanged), recovered })
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

    /// Makes a device's driver and override those of the entry, whatever they are now.
    fn restore(&self, entry: &Entry) -> Result<(), BindError> {
        let directory = format!("sys/bus/pci/devices/{}", entry.address);
        if !self.tree.exists(&directory) {
            // Unplugged: there is nothing to put back.
            return Ok(());
        }
        let wanted = entry.previous_driver.as_deref();
        let failed = |reason: String| BindError::NotRestored {
            address: entry.address.clone(),
            driver: wanted.unwrap_or("none").to_owned(),
            reason,
        };
        let write = |path: &str, value: &str| self.writer.write(path, value).map_err(|error| failed(error.to_string()));
        let previous = entry.previous_override.as_deref().unwrap_or_default();
        write(&format!("{directory}/driver_override"), &format!("{previous}\n"))?;
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
