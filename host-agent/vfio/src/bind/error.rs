// SPDX-License-Identifier: Apache-2.0
//! Why bindings were not changed, and what to do about it.

use types::Refusal;

use crate::group::GroupError;
use crate::journal::JournalError;
use crate::pci::PciAddress;
use crate::tree::TreeError;

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
    /// The journal names a device that is never handed to guests: nothing is done to it.
    #[error("the journal of bindings names {0}, which is no NVIDIA GPU or NVSwitch")]
    ForeignEntry(PciAddress),
    /// More than one of these.
    #[error("{first}; and {} more", others.len())]
    Several {
        /// The first.
        first: Box<BindError>,
        /// All others.
        others: Vec<BindError>,
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
    /// All refusals; [`Self::refusal`] is the first.
    #[must_use]
    pub fn refusals(&self) -> Vec<Refusal> {
        match self {
            Self::Several { first, others } => {
                std::iter::once(first.as_ref()).chain(others).flat_map(Self::refusals).collect()
            }
            one => vec![one.refusal()],
        }
    }

    pub(super) fn and(self, mut others: Vec<Self>) -> Self {
        match self {
            one if others.is_empty() => one,
            Self::Several { first, others: mut more } => {
                more.append(&mut others);
                Self::Several { first, others: more }
            }
            one => Self::Several { first: Box::new(one), others },
        }
    }

    /// The refusal with its stable code and fix.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let (code, field, fix) = match self {
            Self::Several { first, .. } => return first.refusal(),
            Self::ForeignEntry(address) => (
                "journal_entry_foreign",
                address.to_string(),
                "remove it from gpu-bindings.json in the state directory, and find out who wrote it".to_owned(),
            ),
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
