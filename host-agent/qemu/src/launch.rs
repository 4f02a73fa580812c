// SPDX-License-Identifier: Apache-2.0
//! The launch specification: a machine shape with the files and sockets of one run.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use types::{Device, MachineShape, QemuVersion, Sha384Digest};

/// Everything that QEMU is started with.
#[derive(Debug, Clone)]
pub struct LaunchSpec {
    /// The machine.
    pub shape: MachineShape,
    /// The image.
    pub image: ImageFiles,
    /// The kind of trust domain.
    pub tee: Tee,
    /// How vCPUs run.
    pub accelerator: Accelerator,
    /// The raw disk with the configuration.
    pub config_disk: PathBuf,
    /// The raw disk with the encrypted model pack.
    pub model_disk: PathBuf,
    /// The raw disk with the image's root and its hash tree, where the shape has [`Device::RootDisk`].
    pub root_disk: Option<PathBuf>,
    /// The host's GPUs that the guest gets.
    pub gpus: HostGpus,
    /// The host's NUMA node that memory outside of the trust domain is taken from first. The guest sees nothing of it. Private
    /// memory comes from the node of the processor that first touches it: whoever starts QEMU binds it to that node's.
    pub numa_node: Option<u16>,
    /// The one port that reaches the guest.
    pub network: PortForward,
    /// Who answers the guest's vsock.
    pub vsock: VsockBackend,
    /// Path of the control socket (QMP) that QEMU makes.
    pub qmp: PathBuf,
    /// Wait for `cont` on the control socket before the first instruction.
    pub paused: bool,
}

/// GPUs and NVSwitches of the host, bound to `vfio-pci`, each behind a root port of its own after the shape's devices.
///
/// They are no part of [`MachineShape`]: the ACPI tables of a machine that has some are others than those of its shape, and
/// a verifier accepts it only where the policy takes ACPI from the guest's log. Which GPUs a guest really got is for its
/// evidence to say.
#[derive(Debug, Clone, Default)]
pub struct HostGpus {
    /// Addresses as sysfs writes them: domain, bus, device and function, lower-case hexadecimal (`0000:b8:00.0`).
    pub addresses: Vec<String>,
    /// NVSwitches of the same board, written likewise: after the GPUs.
    pub switches: Vec<String>,
    /// Over iommufd; over the older VFIO container otherwise.
    pub iommufd: bool,
}

/// The measured files and the measured command line.
#[derive(Debug, Clone)]
pub struct ImageFiles {
    /// TDVF.
    pub firmware: PathBuf,
    /// bzImage.
    pub kernel: PathBuf,
    /// newc archive.
    pub initrd: PathBuf,
    /// Kernel command line.
    pub command_line: String,
}

/// The kind of trust domain.
#[derive(Debug, Clone)]
pub enum Tee {
    /// Intel TDX. Needs QEMU 10.1 and KVM.
    Tdx {
        /// SHA-384 of the configuration.
        mr_config_id: Sha384Digest,
        /// Socket of the quote generation service.
        quote_socket: PathBuf,
    },
    /// No trust domain at all: the hardware is simulated beside QEMU.
    Simulated,
}

/// How vCPUs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The kernel's virtual machines.
    Kvm,
    /// Emulation.
    Tcg,
}

/// One forwarded TCP port; the guest has no other way in, and no way out.
#[derive(Debug, Clone, Copy)]
pub struct PortForward {
    /// Where the host listens.
    pub listen: SocketAddrV4,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The guest's port.
    pub port: u16,
}

/// Who answers the guest's vsock.
#[derive(Debug, Clone)]
pub enum VsockBackend {
    /// The host kernel (`/dev/vhost-vsock`).
    Kernel {
        /// Context identifier, 3 or more.
        cid: u32,
    },
    /// A `vhost-device-vsock` process behind this socket.
    VhostUser {
        /// Its socket.
        socket: PathBuf,
    },
}

/// Why a launch was refused. Messages name the field and the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// A path is not UTF-8 or has control characters.
    #[error("{field}: the path must be UTF-8 without control characters")]
    Path {
        /// Which field.
        field: &'static str,
    },
    /// The command line has characters that a measured command line may not have.
    #[error("image.command_line must be 1 to 2047 printable ASCII characters")]
    CommandLine,
    /// QEMU interprets `vga=` itself and writes it into the kernel, whose measurement would be another.
    #[error("image.command_line must not contain vga=, which QEMU takes for itself")]
    Vga,
    /// TDX needs a newer QEMU.
    #[error("shape.qemu is {found}; a TDX guest needs QEMU 10.1 or newer: install it or correct the shape")]
    QemuTooOld {
        /// Version in the shape.
        found: QemuVersion,
    },
    /// TDX cannot be emulated.
    #[error("a TDX guest runs on KVM only")]
    TdxNeedsKvm,
    /// A context identifier below 3 is reserved.
    #[error("vsock.cid must be 3 or more")]
    ReservedCid,
    /// A device that the guest cannot boot without is missing from the shape.
    #[error("shape.devices lacks {0:?}, which every guest needs")]
    MissingDevice(Device),
    /// The shape has a root disk, and the image has no root.
    #[error(
        "shape.devices has root-disk, and the image has no file rootfs: launch an image that has one, or correct the shape"
    )]
    RootDiskMissing,
    /// The image has a root, and the shape has no disk for it.
    #[error("the image has a file rootfs, and shape.devices lacks root-disk: add it after the other devices")]
    RootDiskWithoutDevice,
    /// An address of a GPU is of another form.
    #[error("gpus[{index}]: a PCI address is written 0000:b8:00.0")]
    GpuAddress {
        /// Which of them.
        index: usize,
    },
    /// A GPU is named twice.
    #[error("gpus[{index}]: the same GPU stands before it")]
    GpuTwice {
        /// Which of them.
        index: usize,
    },
    /// More GPUs and NVSwitches than there are places for.
    #[error("gpus and nvswitches: at most {MAX_GPUS} together, found {found}")]
    TooManyGpus {
        /// How many.
        found: usize,
    },
    /// An address of an NVSwitch is of another form.
    #[error("nvswitches[{index}]: a PCI address is written 0000:07:00.0")]
    SwitchAddress {
        /// Which of them.
        index: usize,
    },
    /// An NVSwitch is named twice, or as a GPU.
    #[error("nvswitches[{index}]: the same device stands before it")]
    SwitchTwice {
        /// Which of them.
        index: usize,
    },
    /// The root disk's place is part of what ACPI references are published for.
    #[error("shape.devices must have root-disk after the other devices")]
    RootDiskOrder,
}

impl LaunchSpec {
    pub(crate) fn check(&self) -> Result<(), LaunchError> {
        let line = &self.image.command_line;
        if !(1..=2047).contains(&line.len()) || !line.bytes().all(|b| (0x20..0x7f).contains(&b)) {
            return Err(LaunchError::CommandLine);
        }
        // QEMU searches for the text, wherever it stands (hw/i386/x86.c).
        if line.contains("vga=") {
            return Err(LaunchError::Vga);
        }
        let facts = self.shape.facts();
        for needed in [Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock] {
            if !facts.devices.contains(&needed) {
                return Err(LaunchError::MissingDevice(needed));
            }
        }
        let root = facts.devices.iter().position(|device| *device == Device::RootDisk);
        match (root, &self.root_disk) {
            (Some(_), None) => return Err(LaunchError::RootDiskMissing),
            (None, Some(_)) => return Err(LaunchError::RootDiskWithoutDevice),
            (Some(at), Some(_)) if at.checked_add(1) != Some(facts.devices.len()) => {
                return Err(LaunchError::RootDiskOrder);
            }
            _ => {}
        }
        self.gpus.check()?;
        if let VsockBackend::Kernel { cid: 0..=2 } = self.vsock {
            return Err(LaunchError::ReservedCid);
        }
        if matches!(self.tee, Tee::Tdx { .. }) {
            if self.accelerator != Accelerator::Kvm {
                return Err(LaunchError::TdxNeedsKvm);
            }
            if facts.qemu < (QemuVersion { major: 10, minor: 1 }) {
                return Err(LaunchError::QemuTooOld { found: facts.qemu });
            }
        }
        Ok(())
    }
}

impl HostGpus {
    fn check(&self) -> Result<(), LaunchError> {
        let Self { addresses, switches, iommufd: _ } = self;
        let found = addresses.len().saturating_add(switches.len());
        if found > MAX_GPUS {
            return Err(LaunchError::TooManyGpus { found });
        }
        for (index, address) in addresses.iter().enumerate() {
            if !is_address(address) {
                return Err(LaunchError::GpuAddress { index });
            }
            if addresses.iter().take(index).any(|before| before == address) {
                return Err(LaunchError::GpuTwice { index });
            }
        }
        for (index, address) in switches.iter().enumerate() {
            if !is_address(address) {
                return Err(LaunchError::SwitchAddress { index });
            }
            if addresses.iter().chain(switches.iter().take(index)).any(|before| before == address) {
                return Err(LaunchError::SwitchTwice { index });
            }
        }
        Ok(())
    }
}

/// `dddd:bb:dd.f`, so that nothing in it can add an option.
fn is_address(text: &str) -> bool {
    let form = "xxxx:xx:xx.x".bytes();
    let fits = |(found, wanted): (u8, u8)| match wanted {
        b'x' => matches!(found, b'0'..=b'9' | b'a'..=b'f'),
        other => found == other,
    };
    text.len() == form.len() && text.bytes().zip(form).all(fits)
}

/// As many GPUs as a guest's configuration can name, and as many devices as the root bus has slots for in any case.
pub(crate) const MAX_GPUS: usize = 16;
