// SPDX-License-Identifier: Apache-2.0
//! Writing QEMU's option syntax without giving a path the power to add options.

use std::path::Path;

use crate::launch::{HostGpus, LaunchError, PortForward, VsockBackend};

/// The argument list under construction.
#[derive(Default)]
pub(crate) struct Arguments(Vec<String>);

impl Arguments {
    pub(crate) fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    pub(crate) fn option(&mut self, name: &str, value: &str) {
        self.0.push(name.to_owned());
        self.0.push(value.to_owned());
    }

    /// An option whose whole value is one path: nothing is parsed in it.
    pub(crate) fn path_option(&mut self, name: &'static str, path: &Path) -> Result<(), LaunchError> {
        let value = text(name, path)?.to_owned();
        self.option(name, &value);
        Ok(())
    }

    /// No default devices, no user configuration, no display; a reset ends the process.
    pub(crate) fn quiet(&mut self) {
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            self.flag(flag);
        }
        self.option("-display", "none");
    }

    /// QEMU's own system call filter, from before the first instruction of the guest. A QEMU that a guest has taken over
    /// starts no program, gains no right and changes no scheduling. Nothing that QEMU does for KVM, VFIO, vhost or the quote
    /// service's socket is among the calls that these four sets hold.
    pub(crate) fn sandbox(&mut self) {
        self.option("-sandbox", SANDBOX);
    }

    pub(crate) fn disk(
        &mut self,
        field: &'static str,
        path: &Path,
        serial: &str,
        slot: usize,
    ) -> Result<(), LaunchError> {
        let node = serde_json::json!({
            "driver": "raw", "node-name": field, "read-only": true,
            "file": { "driver": "file", "filename": text(field, path)?, "read-only": true },
        });
        self.option("-blockdev", &node.to_string());
        self.option(
            "-device",
            &format!("virtio-blk-pci,drive={field},serial={serial},disable-legacy=on,addr={slot:#x}"),
        );
        Ok(())
    }

    pub(crate) fn network(&mut self, forward: &PortForward, slot: usize) {
        let PortForward { listen, address, port } = forward;
        self.option("-netdev", &format!("user,id=net0,restrict=on,hostfwd=tcp:{listen}-{address}:{port}"));
        self.option("-device", &format!("virtio-net-pci,netdev=net0,disable-legacy=on,romfile=,addr={slot:#x}"));
    }

    pub(crate) fn vsock(&mut self, backend: &VsockBackend, slot: usize) -> Result<(), LaunchError> {
        match backend {
            VsockBackend::Kernel { cid } => {
                self.option("-device", &format!("vhost-vsock-pci,guest-cid={cid},disable-legacy=on,addr={slot:#x}"));
            }
            VsockBackend::VhostUser { socket } => {
                self.option("-chardev", &format!("socket,id=vsock0,path={}", escaped("vsock.socket", socket)?));
                self.option(
                    "-device",
                    &format!("vhost-user-vsock-pci,chardev=vsock0,disable-legacy=on,addr={slot:#x}"),
                );
            }
        }
        Ok(())
    }

    /// Each GPU and NVSwitch behind a root port, as on the host's own board. Nothing is plugged in later, and the guest sees no option
    /// ROM: firmware would run and measure it.
    pub(crate) fn gpus(&mut self, gpus: &HostGpus, first_slot: usize) {
        let HostGpus { addresses, switches, iommufd } = gpus;
        if *iommufd && !(addresses.is_empty() && switches.is_empty()) {
            self.option("-object", "iommufd,id=iommufd0");
        }
        let by = if *iommufd { ",iommufd=iommufd0" } else { "" };
        let named = |kind, all: &[String]| {
            let numbered = all.iter().enumerate();
            numbered.map(|(number, address)| (format!("{kind}{number}"), address.clone())).collect::<Vec<_>>()
        };
        let all = named("gpu", addresses).into_iter().chain(named("nvswitch", switches));
        for (index, (port, address)) in all.enumerate() {
            let (slot, chassis) = (first_slot + index, index + 1);
            let place = format!("pcie-root-port,id={port},bus=pcie.0,chassis={chassis},hotplug=off,addr={slot:#x}");
            self.option("-device", &place);
            self.option("-device", &format!("vfio-pci,host={address},bus={port},rombar=0{by}"));
        }
    }

    pub(crate) fn into_vec(self) -> Vec<String> {
        self.0
    }
}

/// A path as text, if it has no control characters.
pub(crate) fn text<'a>(field: &'static str, path: &'a Path) -> Result<&'a str, LaunchError> {
    path.to_str()
        .filter(|text| !text.is_empty() && !text.chars().any(char::is_control))
        .ok_or(LaunchError::Path { field })
}

/// A path inside a comma-separated option: a comma is written twice.
pub(crate) fn escaped(field: &'static str, path: &Path) -> Result<String, LaunchError> {
    Ok(text(field, path)?.replace(',', ",,"))
}

/// All four sets that QEMU has a word for (qemu(1), `-sandbox`). A call that is denied ends QEMU.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
