// SPDX-License-Identifier: Apache-2.0
//! Who has a device open.

use crate::pci::PciDevice;
use crate::tree::{HostTree, TreeError};

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
    /// Processes whose open files could not be looked at, all or some; 1 if the processes could not even be listed.
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
    let Ok(processes) = tree.entries("proc") else { return Usage { unseen: 1, ..usage } };
    for pid in processes.iter().filter_map(|name| name.parse::<u32>().ok()) {
        match opened(tree, pid) {
            Ok(files) => {
                for node in files.into_iter().filter(|file| nodes.contains(file)) {
                    let holder = Holder { pid, node };
                    if !usage.holders.contains(&holder) {
                        usage.holders.push(holder);
                    }
                }
            }
            Err(error) if error.is_missing() => {}
            Err(_) => usage.unseen += 1,
        }
    }
    usage
}

/// The files that a process has open. A file that is closed meanwhile is left out; one that may not be looked at is an
/// error: listing descriptors takes fewer rights than seeing what they are.
fn opened(tree: &HostTree, pid: u32) -> Result<Vec<String>, TreeError> {
    let directory = format!("proc/{pid}/fd");
    let mut files = Vec::new();
    for descriptor in tree.entries(&directory)? {
        match tree.link_target(&format!("{directory}/{descriptor}")) {
            Ok(target) => files.push(target),
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_cannot_be_listed_or_looked_at_are_not_free() {
        let root = tempfile::tempdir().unwrap();
        let tree = HostTree::open(root.path()).unwrap();
        assert_eq!(usage(&tree, &[]).unseen, 1, "no /proc");
        std::fs::write(root.path().join("proc"), "").unwrap();
        assert!(!usage(&tree, &[]).is_free(), "no directory");
        std::fs::remove_file(root.path().join("proc")).unwrap();
        std::fs::create_dir_all(root.path().join("proc/1/fd")).unwrap();
        assert!(usage(&tree, &[]).is_free());
        std::fs::create_dir(root.path().join("proc/2")).unwrap();
        assert!(usage(&tree, &[]).is_free(), "it ended meanwhile");
        std::os::unix::fs::symlink("fd", root.path().join("proc/2/fd")).unwrap();
        assert_eq!(usage(&tree, &[]).unseen, 1);
    }
}
