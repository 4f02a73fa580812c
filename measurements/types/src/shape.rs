// SPDX-License-Identifier: Apache-2.0
//! The shape of a virtual machine: the only source of shape facts for QEMU's command line and for the
//! expected registers. Both destructure it without `..`, so that they cannot drift apart.

use serde::{Deserialize, Serialize};

/// Everything about a machine that its measurements depend on, beside the image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct MachineShape {
    vcpus: u16,
    memory_mib: u32,
    physical_bits: u8,
    qemu: QemuVersion,
    devices: Vec<Device>,
}

/// A device of the machine. The order in [`MachineShape`] is the order of PCI slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// Read-only virtio-blk disk with serial `chrysalis-config`: the `GuestConfig` bytes.
    ConfigDisk,
    /// Read-only virtio-blk disk with serial `chrysalis-model`: the encrypted model pack.
    ModelDisk,
    /// virtio-net, user-mode network without a route outside, one forwarded port.
    Network,
    /// virtio-vsock.
    Vsock,
    /// Read-only virtio-blk disk with serial `chrysalis-root`: the root of an image that has one, and its hash tree. Stands
    /// after the other devices.
    RootDisk,
}

/// Version of QEMU as it enters measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QemuVersion {
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
}

/// Why a shape was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Not 1 to 1024 vCPUs.
    #[error("vcpus must be 1 to 1024")]
    Vcpus,
    /// Less than 256 MiB or more than 16 TiB.
    #[error("memory_mib must be 256 to 16777216")]
    Memory,
    /// Not 36 to 52 bits.
    #[error("physical_bits must be 36 to 52")]
    PhysicalBits,
    /// A device stands twice.
    #[error("devices must not repeat")]
    RepeatedDevice,
    /// Not `major.minor`.
    #[error("qemu must be written major.minor, as in 10.1")]
    Qemu,
}

/// A shape, taken apart. There is no `..` for it on purpose: a new fact must be handled everywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeFacts {
    /// Virtual CPUs, one socket, one thread each.
    pub vcpus: u16,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Width of the guest's physical addresses in bits: where the firmware puts 64-bit PCI addresses, hence ACPI.
    pub physical_bits: u8,
    /// Version of QEMU.
    pub qemu: QemuVersion,
    /// Devices in PCI slot order.
    pub devices: Vec<Device>,
}

impl MachineShape {
    /// Makes a checked shape.
    ///
    /// # Errors
    /// [`ShapeError`] names the fact.
    pub fn new(facts: ShapeFacts) -> Result<Self, ShapeError> {
        let ShapeFacts { vcpus, memory_mib, physical_bits, qemu, devices } = facts;
        if !(1..=1024).contains(&vcpus) {
            return Err(ShapeError::Vcpus);
        }
        if !(256..=16 << 20).contains(&memory_mib) {
            return Err(ShapeError::Memory);
        }
        if !(36..=52).contains(&physical_bits) {
            return Err(ShapeError::PhysicalBits);
        }
        let mut sorted = devices.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() != devices.len() {
            return Err(ShapeError::RepeatedDevice);
        }
        Ok(Self { vcpus, memory_mib, physical_bits, qemu, devices })
    }

    /// All facts, to be destructured without `..`.
    #[must_use]
    pub fn facts(&self) -> ShapeFacts {
        let Self { vcpus, memory_mib, physical_bits, qemu, devices } = self.clone();
        ShapeFacts { vcpus, memory_mib, physical_bits, qemu, devices }
    }
}

impl core::fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl core::str::FromStr for QemuVersion {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let (major, minor) = text.split_once('.').ok_or(ShapeError::Qemu)?;
        let version = Self {
            major: major.parse().map_err(|_| ShapeError::Qemu)?,
            minor: minor.parse().map_err(|_| ShapeError::Qemu)?,
        };
        // One spelling only: no sign, no leading zero.
        if version.to_string() == text { Ok(version) } else { Err(ShapeError::Qemu) }
    }
}

impl TryFrom<String> for QemuVersion {
    type Error = ShapeError;

    fn try_from(text: String) -> Result<Self, ShapeError> {
        text.parse()
    }
}

impl From<QemuVersion> for String {
    fn from(version: QemuVersion) -> Self {
        version.to_string()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    vcpus: u16,
    memory_mib: u32,
    physical_bits: u8,
    qemu: QemuVersion,
    devices: Vec<Device>,
}

impl TryFrom<Fields> for MachineShape {
    type Error = ShapeError;

    fn try_from(fields: Fields) -> Result<Self, ShapeError> {
        let Fields { vcpus, memory_mib, physical_bits, qemu, devices } = fields;
        Self::new(ShapeFacts { vcpus, memory_mib, physical_bits, qemu, devices })
    }
}

impl From<MachineShape> for Fields {
    fn from(shape: MachineShape) -> Self {
        let MachineShape { vcpus, memory_mib, physical_bits, qemu, devices } = shape;
        Self { vcpus, memory_mib, physical_bits, qemu, devices }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_checked_when_read() {
        let good = r#"{"vcpus":2,"memory_mib":1024,"physical_bits":46,"qemu":"7.2","devices":["config-disk","vsock"]}"#;
        assert!(serde_json::from_str::<MachineShape>(good).is_ok());
        for (from, to) in [
            ("\"vcpus\":2", "\"vcpus\":0"),
            ("1024", "128"),
            (":46", ":35"),
            (":46", ":53"),
            ("\"physical_bits\":46,", ""),
            ("7.2", "07.2"),
            ("7.2", "+7.2"),
            ("vsock", "config-disk"),
            ("vsock", "floppy"),
            ("\"vcpus\"", "\"smm\":true,\"vcpus\""),
        ] {
            assert!(serde_json::from_str::<MachineShape>(&good.replace(from, to)).is_err(), "{to}");
        }
    }
}
