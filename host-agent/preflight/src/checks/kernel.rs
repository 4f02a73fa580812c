// SPDX-License-Identifier: Apache-2.0
//! The running kernel, KVM and the TDX module.

use super::usable_node;
use crate::host::Host;
use crate::report::Finding;

/// KVM has trust domains since Linux 6.16; earlier kernels of distributors speak another interface than QEMU 10.1.
pub(super) fn version(host: &Host<'_>) -> Option<Finding> {
    const PATH: &str = "proc/sys/kernel/osrelease";
    const SOURCE: &str = "/proc/sys/kernel/osrelease";
    let release = host.text(PATH).unwrap_or_default();
    Some(match host.kernel() {
        None => Finding::unknown(SOURCE, format!("no version: {release}"), "run it on the host itself"),
        Some(version) if version >= (6, 16) => Finding::pass(SOURCE, release),
        Some(_) => Finding::fail(
            SOURCE,
            release,
            "install Linux 6.16 or newer with CONFIG_KVM_INTEL_TDX (Debian: linux-image-amd64 of backports; Ubuntu 25.10), reboot",
        ),
    })
}

/// The kernel starts no TDX module while hibernation is possible (arch/x86/virt/vmx/tdx/tdx.c).
pub(super) fn hibernation(host: &Host<'_>) -> Option<Finding> {
    const SOURCE: &str = "/sys/power/disk";
    Some(match host.text("sys/power/disk") {
        None => Finding::pass(SOURCE, "missing: this kernel does not hibernate"),
        Some(modes) if modes.contains("[disabled]") => Finding::pass(SOURCE, modes),
        Some(modes) => Finding::fail(
            SOURCE,
            modes,
            "add nohibernate to GRUB_CMDLINE_LINUX in /etc/default/grub, run update-grub, reboot",
        ),
    })
}

pub(super) fn kvm_device(host: &Host<'_>) -> Option<Finding> {
    Some(usable_node(host, "dev/kvm", "modprobe kvm_intel", "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm"))
}

/// What `tdx_init` of kvm_intel asks of KVM (arch/x86/kvm/vmx/tdx.c).
pub(super) fn kvm_settings(host: &Host<'_>) -> Option<Finding> {
    let mut findings = Vec::new();
    for (module, parameter) in
        [("kvm_intel", "ept"), ("kvm", "tdp_mmu"), ("kvm", "mmio_caching"), ("kvm", "enable_virt_at_load")]
    {
        let path = format!("sys/module/{module}/parameters/{parameter}");
        let Some(value) = host.text(&path) else { continue };
        let source = format!("/{path}");
        findings.push(if matches!(value.as_str(), "Y" | "1") {
            Finding::pass(&source, value)
        } else {
            let fix = format!("remove {module}.{parameter} from the kernel command line and /etc/modprobe.d, reboot");
            Finding::fail(&source, value, fix)
        });
    }
    let none = || Finding::unknown("/sys/module/kvm/parameters", "missing", "modprobe kvm_intel");
    Some(Finding::all(findings).unwrap_or_else(none))
}

pub(super) fn kvm_tdx(host: &Host<'_>) -> Option<Finding> {
    const PARAMETER: &str = "/sys/module/kvm_intel/parameters/tdx";
    const FIX: &str = "echo 'options kvm_intel tdx=1' > /etc/modprobe.d/kvm-tdx.conf && modprobe -r kvm_intel && modprobe kvm_intel; if it stays N, the reason stands in: dmesg | grep -i tdx";
    Some(match host.text(PARAMETER.trim_start_matches('/')) {
        Some(value) if matches!(value.as_str(), "Y" | "1") => Finding::pass(PARAMETER, value),
        Some(value) => Finding::fail(PARAMETER, value, FIX),
        None if !host.tree.exists("sys/module/kvm_intel") => {
            Finding::fail("/sys/module/kvm_intel", "missing", "modprobe kvm_intel")
        }
        None => Finding::fail(
            PARAMETER,
            "missing: this kernel was built without trust domains",
            "install a kernel with CONFIG_KVM_INTEL_TDX, 6.16 or newer",
        ),
    })
}

/// Newer kernels show the module's version; with others only their messages do, which root alone may read.
pub(super) fn tdx_module(host: &Host<'_>) -> Option<Finding> {
    const SOURCE: &str = "/sys/devices/faux/tdx_host/version";
    let Some(text) = host.text(SOURCE.trim_start_matches('/')) else {
        let fix = "dmesg | grep 'virt/tdx' shows major_version and minor_version";
        return Some(Finding::unknown(SOURCE, "missing: this kernel does not show the version", fix));
    };
    let mut numbers = text.split('.').map(str::parse::<u32>);
    let version = (numbers.next().and_then(Result::ok), numbers.next().and_then(Result::ok));
    Some(match version {
        (Some(major), Some(minor)) if (major, minor) >= (1, 5) => Finding::pass(SOURCE, text),
        (Some(_), Some(_)) => Finding::fail(SOURCE, text, "update the server's firmware: the TDX module comes with it"),
        _ => Finding::unknown(SOURCE, text, "dmesg | grep 'virt/tdx'"),
    })
}

pub(super) fn vhost_vsock(host: &Host<'_>) -> Option<Finding> {
    Some(usable_node(
        host,
        "dev/vhost-vsock",
        "modprobe vhost_vsock && echo vhost_vsock > /etc/modules-load.d/vhost_vsock.conf",
        "chgrp kvm /dev/vhost-vsock && chmod 0660 /dev/vhost-vsock",
    ))
}
