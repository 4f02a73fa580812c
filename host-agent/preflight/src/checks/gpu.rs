// SPDX-License-Identifier: Apache-2.0
//! GPUs and NVSwitches.

use vfio::{Architecture, DeviceKind, PciDevice, device_nodes, iommu_group};

use crate::host::Host;
use crate::probes::{Answer, Question};
use crate::report::Finding;

pub(super) fn count(host: &Host<'_>) -> Option<Finding> {
    const SOURCE: &str = "/sys/bus/pci/devices";
    let wanted = host.settings.gpus;
    if let Err(error) = &host.devices {
        return Some(Finding::unknown(SOURCE, error.to_string(), "run it on the host itself"));
    }
    let capable = host.gpus().iter().filter(|gpu| gpu.architecture() != Architecture::Unknown).count();
    if wanted == 0 && host.gpus().is_empty() {
        return None;
    }
    let found = format!("{capable} GPUs with a confidential computing mode");
    Some(if capable >= wanted {
        Finding::pass(SOURCE, found)
    } else {
        let fix = format!("{wanted} were asked for (--gpus): look at lspci -d 10de: and the kernel's messages");
        Finding::fail(SOURCE, found, fix)
    })
}

pub(super) fn architecture(host: &Host<'_>) -> Option<Finding> {
    each(host.gpus(), |gpu| {
        let source = format!("/{}", gpu.address.file("device"));
        let found = format!("{:#06x}, {:?}", gpu.device, gpu.architecture());
        match gpu.architecture() {
            Architecture::Unknown if gpu.boot_display => Finding::pass(&source, format!("{found}: the host's display")),
            Architecture::Unknown => {
                Finding::warn(&source, found, "this GPU cannot go to a guest: use Hopper or Blackwell")
            }
            _ => Finding::pass(&source, found),
        }
    })
}

/// The firmware's version is known to NVIDIA's driver only. The deployment guide for confidential computing asks for VBIOS
/// 96.00.5E.00.00 or newer on Hopper.
pub(super) fn firmware(host: &Host<'_>) -> Option<Finding> {
    each(capable(host), |gpu| {
        let path = format!("proc/driver/nvidia/gpus/{}/information", gpu.address);
        let source = format!("/{path}");
        let keep = |line: &str| line.starts_with("Video BIOS:").then(|| line.to_owned());
        let lines = host.tree.lines(&path, keep).unwrap_or_default();
        let Some(version) = lines.first().and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())) else {
            let fix = "nvidia-smi --query-gpu=vbios_version --format=csv, while NVIDIA's driver has the GPU";
            return Finding::unknown(&source, "NVIDIA's driver does not have it", fix);
        };
        let mut parts = version.split('.').map(|part| u32::from_str_radix(part, 16).ok());
        let key = (parts.next().flatten(), parts.next().flatten(), parts.next().flatten());
        let old = gpu.architecture() == Architecture::Hopper && key < (Some(0x96), Some(0), Some(0x5e));
        if old {
            Finding::fail(
                &source,
                version,
                "update the GPU's firmware with its maker's tool to 96.00.5E.00.00 or newer",
            )
        } else {
            Finding::pass(&source, version)
        }
    })
}

/// On, or Protected PCIe: then all GPUs and NVSwitches of the board together. NVSwitches have no other mode.
pub(super) fn mode(host: &Host<'_>) -> Option<Finding> {
    let ask = |device: &PciDevice| host.ask(&Question::GpuMode(device.address));
    let board = capable(host).into_iter().any(|gpu| ask(gpu) == Answer::Given("ppcie".to_owned()));
    let mut devices = capable(host);
    devices.extend(host.switches());
    each(devices, |device| {
        let (source, address) = (Question::GpuMode(device.address).to_string(), device.address);
        let mode = match ask(device) {
            Answer::Given(mode) => mode,
            Answer::Failed(reason) => {
                return Finding::unknown(&source, reason, format!("host-agent gpu mode {address}"));
            }
            Answer::Unasked => return Finding::unknown(&source, "not asked", "run it as root with --gpu-registers"),
        };
        match (device.kind, mode.as_str()) {
            (_, "ppcie") if board => Finding::pass(&source, mode),
            (DeviceKind::NvSwitch, "off") if !board => Finding::pass(&source, mode),
            (DeviceKind::Gpu, "devtools") => {
                Finding::fail(&source, mode, format!("host-agent gpu mode {address} --set on: guests refuse it"))
            }
            (DeviceKind::Gpu, "on") if !board => Finding::pass(&source, mode),
            (DeviceKind::Gpu, _) if !board => {
                Finding::warn(&source, mode, format!("host-agent gpu mode {address} --set on"))
            }
            (DeviceKind::NvSwitch, _) if !board => {
                Finding::warn(&source, mode, "host-agent gpu mode --all --set ppcie, or --all --set on")
            }
            _ => Finding::warn(&source, mode, "host-agent gpu mode --all --set ppcie"),
        }
    })
}

pub(super) fn memory_window(host: &Host<'_>) -> Option<Finding> {
    each(capable(host), |gpu| {
        let source = format!("/{}", gpu.address.file("resource"));
        let registers = gpu.bars.first().copied().unwrap_or(0);
        let largest = gpu.bars.iter().copied().max().unwrap_or(0);
        let found = format!("registers {} MiB, memory {} GiB", registers >> 20, largest >> 30);
        if registers < 16 << 20 || largest == registers {
            let fix = "in the firmware enable Above 4G Decoding and raise MMIO High Size (to 2 TiB for 8 GPUs)";
            Finding::fail(&source, format!("{found}: not mapped"), fix)
        } else if largest < 32 << 30 {
            Finding::warn(&source, format!("{found}: a small window"), "enable Re-Size BAR Support in the firmware")
        } else {
            Finding::pass(&source, found)
        }
    })
}

pub(super) fn driver(host: &Host<'_>) -> Option<Finding> {
    let mut devices = capable(host);
    devices.extend(host.switches());
    each(devices, |device| {
        let source = format!("/{}", device.address.file("driver"));
        let fix = format!("host-agent gpu bind {}", device.address);
        match device.driver.as_deref() {
            _ if device.boot_display => Finding::fail(
                &source,
                "shows the host's boot messages",
                "set the primary display to the onboard controller in the firmware, reboot",
            ),
            Some("vfio-pci") => Finding::pass(&source, "vfio-pci"),
            Some(other) => Finding::warn(&source, other, fix),
            None => Finding::warn(&source, "none", fix),
        }
    })
}

pub(super) fn group(host: &Host<'_>) -> Option<Finding> {
    let devices = host.devices.as_ref().ok()?;
    each(capable(host), |gpu| {
        let source = format!("/{}", gpu.address.file("iommu_group"));
        match iommu_group(devices, gpu.address) {
            Err(error) => Finding::fail(
                &source,
                error.to_string(),
                "enable VT-d and ACS in the firmware, intel_iommu=on on the kernel command line, reboot",
            ),
            Ok(group) => {
                let others = group.members.iter().filter(|m| m.kind == gpu.kind && m.address != gpu.address).count();
                let found = format!("group {}", group.number);
                if others == 0 {
                    Finding::pass(&source, found)
                } else {
                    let fix = "enable ACS in the firmware: GPUs of one group go to the same guest";
                    Finding::warn(&source, format!("{found}, with {others} more GPUs"), fix)
                }
            }
        }
    })
}

/// Nodes exist for devices that are bound to `vfio-pci` only.
pub(super) fn access(host: &Host<'_>) -> Option<Finding> {
    let bound = host.passable().into_iter().filter(|device| device.driver.as_deref() == Some("vfio-pci"));
    let mut seen: Vec<String> = Vec::new();
    let mut findings = Vec::new();
    for access in bound.flat_map(|device| device_nodes(host.tree, device)) {
        if seen.contains(&access.path) {
            continue;
        }
        let source = format!("/{}", access.path);
        let fix = "host-agent gpu udev-rule --group kvm --install";
        findings.push(match &access.node {
            None => Finding::fail(&source, "missing", "modprobe vfio-pci iommufd; bind the GPU again"),
            Some(node) if access.usable() => Finding::pass(&source, format!("mode {:04o}", node.mode)),
            Some(node) => Finding::warn(&source, format!("mode {:04o}: only root can use it", node.mode), fix),
        });
        seen.push(access.path);
    }
    Finding::all(findings)
}

/// Boards with eight Hopper GPUs on sockets (SXM) have four NVSwitches; all go to one guest, or NVLink is lost.
pub(super) fn switches(host: &Host<'_>) -> Option<Finding> {
    const SOURCE: &str = "/sys/bus/pci/devices";
    let on_sockets = host.gpus().iter().filter(|gpu| SXM.contains(&gpu.device)).count();
    let switches = host.switches().len();
    if switches == 0 && on_sockets < 8 {
        return None;
    }
    let found = format!("{on_sockets} GPUs on sockets, {switches} NVSwitches");
    Some(if on_sockets == 8 && switches == 4 {
        Finding::pass(SOURCE, found)
    } else {
        let fix =
            "8 and 4 belong to a whole board: look at lspci -d 10de:; power the server off and on; then ask its maker";
        Finding::fail(SOURCE, found, fix)
    })
}

fn capable<'h>(host: &'h Host<'_>) -> Vec<&'h PciDevice> {
    host.gpus().into_iter().filter(|gpu| gpu.architecture() != Architecture::Unknown).collect()
}

fn each<'d>(devices: Vec<&'d PciDevice>, look: impl FnMut(&'d PciDevice) -> Finding) -> Option<Finding> {
    Finding::all(devices.into_iter().map(look).collect())
}

/// Hopper GPUs on sockets, by device identifier: H100, H200, H20, H800.
const SXM: &[u16] = &[0x2324, 0x2328, 0x2329, 0x232c, 0x2330, 0x2335, 0x2336, 0x2337, 0x2338, 0x2339];
