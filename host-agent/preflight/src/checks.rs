// SPDX-License-Identifier: Apache-2.0
//! The checks, in the order of the report.

mod cpu;
mod gpu;
mod iommu;
mod kernel;
mod machine;
mod memory;
mod qemu;
mod quote;

use crate::host::Host;
use crate::report::{Check, Finding, Report};

/// `None` where the check does not apply to the host.
type Examine = fn(&Host<'_>) -> Option<Finding>;

/// Runs all checks that apply.
#[must_use]
pub fn run(host: &Host<'_>) -> Report {
    let checks = CHECKS.iter().filter_map(|&(id, title, examine)| {
        let Finding { status, evidence, fix } = examine(host)?;
        Some(Check { id, title, status, evidence, fix })
    });
    Report { recorded: host.tree.recording().is_some(), checks: checks.collect() }
}

/// The names of all checks, in the order of the report.
#[must_use]
pub fn check_ids() -> Vec<&'static str> {
    CHECKS.iter().map(|(id, _, _)| *id).collect()
}

const CHECKS: &[(&str, &str, Examine)] = &[
    ("cpu_model", "a processor of a generation with TDX", cpu::model),
    ("cpu_virtualization", "VT-x is on", cpu::virtualization),
    ("tme", "memory encryption (TME-MT) is on", cpu::memory_encryption),
    ("tdx_firmware", "the firmware gives keys to TDX", cpu::tdx),
    ("sgx", "SGX is on: quotes are signed in an enclave", cpu::sgx),
    ("sgx_devices", "the SGX device nodes are there", quote::sgx_devices),
    ("kernel_version", "Linux 6.16 or newer", kernel::version),
    ("hibernation", "hibernation is off: TDX does not survive it", kernel::hibernation),
    ("kvm_device", "/dev/kvm is there and usable", kernel::kvm_device),
    ("kvm_settings", "KVM is set as TDX needs it", kernel::kvm_settings),
    ("kvm_tdx", "KVM runs trust domains", kernel::kvm_tdx),
    ("tdx_module", "the TDX module is 1.5 or newer", kernel::tdx_module),
    ("vhost_vsock", "/dev/vhost-vsock is there and usable", kernel::vhost_vsock),
    ("qemu_version", "QEMU 10.1 or newer", qemu::version),
    ("qemu_tdx", "QEMU is built with tdx-guest", qemu::tdx_guest),
    ("quote_service", "the quote generation service listens", quote::service),
    ("pccs", "the certificate caching service serves", quote::pccs),
    ("memory", "memory for the guests is free", memory::available),
    ("hugepages", "no memory is locked up in huge pages", memory::huge_pages),
    ("numa", "each NUMA node has memory, each GPU a node", memory::numa),
    ("memory_lock", "guests with GPUs may lock their memory", memory::lock_limit),
    ("disk", "disk space for images and models", machine::disk),
    ("clock", "the clock is kept right", machine::clock),
    ("clock_source", "time is read from the processor", machine::clock_source),
    ("port", "the clients' port is free", machine::port),
    ("iommu", "the IOMMU is on", iommu::enabled),
    ("vfio_pci", "the driver vfio-pci is loaded", iommu::vfio_pci),
    ("iommufd", "iommufd is there", iommu::iommufd),
    ("dma_entries", "VFIO may map a large guest", iommu::dma_entries),
    ("gpu_count", "as many GPUs as guests shall have", gpu::count),
    ("gpu_architecture", "GPUs with a confidential computing mode", gpu::architecture),
    ("gpu_firmware", "the GPUs' firmware knows the mode", gpu::firmware),
    ("gpu_mode", "the GPUs are in a confidential computing mode", gpu::mode),
    ("gpu_memory_window", "the GPUs' memory windows are mapped", gpu::memory_window),
    ("gpu_driver", "the GPUs are bound to vfio-pci", gpu::driver),
    ("gpu_group", "each GPU has an IOMMU group of its own", gpu::group),
    ("gpu_access", "the GPUs' nodes are usable for QEMU's user", gpu::access),
    ("nvswitches", "the board's GPUs and NVSwitches are complete", gpu::switches),
];

/// Whether a node is there and somebody other than root can use it.
fn usable_node(host: &Host<'_>, path: &str, missing: &str, forbidden: &str) -> Finding {
    let source = format!("/{path}");
    match host.tree.node(path) {
        None => Finding::fail(&source, "missing", missing),
        Some(node) => {
            let found = format!("mode {:04o}, owner {}, group {}", node.mode, node.uid, node.gid);
            if node.open_to_others() {
                Finding::pass(&source, found)
            } else {
                Finding::warn(&source, format!("{found}: only root can use it"), forbidden)
            }
        }
    }
}
