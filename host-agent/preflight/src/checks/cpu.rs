// SPDX-License-Identifier: Apache-2.0
//! Processor and firmware settings, as `/proc/cpuinfo` shows them.

use crate::host::Host;
use crate::report::Finding;

/// Intel family 6 by model: Sapphire Rapids to Clearwater Forest.
pub(super) fn model(host: &Host<'_>) -> Option<Finding> {
    let cpu = &host.cpu;
    if cpu.vendor.is_empty() {
        return Some(Finding::unknown(CPUINFO, "no processor is described", "run it on the host itself"));
    }
    let found = format!("{} (family {}, model {})", cpu.name, cpu.family, cpu.model);
    Some(match (cpu.vendor.as_str(), cpu.family, cpu.model) {
        ("GenuineIntel", 6, 143) => Finding::warn(
            CPUINFO,
            format!("{found}: only some parts of this generation have TDX"),
            "ask the maker whether this part has TDX: https://www.intel.com/ark",
        ),
        ("GenuineIntel", 6, 173 | 174 | 175 | 207 | 221) => Finding::pass(CPUINFO, found),
        ("GenuineIntel", 6, newer) if newer > 221 => {
            Finding::warn(CPUINFO, format!("{found}: not known here"), "ask the maker whether this part has TDX")
        }
        _ => Finding::fail(CPUINFO, found, "use a server with a 5th generation Xeon Scalable, a Xeon 6 or a newer one"),
    })
}

pub(super) fn virtualization(host: &Host<'_>) -> Option<Finding> {
    flag(host, "vmx", "enable VT-x (Intel Virtualization Technology) in the firmware")
}

pub(super) fn memory_encryption(host: &Host<'_>) -> Option<Finding> {
    flag(
        host,
        "tme",
        "in the firmware, below Processor Configuration, enable Memory Encryption (TME) and TME Multi-Tenant (TME-MT), and disable TME Bypass",
    )
}

/// The flag appears when the kernel finds TDX private key identifiers, from Linux 6.8 on.
pub(super) fn tdx(host: &Host<'_>) -> Option<Finding> {
    const FIX: &str = "in the firmware, below Processor Configuration, enable TDX, the TDX SEAM Loader and SGX, and set the TME-MT/TDX key split to 1 or more; then look at: dmesg | grep -i tdx";
    if host.kernel().is_none_or(|version| version < (6, 8)) && !host.cpu.has("tdx_host_platform") {
        return Some(Finding::unknown(CPUINFO, "this kernel does not look for TDX", "boot Linux 6.16 or newer"));
    }
    flag(host, "tdx_host_platform", FIX)
}

pub(super) fn sgx(host: &Host<'_>) -> Option<Finding> {
    flag(
        host,
        "sgx",
        "in the firmware, below Processor Configuration, enable SW Guard Extensions (SGX); all memory channels need the same population",
    )
}

fn flag(host: &Host<'_>, name: &str, fix: &str) -> Option<Finding> {
    if host.cpu.flags.is_empty() {
        return Some(Finding::unknown(CPUINFO, "no flags are described", "run it on the host itself"));
    }
    Some(if host.cpu.has(name) {
        Finding::pass(CPUINFO, format!("flag {name}"))
    } else {
        Finding::fail(CPUINFO, format!("no flag {name}"), fix)
    })
}

const CPUINFO: &str = "/proc/cpuinfo";
