// SPDX-License-Identifier: Apache-2.0
//! The two stages that make a room and start a tool in it (namespaces(7), user_namespaces(7), pivot_root(2)).

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Uid, chdir, getegid, geteuid, pivot_root, sethostname};

use super::{Mount, NO_ROOM, Plan, SUBCOMMAND, THIS_PROGRAM};

/// Which process this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Makes the namespaces.
    Outer,
    /// Is their first process.
    Inner,
}

/// Why a room could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The plan on standard input is not one.
    #[error("the plan of the build root: {0}")]
    Plan(std::io::Error),
    /// This user may not make namespaces.
    #[error(
        "this user may not make namespaces ({0}): the build root needs user namespaces, or root with CAP_SYS_ADMIN"
    )]
    Namespaces(Errno),
    /// A step failed.
    #[error("build root: {step}: {source}")]
    Step {
        /// What was tried.
        step: String,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
}

impl EnterError {
    /// The exit status that tells this failure from a tool's.
    #[must_use]
    pub fn status(&self) -> u8 {
        NO_ROOM
    }
}

/// Enters the room whose plan stands on standard input, runs the tool and returns its exit status (128 and the number of
/// the signal that ended it). Must be called while the process has one thread.
///
/// # Errors
/// [`EnterError`] when the tool was not started.
pub fn enter(stage: Stage) -> Result<u8, EnterError> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("tie to the parent's life"))?;
    let mut text = Vec::new();
    std::io::stdin().lock().take(MAX_PLAN).read_to_end(&mut text).map_err(EnterError::Plan)?;
    match stage {
        Stage::Outer => outer(&text),
        Stage::Inner => inner(&serde_json::from_slice(&text).map_err(|e| EnterError::Plan(e.into()))?),
    }
}

fn outer(plan: &[u8]) -> Result<u8, EnterError> {
    let (user, group) = (geteuid(), getegid());
    match unshare(CloneFlags::CLONE_NEWUSER) {
        Ok(()) => map_ids(user, group)?,
        // Root can do without: the room is the same, only its walls are thinner.
        Err(_) if user.is_root() => {}
        Err(error) => return Err(EnterError::Namespaces(error)),
    }
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    unshare(flags).map_err(EnterError::Namespaces)?;
    let failed = |source| EnterError::Step { step: "start the inner stage".to_owned(), source };
    let mut command = Command::new(THIS_PROGRAM);
    command.args([SUBCOMMAND, "--stage", "inner"]).stdin(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(plan).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(KILLED))
}

/// Root inside is this user outside, and nobody else is anybody.
fn map_ids(user: Uid, group: Gid) -> Result<(), EnterError> {
    for (file, text) in
        [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {user} 1")), ("gid_map", format!("0 {group} 1"))]
    {
        let path = Path::new("/proc/self").join(file);
        std::fs::write(&path, text).map_err(|source| EnterError::Step { step: format!("write {file}"), source })?;
    }
    Ok(())
}

fn inner(plan: &Plan) -> Result<u8, EnterError> {
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(step("keep mounts private"))?;
    bind(&plan.root, &plan.root, false)?;
    let system = [scratch("/tmp"), scratch("/dev")].into_iter().chain(DEVICES.iter().map(|name| device(name)));
    for mount in system.chain(plan.mounts.iter().cloned()) {
        perform(&plan.root, &mount)?;
    }
    for (name, target) in [("fd", "/proc/self/fd"), ("shm", "/tmp")] {
        let link = plan.root.join("dev").join(name);
        std::os::unix::fs::symlink(target, &link).map_err(|source| failure("link", &link, source))?;
    }
    show_processes(&plan.root.join("proc"))?;
    chdir(&plan.root).map_err(step("enter the root"))?;
    pivot_root(".", ".").map_err(step("change the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("leave the old root"))?;
    umask(Mode::from_bits_truncate(0o022));
    sethostname(HOST_NAME).map_err(step("set the host name"))?;
    nix::sys::prctl::set_no_new_privs().map_err(step("give up new privileges"))?;
    run(plan)
}

/// Starts the tool and reaps whatever it leaves, until the tool itself ends: then the kernel ends the rest.
fn run(plan: &Plan) -> Result<u8, EnterError> {
    let mut command = Command::new(&plan.program);
    command.args(&plan.arguments).env_clear().envs(plan.variables.iter().map(|(n, v)| (n, v)));
    command.current_dir(&plan.directory).stdin(Stdio::null());
    let child =
        command.spawn().map_err(|source| EnterError::Step { step: format!("start {}", plan.program), source })?;
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if u32::try_from(pid.as_raw()) == Ok(child.id()) => {
                return Ok(u8::try_from(code).unwrap_or(KILLED));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if u32::try_from(pid.as_raw()) == Ok(child.id()) => {
                return Ok(u8::try_from(128 + signal as i32).unwrap_or(KILLED));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(step("wait for the tool")(error)),
        }
    }
}

fn perform(root: &Path, mount: &Mount) -> Result<(), EnterError> {
    match mount {
        Mount::Bind { from, to, writable } => {
            let place = inside(root, to);
            prepare_place(from, &place)?;
            bind(from, &place, *writable)
        }
        Mount::Scratch { to } => {
            let place = inside(root, to);
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            nix::mount::mount(Some("scratch"), &place, Some("tmpfs"), flags, Some("mode=0755"))
                .map_err(|e| failure("mount scratch", &place, e.into()))
        }
        Mount::Text { to, text } => {
            let place = inside(root, to);
            std::fs::write(&place, text).map_err(|e| failure("write", &place, e))
        }
        Mount::Seal { to } => remount_read_only(&inside(root, to)),
    }
}

/// Makes the point to mount on where it is missing: only inside scratch, since the root is read-only.
fn prepare_place(from: &Path, place: &Path) -> Result<(), EnterError> {
    let failed = |source| failure("prepare", place, source);
    if place.symlink_metadata().is_ok() {
        return Ok(());
    }
    if let Some(parent) = place.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    if from.metadata().map_err(|source| failure("find", from, source))?.is_dir() {
        std::fs::create_dir(place).map_err(failed)
    } else {
        std::fs::File::create(place).map(drop).map_err(failed)
    }
}

fn bind(from: &Path, to: &Path, writable: bool) -> Result<(), EnterError> {
    let nothing: Option<&str> = None;
    // Mounts of a more privileged owner under it cannot be left behind: with MS_REC they come along.
    mount(Some(from), to, nothing, MsFlags::MS_BIND | MsFlags::MS_REC, nothing)
        .map_err(|e| failure("show", from, e.into()))?;
    if writable { Ok(()) } else { remount_read_only(to) }
}

/// Flags that a more privileged owner has set must be repeated: they are locked.
fn remount_read_only(place: &Path) -> Result<(), EnterError> {
    let found = statvfs(place).map_err(|e| failure("look at", place, e.into()))?.flags();
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    for (seen, flag) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if found.contains(seen) {
            flags |= flag;
        }
    }
    let nothing: Option<&str> = None;
    mount(nothing, place, nothing, flags, nothing).map_err(|e| failure("protect", place, e.into()))
}

/// A fresh `/proc` of these processes; where the machine hides parts of its own, the kernel refuses that, and its own is
/// shown, in which `/proc/self` is right, too.
fn show_processes(place: &Path) -> Result<(), EnterError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let nothing: Option<&str> = None;
    match mount(Some("proc"), place, Some("proc"), flags, nothing) {
        Ok(()) => Ok(()),
        Err(_) => bind(Path::new("/proc"), place, true),
    }
}

fn inside(root: &Path, to: &Path) -> PathBuf {
    root.join(to.strip_prefix("/").unwrap_or(to))
}

fn scratch(to: &str) -> Mount {
    Mount::Scratch { to: to.into() }
}

fn device(name: &str) -> Mount {
    let path = Path::new("/dev").join(name);
    Mount::Bind { from: path.clone(), to: path, writable: true }
}

fn step(what: &'static str) -> impl Fn(Errno) -> EnterError {
    move |error| EnterError::Step { step: what.to_owned(), source: error.into() }
}

fn failure(what: &str, path: &Path, source: std::io::Error) -> EnterError {
    EnterError::Step { step: format!("{what} {}", path.display()), source }
}

const MAX_PLAN: u64 = 4 << 20;
const HOST_NAME: &str = "chrysalis";
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// The status of a tool that was ended by a signal nobody saw.
const KILLED: u8 = 137;
