// SPDX-License-Identifier: Apache-2.0
//! What hands devices to guests.

use crate::host::Host;
use crate::report::Finding;

pub(super) fn enabled(host: &Host<'_>) -> Option<Finding> {
    const FIX: &str = "enable VT-d in the firmware, add intel_iommu=on to GRUB_CMDLINE_LINUX in /etc/default/grub, run update-grub, reboot";
    if !host.wants_gpus() {
        return None;
    }
    let units = host.tree.entries("sys/class/iommu").unwrap_or_default();
    let groups = host.tree.entries("sys/kernel/iommu_groups").unwrap_or_default();
    let found = format!("{} units, {} groups", units.len(), groups.len());
    Some(if units.is_empty() || groups.is_empty() {
        Finding::fail("/sys/class/iommu", found, FIX)
    } else {
        Finding::pass("/sys/class/iommu", found)
    })
}

pub(super) fn vfio_pci(host: &Host<'_>) -> Option<Finding> {
    if !host.wants_gpus() {
        return None;
    }
    const SOURCE: &str = "/sys/bus/pci/drivers/vfio-pci";
    Some(if host.tree.exists(SOURCE.trim_start_matches('/')) {
        Finding::pass(SOURCE, "there")
    } else {
        let fix = "modprobe vfio-pci && echo vfio-pci > /etc/modules-load.d/vfio-pci.conf";
        Finding::fail(SOURCE, "missing", fix)
    })
}

pub(super) fn iommufd(host: &Host<'_>) -> Option<Finding> {
    if !host.wants_gpus() {
        return None;
    }
    Some(if host.tree.exists("dev/iommu") {
        Finding::pass("/dev/iommu", "there")
    } else if host.tree.exists("dev/vfio/vfio") {
        let fix = "modprobe iommufd; the kernel needs CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV";
        Finding::warn("/dev/iommu", "missing; /dev/vfio/vfio is there", fix)
    } else {
        Finding::fail("/dev/iommu", "missing, and /dev/vfio/vfio, too", "modprobe vfio-pci iommufd")
    })
}

/// Without iommufd, each page that a guest shares is an entry of its own: the default is too few for a large guest
/// ("VFIO_MAP_DMA failed: No space left on device").
pub(super) fn dma_entries(host: &Host<'_>) -> Option<Finding> {
    const PATH: &str = "sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
    if !host.wants_gpus() || host.tree.exists("dev/iommu") {
        return None;
    }
    let (source, limit) = (format!("/{PATH}"), host.number(PATH)?);
    Some(if limit >= 1 << 20 {
        Finding::pass(&source, limit.to_string())
    } else {
        let fix = "echo 'options vfio_iommu_type1 dma_entry_limit=1048576' > /etc/modprobe.d/vfio.conf, reboot";
        Finding::warn(&source, limit.to_string(), fix)
    })
}
