// SPDX-License-Identifier: Apache-2.0
//! PCI functions as sysfs describes them.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::tree::{HostTree, TreeError};

/// Where a PCI function is: domain, bus, device, function. Written as `0000:b8:00.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// The text is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a PCI address is written as 0000:b8:00.0 (domain:bus:device.function, hexadecimal; the domain may be left out)"
)]
pub struct AddressError;

impl FromStr for PciAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (rest, function) = text.rsplit_once('.').ok_or(AddressError)?;
        let (rest, device) = rest.rsplit_once(':').ok_or(AddressError)?;
        let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0000", rest));
        let hexadecimal = |text: &str, lengths: std::ops::RangeInclusive<usize>| {
            let digits = lengths.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
            if digits { u32::from_str_radix(text, 16).map_err(|_| AddressError) } else { Err(AddressError) }
        };
        let small = |value: u32, limit: u8| u8::try_from(value).ok().filter(|v| *v <= limit).ok_or(AddressError);
        Ok(Self {
            domain: hexadecimal(domain, 4..=8)?,
            bus: small(hexadecimal(bus, 2..=2)?, u8::MAX)?,
            device: small(hexadecimal(device, 2..=2)?, 31)?,
            function: small(hexadecimal(function, 1..=1)?, 7)?,
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl Serialize for PciAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl PciAddress {
    /// Its directory in sysfs.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("{DEVICES}/{self}")
    }

    /// A file of its directory in sysfs.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        format!("{DEVICES}/{self}/{name}")
    }
}

/// A PCI function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PciDevice {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor identifier.
    pub vendor: u16,
    /// Device identifier.
    pub device: u16,
    /// Class code: base class, subclass, programming interface.
    pub class: u32,
    /// What it is to us.
    pub kind: DeviceKind,
    /// Driver that is bound.
    pub driver: Option<String>,
    /// The only driver that may bind, if one is set.
    pub driver_override: Option<String>,
    /// Number of its IOMMU group.
    pub iommu_group: Option<u32>,
    /// Name of its VFIO device (`vfio0`), if it has one.
    pub vfio_device: Option<String>,
    /// Whether the firmware showed the boot messages on it.
    pub boot_display: bool,
    /// NUMA node; `None` where the firmware does not say.
    pub numa_node: Option<u32>,
    /// Sizes of the six base address registers in bytes, 0 for those that are not assigned.
    pub bars: Vec<u64>,
}

/// What a PCI function is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// An NVIDIA GPU.
    Gpu,
    /// An NVIDIA NVSwitch.
    NvSwitch,
    /// Another function of an NVIDIA card: sound, USB.
    GpuCompanion,
    /// A PCI bridge: stays with the host, in whichever group it is.
    Bridge,
    /// Anything else.
    Other,
}

/// A generation of NVIDIA GPUs, by device identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// H100, H200, H20, GH200.
    Hopper,
    /// B200, B300, GB200 (GB10x, GB11x).
    Blackwell100,
    /// RTX PRO 6000 and others (GB20x).
    Blackwell200,
    /// None that has a confidential computing mode, or one that came later.
    Unknown,
}

impl PciDevice {
    /// The GPU's generation. [`Architecture::Unknown`] for what is no GPU.
    #[must_use]
    pub fn architecture(&self) -> Architecture {
        match (self.kind, self.device) {
            (DeviceKind::Gpu, 0x22f0..=0x237f) => Architecture::Hopper,
            (DeviceKind::Gpu, 0x2900..=0x29ff | 0x3180..=0x327f) => Architecture::Blackwell100,
            (DeviceKind::Gpu, 0x2b80..=0x2bff | 0x2c00..=0x2c7f | 0x2d00..=0x2dff | 0x2f00..=0x2f7f) => {
                Architecture::Blackwell200
            }
            _ => Architecture::Unknown,
        }
    }
}

/// All PCI functions, in the order of their addresses. Entries that are no PCI address are left out.
///
/// # Errors
/// [`TreeError`] if the directory of devices, or an identifier in it, cannot be read.
pub fn inventory(tree: &HostTree) -> Result<Vec<PciDevice>, TreeError> {
    let mut devices = Vec::new();
    for name in tree.entries(DEVICES)? {
        if let Ok(address) = name.parse::<PciAddress>() {
            devices.push(read_device(tree, address)?);
        }
    }
    devices.sort_by_key(|device| device.address);
    Ok(devices)
}

/// The GPUs and NVSwitches among all PCI functions.
///
/// # Errors
/// [`TreeError`] as [`inventory`].
pub fn gpus_and_switches(tree: &HostTree) -> Result<Vec<PciDevice>, TreeError> {
    let mut devices = inventory(tree)?;
    devices.retain(|device| matches!(device.kind, DeviceKind::Gpu | DeviceKind::NvSwitch));
    Ok(devices)
}

fn read_device(tree: &HostTree, address: PciAddress) -> Result<PciDevice, TreeError> {
    let number = |name: &str| -> Result<u32, TreeError> {
        let text = tree.text(&address.file(name))?;
        Ok(u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0))
    };
    let vendor = u16::try_from(number("vendor")?).unwrap_or(0);
    let class = number("class")?;
    let text = |name: &str| tree.text(&address.file(name)).ok().filter(|t| !t.is_empty() && t != "(null)");
    let kind = kind_of(vendor, class);
    let ours = !matches!(kind, DeviceKind::Bridge | DeviceKind::Other);
    Ok(PciDevice {
        address,
        vendor,
        device: u16::try_from(number("device")?).unwrap_or(0),
        class,
        kind,
        driver: tree.link_name(&address.file("driver")),
        driver_override: text("driver_override"),
        iommu_group: tree.link_name(&address.file("iommu_group")).and_then(|name| name.parse().ok()),
        vfio_device: tree
            .entries(&address.file("vfio-dev"))
            .ok()
            .and_then(|names| names.into_iter().find(|name| name.starts_with("vfio"))),
        boot_display: text("boot_vga").is_some_and(|value| value == "1"),
        numa_node: text("numa_node").and_then(|value| value.parse().ok()),
        bars: if ours { bars(&tree.text(&address.file("resource")).unwrap_or_default()) } else { Vec::new() },
    })
}

fn kind_of(vendor: u16, class: u32) -> DeviceKind {
    match (vendor, class >> 8) {
        (_, 0x0600..=0x0609) => DeviceKind::Bridge,
        (NVIDIA, 0x0300 | 0x0302) => DeviceKind::Gpu,
        (NVIDIA, 0x0680) => DeviceKind::NvSwitch,
        (NVIDIA, _) => DeviceKind::GpuCompanion,
        _ => DeviceKind::Other,
    }
}

/// Sizes from sysfs' `resource`: one line `start end flags` each, of which the first six are base address registers.
fn bars(resource: &str) -> Vec<u64> {
    let size = |line: &str| {
        let mut numbers =
            line.split_ascii_whitespace().filter_map(|n| u64::from_str_radix(n.trim_start_matches("0x"), 16).ok());
        let (start, end) = (numbers.next()?, numbers.next()?);
        if end > start { (end - start).checked_add(1) } else { Some(0) }
    };
    resource.lines().take(6).map(|line| size(line).unwrap_or(0)).collect()
}

/// Where sysfs has all PCI functions.
const DEVICES: &str = "sys/bus/pci/devices";
/// NVIDIA's PCI vendor identifier.
const NVIDIA: u16 = 0x10de;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_in_one_form() {
        for (text, shown) in [
            ("0000:b8:00.0", "0000:b8:00.0"),
            ("b8:00.0", "0000:b8:00.0"),
            ("10000:01:1F.7", "10000:01:1f.7"),
            ("00000001:b8:00.0", "0001:b8:00.0"),
        ] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            "b8",
            "b8:00",
            "b8:00.8",
            "b8:20.0",
            "0000:b8:00.0/../x",
            "+b8:00.0",
            "0000:b8:00.0 ",
            "0000:0000:b8:00.0",
            "000000000:b8:00.0",
            "b8:0.0",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_come_from_start_and_end() {
        let text = "0x00000000a0000000 0x00000000a0ffffff 0x0000000000040200\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x0000206000000000 0x0000207fffffffff 0x000000000014220c\n\
                    nonsense\n";
        assert_eq!(bars(text), [16 << 20, 0, 128 << 30, 0]);
        assert_eq!(bars("0xffffffffffffffff 0x0 0x0"), [0]);
        assert_eq!(bars("0x0 0xffffffffffffffff 0x0"), [0], "a size that does not fit counts as none");
    }

    #[test]
    fn generations_are_told_by_identifier() {
        assert_eq!(kind_of(0x10de, 0x0003_0200), DeviceKind::Gpu);
        assert_eq!(kind_of(0x10de, 0x0006_8000), DeviceKind::NvSwitch);
        assert_eq!(kind_of(0x10de, 0x0004_0300), DeviceKind::GpuCompanion);
        assert_eq!(kind_of(0x8086, 0x0006_0400), DeviceKind::Bridge);
        assert_eq!(kind_of(0x8086, 0x0006_8000), DeviceKind::Other);
    }
}
