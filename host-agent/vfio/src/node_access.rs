// SPDX-License-Identifier: Apache-2.0
//! The device nodes that QEMU opens, and how a user other than root comes to open them.

use crate::pci::PciDevice;
use crate::recording::Node;
use crate::tree::HostTree;

/// A device node and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAccess {
    /// Path without the leading slash.
    pub path: String,
    /// The node; `None` if it is not there.
    pub node: Option<Node>,
}

impl NodeAccess {
    /// Whether the node is there and somebody other than root may open it.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.node.as_ref().is_some_and(Node::open_to_others)
    }
}

/// The nodes through which QEMU reaches `device` once it is bound to `vfio-pci`: those of iommufd (`/dev/iommu` and the
/// device's own) where the kernel has it, else the group's.
#[must_use]
pub fn device_nodes(tree: &HostTree, device: &PciDevice) -> Vec<NodeAccess> {
    let access = |path: String| NodeAccess { node: tree.node(&path), path };
    match &device.vfio_device {
        Some(name) if tree.exists("dev/iommu") => {
            vec![access("dev/iommu".to_owned()), access(format!("dev/vfio/devices/{name}"))]
        }
        _ => {
            let group = device.iommu_group.map(|group| access(format!("dev/vfio/{group}")));
            std::iter::once(access("dev/vfio/vfio".to_owned())).chain(group).collect()
        }
    }
}

/// A udev rule that lets members of `group` open the nodes of iommufd and VFIO. `group` must be a plain name.
///
/// Members of that group can use every device that is bound to `vfio-pci`, and nothing else.
#[must_use]
pub fn udev_rule(group: &str) -> Option<String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    let starts = group.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    if !starts || group.len() > 32 || !group.bytes().all(plain) {
        return None;
    }
    Some(format!(
        "# Lets the group {group} hand devices that are bound to vfio-pci to guests.\n\
         SUBSYSTEM==\"vfio\", GROUP=\"{group}\", MODE=\"0660\"\n\
         SUBSYSTEM==\"vfio-dev\", GROUP=\"{group}\", MODE=\"0660\"\n\
         SUBSYSTEM==\"misc\", KERNEL==\"iommu\", GROUP=\"{group}\", MODE=\"0660\"\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_takes_plain_group_names_only() {
        assert!(udev_rule("kvm").unwrap().contains("SUBSYSTEM==\"vfio-dev\", GROUP=\"kvm\", MODE=\"0660\"\n"));
        for name in ["", "a\"b", "a b", "a\n", "A", "1a", "-a", &"a".repeat(33)] {
            assert!(udev_rule(name).is_none(), "{name:?}");
        }
    }
}
