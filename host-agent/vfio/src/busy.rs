// SPDX-License-Identifier: Apache-2.0
//! Who has a device open.

use crate::pci::PciDevice;
use crate::tree::HostTree;

/// A process that has a device's node open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process number.
    pub pid: u32,
    /// The node.
    pub node: String,
}

/// Who has a device open, as far as it can be seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// Processes that have one of its nodes open, one entry per process and node.
    pub holders: Vec<Holder>,
    /// Processes whose open files could not be looked at.
    pub unseen: usize,
}

impl Usage {
    /// Nobody has it open, and nobody was overlooked.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.holders.is_empty() && self.unseen == 0
    }
}

/// Looks through the open files of all processes for nodes of `devices`: VFIO's group and device nodes, NVIDIA's and
/// DRM's. A process that ends meanwhile is no holder.
///
/// Mappings without an open file are not seen; none of these drivers allows one to outlive its file's release.
#[must_use]
pub fn usage(tree: &HostTree, devices: &[PciDevice]) -> Usage {
    let nodes: Vec<String> = devices.iter().flat_map(|device| nodes_of(tree, device)).collect();
    let mut usage = Usage::default();
    for process in tree.entries("proc").unwrap_or_default() {
        let Ok(pid) = process.parse::<u32>() else { continue };
        match tree.entries(&format!("proc/{pid}/fd")) {
            Ok(descriptors) => {
                for descriptor in descriptors {
                    let target = tree.link_target(&format!("proc/{pid}/fd/{descriptor}"));
                    if let Some(node) = target.filter(|target| nodes.contains(target)) {
                        let holder = Holder { pid, node };
                        if !usage.holders.contains(&holder) {
                            usage.holders.push(holder);
                        }
                    }
                }
            }
            Err(error) if error.is_missing() => {}
            Err(_) => usage.unseen += 1,
        }
    }
    usage
}

/// The nodes through which processes use a device.
fn nodes_of(tree: &HostTree, device: &PciDevice) -> Vec<String> {
    let mut nodes = Vec::new();
    if let Some(group) = device.iommu_group {
        nodes.push(format!("/dev/vfio/{group}"));
    }
    if let Some(name) = &device.vfio_device {
        nodes.push(format!("/dev/vfio/devices/{name}"));
    }
    for name in tree.entries(&device.address.file("drm")).unwrap_or_default() {
        nodes.push(format!("/dev/dri/{name}"));
    }
    if device.driver.as_deref() == Some("nvidia") {
        match nvidia_minor(tree, device) {
            Some(minor) => nodes.push(format!("/dev/nvidia{minor}")),
            // The driver does not say which: any of them could be this one.
            None => nodes.extend((0..MAX_NVIDIA_MINORS).map(|minor| format!("/dev/nvidia{minor}"))),
        }
    }
    if device.driver.as_deref() == Some("nvidia-nvswitch") {
        // Whoever manages the fabric holds the control node; the numbers of the others are not in sysfs.
        nodes.push("/dev/nvidia-nvswitchctl".to_owned());
        nodes.extend((0..MAX_NVIDIA_MINORS).map(|minor| format!("/dev/nvidia-nvswitch{minor}")));
    }
    nodes
}

/// The driver's `Device Minor:` line.
fn nvidia_minor(tree: &HostTree, device: &PciDevice) -> Option<u32> {
    let path = format!("proc/driver/nvidia/gpus/{}/information", device.address);
    let keep = |line: &str| line.starts_with("Device Minor:").then(|| line.to_owned());
    tree.lines(&path, keep).ok()?.first()?.split_once(':')?.1.trim().parse().ok()
}

/// `/dev/nvidia0` to `/dev/nvidia31`: more GPUs than a host has.
const MAX_NVIDIA_MINORS: u32 = 32;
