// SPDX-License-Identifier: Apache-2.0
//! From a launch specification to the arguments of QEMU.
//!
//! Pure: no process is started and no file is read here. [`MachineShape`] is the only source of shape facts; it is
//! taken apart without `..`, so that a new fact cannot be forgotten. What QEMU is told proves nothing: the registers do.

mod arguments;
mod launch;

pub use launch::{Accelerator, HostGpus, ImageFiles, LaunchError, LaunchSpec, PortForward, Tee, VsockBackend};

use types::{Device, MachineShape, shape::ShapeFacts};

use arguments::Arguments;

/// Serial of the disk with the configuration.
pub const CONFIG_DISK_SERIAL: &str = "chrysalis-config";
/// Serial of the disk with the encrypted model.
pub const MODEL_DISK_SERIAL: &str = "chrysalis-model";
/// Serial of the disk with the verified root of an image that has one.
pub const ROOT_DISK_SERIAL: &str = "chrysalis-root";
/// PCI slot of the first device; the others follow in the shape's order.
pub const FIRST_SLOT: usize = 2;

/// The arguments (without the program) that start `spec`.
///
/// # Errors
/// [`LaunchError`] names the field and the rule.
pub fn arguments(spec: &LaunchSpec) -> Result<Vec<String>, LaunchError> {
    spec.check()?;
    let LaunchSpec {
        shape,
        image,
        tee,
        accelerator,
        config_disk,
        model_disk,
        root_disk,
        gpus,
        numa_node,
        network,
        vsock,
        qmp,
        paused,
    } = spec;
    let ShapeFacts { vcpus, memory_mib, physical_bits, qemu: _, devices } = shape.facts();
    let mut out = Arguments::default();
    machine(&mut out, tee);
    accelerate(&mut out, *accelerator, vcpus, physical_bits);
    memory(&mut out, memory_mib, *numa_node);
    out.option("-smp", &vcpus.to_string());
    out.quiet();
    out.sandbox();
    out.path_option("-bios", &image.firmware)?;
    out.path_option("-kernel", &image.kernel)?;
    out.path_option("-initrd", &image.initrd)?;
    out.option("-append", &image.command_line);
    confidential(&mut out, tee)?;
    for (index, device) in devices.iter().enumerate() {
        let slot = FIRST_SLOT + index;
        match device {
            Device::ConfigDisk => out.disk("config", config_disk, CONFIG_DISK_SERIAL, slot)?,
            Device::ModelDisk => out.disk("model", model_disk, MODEL_DISK_SERIAL, slot)?,
            Device::Network => out.network(network, slot),
            Device::Vsock => out.vsock(vsock, slot)?,
            Device::RootDisk => {
                let root_disk = root_disk.as_deref().ok_or(LaunchError::RootDiskMissing)?;
                out.disk("root", root_disk, ROOT_DISK_SERIAL, slot)?;
            }
        }
    }
    out.gpus(gpus, FIRST_SLOT + devices.len());
    out.option("-qmp", &format!("unix:{},server=on,wait=off", arguments::escaped("qmp", qmp)?));
    if *paused {
        out.flag("-S");
    }
    Ok(out.into_vec())
}

/// The arguments of a machine with the same ACPI tables as `shape` that needs no image, no disks and no vsock backend:
/// for reading the tables out of a QEMU that never runs a guest. The tables describe which slots are occupied, not by what,
/// so that any endpoint device may stand in a slot.
#[must_use]
pub fn table_arguments(shape: &MachineShape) -> Vec<String> {
    let ShapeFacts { vcpus, memory_mib, physical_bits, qemu: _, devices } = shape.facts();
    let mut out = Arguments::default();
    machine(&mut out, &Tee::Simulated);
    accelerate(&mut out, Accelerator::Tcg, vcpus, physical_bits);
    memory(&mut out, memory_mib, None);
    out.option("-smp", &vcpus.to_string());
    out.quiet();
    for (index, _) in devices.iter().enumerate() {
        out.option("-device", &format!("virtio-rng-pci,disable-legacy=on,addr={:#x}", FIRST_SLOT + index));
    }
    out.flag("-S");
    out.into_vec()
}

/// A trust domain has neither system management mode nor the two legacy interrupt controllers; QEMU says so in the ACPI
/// tables. A machine that is none goes without them, too: its tables are then those of a trust domain, and tables read
/// out of an emulated machine hold for both.
fn machine(out: &mut Arguments, tee: &Tee) {
    let common = "q35,memory-backend=mem0,smm=off,pic=off";
    match tee {
        Tee::Tdx { .. } => {
            out.option("-machine", &format!("{common},kernel-irqchip=split,confidential-guest-support=tdx0"));
        }
        Tee::Simulated => out.option("-machine", common),
    }
}

/// The width of physical addresses is always said, never left to QEMU: it decides about ACPI tables. A trust domain has
/// its host's width, and QEMU refuses to start one with another, so that a wrong shape is noticed before it is measured.
fn accelerate(out: &mut Arguments, accelerator: Accelerator, vcpus: u16, physical_bits: u8) {
    match accelerator {
        Accelerator::Kvm => {
            out.option("-accel", "kvm");
            out.option("-cpu", &format!("host,host-phys-bits=off,phys-bits={physical_bits}"));
        }
        Accelerator::Tcg => {
            // One thread per vCPU. AVX is hidden: switching between 256-bit and SSE code is very slow under emulation.
            out.option("-accel", threads(vcpus));
            out.option("-cpu", &format!("max,phys-bits={physical_bits},-avx,-avx2,-fma,-f16c,-vaes,-vpclmulqdq"));
        }
    }
}

/// Preferred and not bound: a node that has too little memory makes a guest slower and ends none.
fn memory(out: &mut Arguments, mib: u32, node: Option<u16>) {
    let place = node.map_or(String::new(), |node| format!(",host-nodes={node},policy=preferred"));
    out.option("-m", &format!("{mib}M"));
    out.option("-object", &format!("memory-backend-memfd,id=mem0,size={mib}M,share=on{place}"));
}

fn confidential(out: &mut Arguments, tee: &Tee) -> Result<(), LaunchError> {
    let Tee::Tdx { mr_config_id, quote_socket } = tee else {
        return Ok(());
    };
    let object = serde_json::json!({
        "qom-type": "tdx-guest",
        "id": "tdx0",
        "sept-ve-disable": true,
        "mrconfigid": base64_of(mr_config_id.as_bytes()),
        "quote-generation-socket": { "type": "unix", "path": arguments::text("quote_socket", quote_socket)? },
    });
    out.option("-object", &object.to_string());
    Ok(())
}

fn threads(vcpus: u16) -> &'static str {
    match vcpus {
        0 | 1 => "tcg",
        2..=MOST_THREADS => "tcg,thread=multi",
        _ => "tcg,thread=single",
    }
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Emulated processors that wait for each other starve the one that works when there are far more of them than host cores:
/// beyond this number one thread runs all in turn.
const MOST_THREADS: u16 = 8;

#[cfg(test)]
mod tests;
