// SPDX-License-Identifier: Apache-2.0
//! Whether a guest can have the GPUs that it is to have.

use std::collections::BTreeSet;

use fleet::GuestName;
use types::Refusal;
use vfio::{DeviceKind, HostTree, PciDevice, device_nodes, inventory, usage};

use super::config::{Config, GpuAddress, GuestSection};
use super::paths::Paths;
use crate::pid::Process;
use crate::progress::Progress;

/// All reasons against the GPUs of a guest.
pub(crate) fn check(config: &Config, name: &GuestName, guest: &GuestSection) -> Vec<Refusal> {
    if guest.gpus.is_empty() && guest.nvswitches.is_empty() {
        return Vec::new();
    }
    let field = format!("guests.{name}.gpus");
    let own = own_processes(config, name);
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
    let looking =
        Looking { tree: &tree, devices: &devices, field: &field, bound_later: config.hardware.bind_gpus, own };
    let mut reasons: Vec<Refusal> =
        guest.gpus.iter().flat_map(|gpu| looking.check_one(*gpu, DeviceKind::Gpu)).collect();
    let of_switches = format!("guests.{name}.nvswitches");
    let looking = Looking { field: &of_switches, ..looking };
    reasons.extend(guest.nvswitches.iter().flat_map(|switch| looking.check_one(*switch, DeviceKind::NvSwitch)));
    // A machine's shape knows no passed-through device: no reference that a release can have is one of this machine.
    if !guest.unpublished_shape {
        reasons.push(Refusal::new(
            "shape_not_published",
            &field,
            "no release has references for a machine with passed-through GPUs",
            "set unpublished_shape = true, if your clients' policy takes ACPI tables from the guest's log (acpi: from-event-log)",
        ));
    }
    reasons
}

/// QEMU's processes of a guest's own generations: that they have its GPUs open is no reason against it. Which they are is
/// the word of guests' user, and is taken of that user's processes alone.
fn own_processes(config: &Config, name: &GuestName) -> BTreeSet<u32> {
    let paths = Paths::new(&config.agent.state_dir);
    let Ok(account) = config.account() else { return BTreeSet::new() };
    let progress = |number| Progress::load(&paths.run_dir(name, number));
    let said = paths.generations(name).into_iter().filter_map(|number| progress(number)?.qemu_pid);
    let of_user = |pid: &u32| i32::try_from(*pid).ok().and_then(Process::other).is_some_and(|p| p.is_of(account.uid()));
    said.filter(of_user).collect()
}

struct Looking<'a> {
    tree: &'a HostTree,
    devices: &'a [PciDevice],
    field: &'a str,
    /// The agent binds it before the guest starts.
    bound_later: bool,
    own: BTreeSet<u32>,
}

impl Looking<'_> {
    fn check_one(&self, gpu: GpuAddress, kind: DeviceKind) -> Vec<Refusal> {
        let Self { tree, devices, field, bound_later, own } = self;
        let address = gpu.0;
        let refuse = |code: &str, detail: String, fix: &str| Refusal::new(code, field, detail, fix);
        let Some(device) = devices.iter().find(|device| device.address == address) else {
            let detail = format!("there is no device {address}");
            return vec![refuse("gpu_not_found", detail, "`host-agent gpu list` shows what there is")];
        };
        if device.kind != kind {
            let (code, what) = match kind {
                DeviceKind::NvSwitch => ("not_an_nvswitch", "NVSwitch"),
                _ => ("not_a_gpu", "NVIDIA GPU"),
            };
            return vec![refuse(code, format!("{address} is no {what}"), "`host-agent gpu list` shows what there is")];
        }
        let mut reasons = Vec::new();
        let bound = device.driver.as_deref() == Some("vfio-pci");
        if !bound && !bound_later {
            let driver = device.driver.as_deref().unwrap_or("no driver");
            let detail = format!("{address} is bound to {driver}");
            reasons.push(refuse("gpu_not_bound", detail, &format!("host-agent gpu bind {address}")));
        } else if bound
            && !bound_later
            && let Some(closed) = device_nodes(tree, device).into_iter().find(|node| !node.usable())
        {
            let detail = format!("/{} is not open to the agent's user", closed.path);
            reasons.push(refuse("permission_missing", detail, "host-agent gpu udev-rule --group kvm --install"));
        }
        let holders = usage(tree, std::slice::from_ref(device)).holders;
        if let Some(holder) = holders.iter().find(|holder| !own.contains(&holder.pid)) {
            let detail = format!("{address} is in use: process {} has {} open", holder.pid, holder.node);
            reasons.push(refuse("gpu_busy", detail, "stop what uses it"));
        }
        reasons
    }
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
        assert_eq!(codes(root), ["gpu_not_found", "shape_not_published"]);
        std::fs::create_dir_all(&device).unwrap();
        let set = |file: &str, value: &str| std::fs::write(device.join(file), value).unwrap();
        set("vendor", "0x8086");
        set("device", "0x1234");
        set("class", "0x030000");
        assert_eq!(codes(root), ["not_a_gpu", "shape_not_published"]);
        set("vendor", "0x10de");
        assert_eq!(codes(root), ["gpu_not_bound", "shape_not_published"]);
        symlink("../../drivers/vfio-pci", device.join("driver")).unwrap();
        symlink("../../kernel/iommu_groups/9", device.join("iommu_group")).unwrap();
        assert_eq!(codes(root), ["permission_missing", "shape_not_published"]);
        std::fs::create_dir_all(root.join("proc/77/fd")).unwrap();
        symlink("/dev/vfio/9", root.join("proc/77/fd/5")).unwrap();
        assert_eq!(codes(root), ["permission_missing", "gpu_busy", "shape_not_published"]);
    }
}
