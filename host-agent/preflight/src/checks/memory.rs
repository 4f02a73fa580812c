// SPDX-License-Identifier: Apache-2.0
//! Memory: free, not locked up, near, lockable.

use crate::host::Host;
use crate::report::Finding;

pub(super) fn available(host: &Host<'_>) -> Option<Finding> {
    let Some(available) = host.memory(MEMINFO, "MemAvailable") else {
        return Some(Finding::unknown("/proc/meminfo", "no MemAvailable", "run it on the host itself"));
    };
    let needed = host.settings.memory_mib;
    let found = format!("{} MiB available", available >> 20);
    Some(if available >> 20 >= needed {
        Finding::pass("/proc/meminfo", found)
    } else {
        let fix = format!("free memory: the guests need {needed} MiB (--memory-mib)");
        Finding::fail("/proc/meminfo", found, fix)
    })
}

/// The private memory of a trust domain (guest_memfd) does not come from huge pages: those that are set aside are lost.
pub(super) fn huge_pages(host: &Host<'_>) -> Option<Finding> {
    let total = host.memory(MEMINFO, "MemTotal")?;
    let pages = host.memory(MEMINFO, "HugePages_Total").unwrap_or(0);
    let reserved = pages.saturating_mul(host.memory(MEMINFO, "Hugepagesize").unwrap_or(0));
    let found = format!("{} MiB set aside of {} MiB", reserved >> 20, total >> 20);
    Some(if reserved > total / 4 {
        Finding::warn("/proc/meminfo", found, "sysctl vm.nr_hugepages=0: trust domains do not use huge pages")
    } else {
        Finding::pass("/proc/meminfo", found)
    })
}

pub(super) fn numa(host: &Host<'_>) -> Option<Finding> {
    let names = host.tree.entries(NODES).unwrap_or_default();
    let nodes: Vec<&String> = names.iter().filter(|name| number(name).is_some()).collect();
    let mut findings = Vec::new();
    for node in &nodes {
        let path = format!("{NODES}/{node}/meminfo");
        let total = host.memory(&path, "MemTotal").unwrap_or(0);
        let (source, found) = (format!("/{path}"), format!("{} MiB", total >> 20));
        findings.push(if total == 0 {
            Finding::warn(
                &source,
                found,
                "populate the memory channels of each socket: guests there have far memory only",
            )
        } else {
            Finding::pass(&source, found)
        });
    }
    if nodes.len() > 1 {
        for device in host.passable() {
            let source = format!("/{}", device.address.file("numa_node"));
            findings.push(match device.numa_node {
                Some(node) => Finding::pass(&source, node.to_string()),
                None => Finding::warn(
                    &source,
                    "not known",
                    "update the firmware, or enable NUMA (and disable node interleaving) in it",
                ),
            });
        }
    }
    let none = || Finding::unknown("/sys/devices/system/node", "no nodes", "run it on the host itself");
    Some(Finding::all(findings).unwrap_or_else(none))
}

/// VFIO pins the shared memory of a guest, on the account of QEMU's user.
pub(super) fn lock_limit(host: &Host<'_>) -> Option<Finding> {
    const SOURCE: &str = "/proc/self/limits";
    const FIX: &str = "LimitMEMLOCK=infinity in the unit that starts guests, or: ulimit -l unlimited";
    if !host.wants_gpus() {
        return None;
    }
    let keep = |line: &str| line.starts_with("Max locked memory").then(|| line.to_owned());
    let lines = host.tree.lines("proc/self/limits", keep).unwrap_or_default();
    let Some(soft) = lines.first().and_then(|line| line.split_ascii_whitespace().nth(3).map(str::to_owned)) else {
        return Some(Finding::unknown(SOURCE, "no limit is described", FIX));
    };
    let enough = soft == "unlimited" || soft.parse::<u64>().is_ok_and(|bytes| bytes >> 20 >= host.settings.memory_mib);
    let found = format!("soft limit {soft}");
    Some(if enough { Finding::pass(SOURCE, found) } else { Finding::warn(SOURCE, found, FIX) })
}

fn number(name: &str) -> Option<u32> {
    name.strip_prefix("node")?.parse().ok()
}

const MEMINFO: &str = "proc/meminfo";
const NODES: &str = "sys/devices/system/node";
