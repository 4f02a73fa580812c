// SPDX-License-Identifier: Apache-2.0
//! A process by a number that somebody else wrote down: looked at before it is signalled, and signalled only if it is still
//! the one that was looked at.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process, held by a descriptor: what is signalled through it is this one, or none (pidfd_open(2)).
#[derive(Debug)]
pub(crate) struct Process {
    descriptor: OwnedFd,
    proc: PathBuf,
}

impl Process {
    /// Another process than this one; `None` if there is none of this number.
    pub(crate) fn other(number: i32) -> Option<Self> {
        if number <= 0 || u32::try_from(number) == Ok(std::process::id()) {
            return None;
        }
        let descriptor = pidfd_open(Pid::from_raw(number)?, PidfdFlags::empty()).ok()?;
        Some(Self { descriptor, proc: directory(number) })
    }

    /// Its directory in `/proc`. What is read there is of this process only if [`Process::signal`] reaches it afterwards.
    pub(crate) fn proc(&self) -> &Path {
        &self.proc
    }

    /// Whether it is of this user alone: real, effective, saved and file system's number.
    pub(crate) fn is_of(&self, uid: u32) -> bool {
        let Ok(status) = fs::read_to_string(self.proc.join("status")) else { return false };
        let Some(line) = status.lines().find_map(|line| line.strip_prefix("Uid:")) else { return false };
        let wanted = uid.to_string();
        let numbers: Vec<&str> = line.split_whitespace().collect();
        numbers.len() == 4 && numbers.into_iter().all(|number| number == wanted)
    }

    /// Whether it has `file`, of this name, open. Where the kernel does not show that to this process it is believed,
    /// unless this is root, whose signals the kernel lets reach everybody.
    pub(crate) fn has_open(&self, name: &Path, file: &Metadata) -> bool {
        has_open(&self.proc, name, file)
            .unwrap_or_else(|kind| kind == ErrorKind::PermissionDenied && !geteuid().is_root())
    }

    /// False if it is gone, or not this process's to signal.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        pidfd_send_signal(&self.descriptor, signal).is_ok()
    }
}

/// Whether this process itself has a file open.
pub(crate) fn this_has_open(name: &Path, file: &Metadata) -> bool {
    has_open(Path::new("/proc/self"), name, file).unwrap_or(false)
}

/// Start time of a process in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)).
pub(crate) fn started(number: i32) -> Option<u64> {
    let text = fs::read_to_string(directory(number).join("stat")).ok()?;
    // The name in field 2 may hold anything; what follows its last bracket does not.
    let (_, rest) = text.rsplit_once(") ")?;
    rest.split(' ').nth(START_TIME)?.parse().ok()
}

fn has_open(proc: &Path, name: &Path, file: &Metadata) -> Result<bool, ErrorKind> {
    let is_it = |descriptor: fs::DirEntry| {
        // The name first: nothing else of the process is looked at.
        let link = fs::read_link(descriptor.path()).ok()?;
        let found = fs::metadata(descriptor.path()).ok().filter(|_| link.file_name() == name.file_name())?;
        Some((found.dev(), found.ino()) == (file.dev(), file.ino()))
    };
    let descriptors = fs::read_dir(proc.join("fd")).map_err(|error| error.kind())?;
    Ok(descriptors.flatten().any(|descriptor| is_it(descriptor) == Some(true)))
}

fn directory(number: i32) -> PathBuf {
    Path::new("/proc").join(number.to_string())
}

/// Field 22, counted from field 3.
const START_TIME: usize = 19;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_user_and_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.pid");
        let file = fs::File::create(&path).unwrap();
        let metadata = file.metadata().unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").stdin(file).spawn().unwrap();
        let number = i32::try_from(child.id()).unwrap();
        let process = Process::other(number).unwrap();
        let own = geteuid().as_raw();
        assert!(process.is_of(own) && !process.is_of(own + 1));
        assert!(process.has_open(&path, &metadata) && !this_has_open(&path, &metadata));
        let other = fs::File::create(directory.path().join("other")).unwrap().metadata().unwrap();
        assert!(!process.has_open(&path, &other), "another file");
        assert!(!process.has_open(&directory.path().join("else"), &metadata), "another name");
        assert!(process.signal(Signal::KILL));
        child.wait().unwrap();
        assert!(!process.signal(Signal::KILL), "it is gone, whoever has its number");
        assert!(!process.is_of(own) && !process.has_open(&path, &metadata));
        for number in [i32::try_from(std::process::id()).unwrap(), 0, -1, i32::MAX] {
            assert!(Process::other(number).is_none(), "{number}");
        }
    }
}
