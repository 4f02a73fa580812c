// SPDX-License-Identifier: Apache-2.0
//! The image's verified root, and from it what drives GPUs: kernel modules, device nodes, daemons.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use linux_sys::{
    SysError,
    landlock::{Access, Reach},
    modules, mounts, nodes,
    pci::{self, Class},
    process::{End, Program, start, user_and_parent, wait_for},
    verity::VerityRoot,
};

use crate::boot::{Code, Fails as _};
use crate::{
    boot::{Children, Failure},
    confinement, users,
};

/// What the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Devices {
    gpus: usize,
    switches: usize,
}

impl Devices {
    /// An image without a root has no driver: its configuration names no GPU. That the machine has none is the phase `gpu`'s to say.
    pub(crate) fn none(expected: u8) -> Result<Self, Failure> {
        if expected == 0 { Ok(Self { gpus: 0, switches: 0 }) } else { Err(Code::GpuCountMismatch.alone()) }
    }

    /// Mounts the root, counts the devices, and loads the driver when there are any: without one it does not load.
    pub(crate) fn attach(root: &VerityRoot, expected: u8) -> Result<Self, Failure> {
        let device = root.open(SERIAL).map_err(Code::RootDiskFailed.because())?;
        mounts::verified(&device, ROOT).map_err(Code::RootDiskFailed.because())?;
        let count = |class| pci::nvidia(class).map_err(Code::GpuCountMismatch.because());
        let devices = Self { gpus: count(Class::Gpu)?, switches: count(Class::Switch)? };
        devices.check(expected, Path::new(FABRIC_MANAGER).exists())?;
        if devices.gpus > 0 {
            modules::load(Path::new(MODULES), parameters).map_err(Code::ModulesFailed.because())?;
            devices.make_nodes().map_err(Code::GpuDriverFailed.because())?;
            runtime_directories().map_err(Code::GpuDriverFailed.because())?;
        }
        Ok(devices)
    }

    fn check(self, expected: u8, has_fabric_manager: bool) -> Result<(), Failure> {
        let Self { gpus, switches } = self;
        if gpus != usize::from(expected) {
            return Err(Code::GpuCountMismatch.because()(format_args!(
                "{gpus} GPUs, the configuration names {expected}"
            )));
        }
        if switches > 0 && !has_fabric_manager {
            return Err(Code::GpuFabricMissing.alone());
        }
        Ok(())
    }

    /// Starts the daemons of the devices that there are; the end of one ends the guest.
    pub(crate) fn start_daemons(self, children: &mut Children, inherits_stderr: bool) -> Result<(), Failure> {
        let Self { gpus, switches } = self;
        if switches > 0 {
            let manager = start(fabric_manager(inherits_stderr)).map_err(Code::GpuDriverFailed.because())?;
            children.watch(manager, Code::GpuDaemonEnded);
        }
        if gpus > 0 {
            let starter = start(persistence(inherits_stderr)).map_err(Code::GpuDriverFailed.because())?;
            children.watch(daemon_of(starter)?, Code::GpuDaemonEnded);
        }
        Ok(())
    }

    /// The driver makes none by itself. Its module's parameters say the same of them as is done here.
    fn make_nodes(self) -> Result<(), SysError> {
        let Self { gpus, switches } = self;
        let make =
            |name: String, major, minor| nodes::character(&Path::new("/dev").join(name), major, minor, users::GPU);
        make("nvidiactl".to_owned(), NVIDIA_MAJOR, CONTROL_MINOR)?;
        for minor in (0_u32..).take(gpus) {
            make(format!("nvidia{minor}"), NVIDIA_MAJOR, minor)?;
        }
        make("nvidia-uvm".to_owned(), driver("nvidia-uvm")?, 0)?;
        if switches > 0 {
            let major = driver("nvidia-nvswitch")?;
            make("nvidia-nvswitchctl".to_owned(), major, CONTROL_MINOR)?;
            for minor in (0_u32..).take(switches) {
                make(format!("nvidia-nvswitch{minor}"), major, minor)?;
            }
        }
        Ok(())
    }
}

fn driver(name: &str) -> Result<u32, SysError> {
    let missing = || SysError { what: "find a GPU driver", source: std::io::Error::other("no module registered it") };
    nodes::major_of(name)?.ok_or_else(missing)
}

/// The driver shall not change device files, and says which it expects: root's, of the group of all processes that use a GPU.
fn parameters(module: &str) -> String {
    if module != "nvidia.ko" {
        return String::new();
    }
    let (group, mode) = (users::GPU, 0o660);
    format!("NVreg_ModifyDeviceFiles=0 NVreg_DeviceFileUID=0 NVreg_DeviceFileGID={group} NVreg_DeviceFileMode={mode}")
}

/// Where the persistence daemon keeps its process id and its socket; it knows the directory by its old name.
///
/// # Errors
/// [`SysError`] at the first that cannot be made.
pub fn runtime_directories() -> Result<(), SysError> {
    mounts::directory(PERSISTENCE, 0o755)?;
    mounts::give(Path::new(PERSISTENCE), users::PERSISTENCE, users::GPU, 0o750)?;
    mounts::directory("/var", 0o755)?;
    symlink("/run", "/var/run").map_err(|source| SysError { what: "link a directory", source })
}

/// NVIDIA's persistence daemon, as it is started here: it keeps the driver's state while no other process has a GPU open.
///
/// Public, as [`runtime_directories`], for tests that look round in a guest.
#[must_use]
pub fn persistence(inherits_stderr: bool) -> Program<'static> {
    let mut program = daemon(PERSISTENCE_DAEMON, &["--uvm-persistence-mode"], users::PERSISTENCE, inherits_stderr);
    program.reach.paths.push((PERSISTENCE.into(), Access::Keep));
    program
}

/// Sets up the links between GPUs. It stays in the foreground by the image's configuration file (`DAEMONIZE=0`).
fn fabric_manager(inherits_stderr: bool) -> Program<'static> {
    daemon(FABRIC_MANAGER, &["-c", FABRIC_CONFIGURATION], users::FABRIC, inherits_stderr)
}

/// What NVIDIA's libraries need of the file system: themselves, what the kernel says of devices, and the devices.
pub(crate) fn reach() -> Vec<(PathBuf, Access)> {
    let mut paths = vec![(ROOT.into(), Access::Execute), ("/dev/null".into(), Access::Device)];
    paths.extend([ROOT, "/proc", "/sys", "/dev/random", "/dev/urandom"].map(|path| (path.into(), Access::Read)));
    paths.extend(device_files().into_iter().map(|path| (path, Access::Device)));
    paths
}

fn daemon(path: &'static str, arguments: &[&str], uid: u32, inherits_stderr: bool) -> Program<'static> {
    Program {
        path,
        arguments: arguments.iter().map(OsString::from).collect(),
        uid,
        gid: users::GPU,
        groups: Vec::new(),
        descriptors: Vec::new(),
        without_network: true,
        locks_memory: false,
        reach: Reach { paths: reach(), tcp_listen: None },
        filter: Some(confinement::daemon()),
        inherits_stderr,
    }
}

/// The nodes that were made here.
fn device_files() -> Vec<PathBuf> {
    let entries = fs::read_dir("/dev").into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"nvidia"));
    names.map(|entry| entry.path()).collect()
}

/// The process that was started ends when the daemon, its child, has opened the devices; then PID 1 is the daemon's parent.
fn daemon_of(starter: i32) -> Result<i32, Failure> {
    match wait_for(starter, PATIENCE).map_err(Code::GpuDriverFailed.because())? {
        Some(End::Exit(0)) => {}
        ended => return Err(Code::GpuDriverFailed.because()(format_args!("the persistence daemon: {ended:?}"))),
    }
    let mut text = String::new();
    let file = File::open(Path::new(PERSISTENCE).join("nvidia-persistenced.pid"));
    file.and_then(|file| file.take(32).read_to_string(&mut text)).map_err(Code::GpuDriverFailed.because())?;
    let pid = text.trim().parse().map_err(Code::GpuDriverFailed.because())?;
    match user_and_parent(pid) {
        Some((users::PERSISTENCE, 1)) => Ok(pid),
        _ => Err(Code::GpuDriverFailed.because()("the persistence daemon is not the process that its file names")),
    }
}

/// Where the verified root is mounted. Links of the image lead from `/usr`, `/lib` and `/lib64` into it.
const ROOT: &str = "/gpu";
const SERIAL: &str = "chrysalis-root";
const MODULES: &str = "/gpu/lib/modules";
const PERSISTENCE_DAEMON: &str = "/gpu/usr/bin/nvidia-persistenced";
const PERSISTENCE: &str = "/run/nvidia-persistenced";
const FABRIC_MANAGER: &str = "/gpu/usr/bin/nv-fabricmanager";
const FABRIC_CONFIGURATION: &str = "/gpu/usr/share/nvidia/nvswitch/fabricmanager.cfg";
/// `NV_MAJOR_DEVICE_NUMBER` and `NV_MINOR_DEVICE_NUMBER_CONTROL_DEVICE` of the driver (nv-chardev-numbers.h).
const NVIDIA_MAJOR: u32 = 195;
const CONTROL_MINOR: u32 = 255;
/// The first start of a GPU's firmware takes many seconds, and there may be sixteen.
const PATIENCE: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_must_have_what_the_configuration_names() {
        let code = |gpus, switches, expected, manager| {
            Devices { gpus, switches }.check(expected, manager).err().map(|failure| failure.code)
        };
        assert_eq!(code(1, 0, 1, false), None);
        assert_eq!(code(0, 0, 0, false), None);
        assert_eq!(code(8, 4, 8, true), None);
        for (gpus, expected) in [(0, 1), (1, 0), (2, 1), (1, 2), (256, 0)] {
            assert_eq!(code(gpus, 0, expected, true), Some(Code::GpuCountMismatch), "{gpus} {expected}");
        }
        assert_eq!(code(8, 4, 8, false), Some(Code::GpuFabricMissing));
        assert!(Devices::none(0).is_ok());
        assert_eq!(Devices::none(1).unwrap_err().code, Code::GpuCountMismatch);
    }

    #[test]
    fn the_driver_expects_the_nodes_that_are_made() {
        assert!(parameters("nvidia.ko").ends_with("NVreg_DeviceFileGID=104 NVreg_DeviceFileMode=432"));
        assert_eq!(parameters("nvidia-uvm.ko"), "");
    }
}
