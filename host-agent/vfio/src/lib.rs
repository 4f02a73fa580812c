// SPDX-License-Identifier: Apache-2.0
//! The host's PCI devices: read, handed to guests and given back.
//!
//! Everything goes through [`HostTree`]: sysfs, procfs and device nodes below a root directory, so that a recorded tree of
//! another machine is read like the machine at hand. Nothing here is trusted by a guest or a client: which device a guest
//! really got is for its attestation evidence to say.

mod bind;
mod busy;
mod group;
mod journal;
mod node_access;
mod pci;
mod recording;
mod register_access;
mod tree;

pub use bind::{BindError, Binder, Outcome, SysfsWriter};
pub use busy::{Holder, Usage, usage};
pub use group::{GroupError, IommuGroup, iommu_group};
pub use journal::{Journal, JournalError};
pub use node_access::{NodeAccess, device_nodes, udev_rule};
pub use pci::{AddressError, Architecture, DeviceKind, PciAddress, PciDevice, gpus_and_switches, inventory};
pub use recording::{LoggedReads, Node, NodeKind, Recording};
pub use register_access::{RegisterAccess, RegisterAccessError};
pub use tree::{HostTree, TreeError};
