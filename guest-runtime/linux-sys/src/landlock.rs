// SPDX-License-Identifier: Apache-2.0
//! Landlock: which files and ports a process may reach, whatever its user may do (Linux
//! `Documentation/userspace-api/landlock.rst`).
#![allow(unsafe_code, reason = "three system calls without wrappers")]

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::PathBuf,
};

use crate::SysError;

/// What a process may reach; all else is refused with `EACCES`. Descriptors that are open already are not affected, nor
/// are sockets other than TCP ones, and connections to sockets in the file system.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Files, or directories with all below them. What does not exist is left out: this machine has no such file.
    pub paths: Vec<(PathBuf, Access)>,
    /// The TCP port that it may listen on. It may connect to none.
    pub tcp_listen: Option<u16>,
}

/// What may be done with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read files, list directories.
    Read,
    /// Execute a file (and read it).
    Execute,
    /// Read and write files that exist, and control devices by ioctl.
    Device,
    /// Make Unix sockets in a directory.
    MakeSocket,
    /// Make, read, write and remove files and Unix sockets in a directory.
    Keep,
}

/// A ruleset that the kernel has taken, to be applied after a fork.
#[derive(Debug)]
pub(crate) struct Ruleset(OwnedFd);

impl Reach {
    /// Also the kernel's generator as a file: static programs have no other way to it in Rust's usual library.
    #[must_use]
    pub fn with_randomness(mut self) -> Self {
        self.paths.extend(["/dev/random", "/dev/urandom"].map(|path| (PathBuf::from(path), Access::Read)));
        self
    }

    /// Restricts this thread and all that it will start to what is in reach, for good. Threads that run already are not
    /// affected: call it before the first. It also forbids gaining rights by starting a program.
    ///
    /// # Errors
    /// [`SysError`], also where the kernel has no Landlock; then the process must not go on.
    pub fn confine(&self) -> Result<(), SysError> {
        let ruleset = self.ruleset()?;
        nix::sys::prctl::set_no_new_privs().map_err(SysError::when("forbid new privileges"))?;
        restrict_self(ruleset.as_raw_fd()).map_err(SysError::when("apply a Landlock ruleset"))
    }

    /// Makes the ruleset.
    ///
    /// # Errors
    /// [`SysError`], also where the kernel has no Landlock.
    pub(crate) fn ruleset(&self) -> Result<Ruleset, SysError> {
        let Self { paths, tcp_listen } = self;
        let handled = Handled::of(abi()?);
        let ruleset = handled.create()?;
        for (path, access) in paths {
            let opened = File::options().read(true).custom_flags(libc::O_PATH).open(path);
            match opened {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => allow_beneath(&ruleset, &opened.map_err(SysError::when("open a path to allow"))?, *access)?,
            }
        }
        if let Some(port) = tcp_listen
            && handled.net != 0
        {
            allow_listening(&ruleset, *port)?;
        }
        Ok(Ruleset(ruleset))
    }
}

impl Ruleset {
    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Applies a ruleset to this thread and what it will start. Only system calls: for use between fork and exec.
/// `no_new_privs` must be set.
pub(crate) fn restrict_self(ruleset: RawFd) -> io::Result<()> {
    // SAFETY: plain numbers.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The version of the interface, from 1.
pub(crate) fn abi() -> Result<i64, SysError> {
    let none = std::ptr::null::<RulesetAttributes>();
    // SAFETY: with this flag the kernel reads no structure.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, CREATE_RULESET_VERSION) };
    if version < 1 { Err(last_error("find Landlock in the kernel")) } else { Ok(version) }
}

/// What is refused unless a rule allows it: all that this version of the interface knows. The kernel of an image knows
/// all of it; a developer's may be older.
#[derive(Debug, Clone, Copy)]
struct Handled {
    fs: u64,
    net: u64,
    scoped: u64,
}

impl Handled {
    const fn of(abi: i64) -> Self {
        let fs = match abi {
            1 => 0x1fff,
            2 => 0x3fff,
            3 | 4 => 0x7fff,
            _ => 0xffff,
        };
        let net = if abi < 4 { 0 } else { BIND_TCP | CONNECT_TCP };
        let scoped = if abi < 6 { 0 } else { SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL };
        Self { fs, net, scoped }
    }

    fn create(self) -> Result<OwnedFd, SysError> {
        let attributes = RulesetAttributes { fs: self.fs, net: self.net, scoped: self.scoped };
        // Older kernels know a shorter structure, and a longer one only if its end is zero, which it is then.
        let size = size_of::<RulesetAttributes>();
        // SAFETY: the structure is landlock_ruleset_attr of linux/landlock.h and outlives the call.
        let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0) };
        let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(|| last_error("make a Landlock ruleset"))?;
        // SAFETY: the kernel has just made this descriptor for us (closed on exec).
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn allow_beneath(ruleset: &OwnedFd, path: &File, access: Access) -> Result<(), SysError> {
    let is_directory = path.metadata().map_err(SysError::when("look at a path to allow"))?.is_dir();
    let wanted = match access {
        Access::Read => READ_FILE | READ_DIR,
        Access::Execute => EXECUTE | READ_FILE,
        Access::Device => READ_FILE | WRITE_FILE | READ_DIR | IOCTL_DEV,
        Access::MakeSocket => MAKE_SOCK,
        Access::Keep => READ_FILE | WRITE_FILE | TRUNCATE | READ_DIR | MAKE_REG | MAKE_SOCK | REMOVE_FILE,
    };
    // The kernel refuses rights of directories on files, and rights it does not know.
    let allowed = wanted & Handled::of(abi()?).fs & if is_directory { u64::MAX } else { FILE_RIGHTS };
    let rule = PathBeneath { allowed_access: allowed, parent_fd: path.as_raw_fd() };
    // SAFETY: the structure is landlock_path_beneath_attr of linux/landlock.h; its descriptor is open.
    let done = unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), RULE_PATH_BENEATH, &raw const rule, 0)
    };
    if done < 0 { Err(last_error("allow a path")) } else { Ok(()) }
}

fn allow_listening(ruleset: &OwnedFd, port: u16) -> Result<(), SysError> {
    let rule = NetPort { allowed_access: BIND_TCP, port: port.into() };
    // SAFETY: the structure is landlock_net_port_attr of linux/landlock.h.
    let done =
        unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), RULE_NET_PORT, &raw const rule, 0) };
    if done < 0 { Err(last_error("allow a port")) } else { Ok(()) }
}

fn last_error(what: &'static str) -> SysError {
    SysError { what, source: io::Error::last_os_error() }
}

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct RulesetAttributes {
    fs: u64,
    net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`, which is packed.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

const _: () = assert!(size_of::<PathBeneath>() == 12);

/// `struct landlock_net_port_attr`.
#[repr(C)]
struct NetPort {
    allowed_access: u64,
    port: u64,
}

const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;
const RULE_NET_PORT: u32 = 2;
const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_REG: u64 = 1 << 8;
const MAKE_SOCK: u64 = 1 << 9;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
const FILE_RIGHTS: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
const BIND_TCP: u64 = 1 << 0;
const CONNECT_TCP: u64 = 1 << 1;
const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1 << 0;
const SCOPE_SIGNAL: u64 = 1 << 1;
