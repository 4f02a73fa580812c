// SPDX-License-Identifier: Apache-2.0
//! Whether a guest can have the GPUs that it is to have.

use fleet::GuestName;
use types::Refusal;
use vfio::{DeviceKind, HostTree, PciDevice, device_nodes, inventory, usage};

use super::config::{Config, GpuAddress, GuestSection};

/// All reasons against the GPUs of a guest.
pub(crate) fn check(config: &Config, name: &GuestName, guest: &GuestSection) -> Vec<Refusal> {
    if guest.gpus.is_empty() {
        return Vec::new();
    }
    let field = format!("guests.{name}.gpus");
    let unreadable = |detail: String| {
        vec![Refusal::new("sysfs_unreadable", &field, detail, "run the agent on the host, not in a container")]
    };
    let tree = match HostTree::open(&config.hardware.root) {
        Ok(tree) => tree,
        Err(error) => return unreadable(error.to_string()),
    };
    let devices = match inventory(&tree) {
        Ok(devices) => devices,
        Err(error) => return unreadable(error.to_string()),
    };
    let mut reasons: Vec<Refusal> =
        guest.gpus.iter().flat_map(|gpu| check_one(&tree, &devices, &field, *gpu)).collect();
    // The shape of a machine has no passed-through device yet: it would boot, find no GPU, and halt.
    reasons.push(Refusal::new(
        "gpus_not_passed_on",
        &field,
        "this version gives QEMU no GPU",
        "leave gpus out, and take the image for processors",
    ));
    reasons
}

fn check_one(tree: &HostTree, devices: &[PciDevice], field: &str, gpu: GpuAddress) -> Vec<Refusal> {
    let address = gpu.0;
    let refuse = |code: &str, detail: String, fix: &str| Refusal::new(code, field, detail, fix);
    let Some(device) = devices.iter().find(|device| device.address == address) else {
        let detail = format!("there is no device {address}");
        return vec![refuse("gpu_not_found", detail, "`host-agent gpu list` shows what there is")];
    };
    if device.kind != DeviceKind::Gpu {
        let detail = format!("{address} is no NVIDIA GPU");
        return vec![refuse("not_a_gpu", detail, "`host-agent gpu list` shows what there is")];
    }
    let mut reasons = Vec::new();
    if device.driver.as_deref() != Some("vfio-pci") {
        let driver = device.driver.as_deref().unwrap_or("no driver");
        let detail = format!("{address} is bound to {driver}");
        reasons.push(refuse("gpu_not_bound", detail, &format!("host-agent gpu bind {address}")));
    } else if let Some(closed) = device_nodes(tree, device).into_iter().find(|node| !node.usable()) {
        let detail = format!("/{} is not open to the agent's user", closed.path);
        reasons.push(refuse("permission_missing", detail, "host-agent gpu udev-rule --group kvm --install"));
    }
    if let Some(holder) = usage(tree, std::slice::from_ref(device)).holders.first() {
        let detail = format!("{address} is in use: process {} has {} open", holder.pid, holder.node);
        reasons.push(refuse("gpu_busy", detail, "stop what uses it"));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    const ADDRESS: &str = "0000:b8:00.0";

    fn codes(root: &Path) -> Vec<String> {
        let text = format!(
            "[hardware]\nroot = \"{}\"\n[models.m]\nmodel = \"m@1:{zero}\"\npack = \"{zero}\"\nsources = [\"/p\"]\n\
             [releases.r]\nbundle = \"b\"\ntrust = \"t\"\nimage = \"i\"\n\
             [services.s]\naddress = \"127.0.0.1:1\"\nspki_sha256 = \"{zero}\"\n\
             [guests.a]\nlisten = \"127.0.0.1:443\"\nrelease = \"r\"\nmodel = \"m\"\nservice = \"s\"\nvcpus = 1\nmemory_mib = 512\n\
             gpus = [\"{ADDRESS}\"]\n",
            root.display(),
            zero = "0".repeat(64),
        );
        let config = Config::parse(&text).unwrap();
        let name = "a".parse().unwrap();
        let reasons = check(&config, &name, &config.guests[&name]);
        assert!(reasons.iter().all(|reason| reason.field == "guests.a.gpus" && !reason.fix.is_empty()));
        reasons.into_iter().map(|reason| reason.code).collect()
    }

    #[test]
    fn each_fault_of_a_gpu_has_its_code() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let device = root.join("sys/bus/pci/devices").join(ADDRESS);
        std::fs::create_dir_all(root.join("proc")).unwrap();
        assert_eq!(codes(root), ["sysfs_unreadable"]);
        std::fs::create_dir_all(device.parent().unwrap()).unwrap();
        assert_eq!(codes(root), ["gpu_not_found", "gpus_not_passed_on"]);
        std::fs::create_dir_all(&device).unwrap();
        let set = |file: &str, value: &str| std::fs::write(device.join(file), value).unwrap();
        set("vendor", "0x8086");
        set("device", "0x1234");
        set("class", "0x030000");
        assert_eq!(codes(root), ["not_a_gpu", "gpus_not_passed_on"]);
        set("vendor", "0x10de");
        assert_eq!(codes(root), ["gpu_not_bound", "gpus_not_passed_on"]);
        symlink("../../drivers/vfio-pci", device.join("driver")).unwrap();
        symlink("../../kernel/iommu_groups/9", device.join("iommu_group")).unwrap();
        assert_eq!(codes(root), ["permission_missing", "gpus_not_passed_on"]);
        std::fs::create_dir_all(root.join("proc/77/fd")).unwrap();
        symlink("/dev/vfio/9", root.join("proc/77/fd/5")).unwrap();
        assert_eq!(codes(root), ["permission_missing", "gpu_busy", "gpus_not_passed_on"]);
    }
}
