// SPDX-License-Identifier: Apache-2.0
//! IOMMU groups: what the hardware cannot keep apart goes to a guest together or not at all.

use crate::pci::{DeviceKind, PciAddress, PciDevice};

/// The devices of one group that a guest gets together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IommuGroup {
    /// Its number.
    pub number: u32,
    /// Its functions without bridges, which stay with the host.
    pub members: Vec<PciDevice>,
}

/// Why a device cannot be given to a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// No PCI function is there.
    #[error("no PCI function has the address {0}")]
    NotFound(PciAddress),
    /// Without an IOMMU the device could read all of the host's memory.
    #[error("{0} is in no IOMMU group")]
    NoGroup(PciAddress),
    /// Another device would have to go along.
    #[error("{address} shares IOMMU group {group} with {other}, which is no part of a GPU")]
    Shared {
        /// The device that was asked for.
        address: PciAddress,
        /// The group.
        group: u32,
        /// What else is in it.
        other: PciAddress,
    },
}

/// The group of the device at `address`: the device, its companion functions, and other GPUs or switches in it.
///
/// # Errors
/// [`GroupError`] when the device is not there, has no group, or shares it with a device that is neither a bridge nor a
/// part of a GPU.
pub fn iommu_group(devices: &[PciDevice], address: PciAddress) -> Result<IommuGroup, GroupError> {
    let device = devices.iter().find(|d| d.address == address).ok_or(GroupError::NotFound(address))?;
    let number = device.iommu_group.ok_or(GroupError::NoGroup(address))?;
    let of_group = devices.iter().filter(|d| d.iommu_group == Some(number) && d.kind != DeviceKind::Bridge);
    let members: Vec<PciDevice> = of_group.cloned().collect();
    match members.iter().find(|d| d.kind == DeviceKind::Other) {
        Some(other) => Err(GroupError::Shared { address, group: number, other: other.address }),
        None => Ok(IommuGroup { number, members }),
    }
}
