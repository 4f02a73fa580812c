// SPDX-License-Identifier: Apache-2.0
//! Who holds a directory: one process at a time, seen by anybody, over restarts of everybody else.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::files;

/// A directory is taken while this lives: a lock on a file in it, which the kernel drops with the process. The file says
/// which process, with its start time, so that a number that was given out anew is not taken for it.
#[derive(Debug)]
pub(crate) struct Claim {
    _file: Flock<fs::File>,
    path: PathBuf,
}

/// The process that holds a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Its number; `None` while it has not said it.
    pub(crate) pid: Option<i32>,
}

impl Claim {
    /// Takes the directory of `path`'s file.
    ///
    /// # Errors
    /// Somebody else has it.
    pub(crate) fn take(path: &Path) -> anyhow::Result<Self> {
        let mut file = open(path)?;
        // Who only looks holds the lock for a moment.
        for _ in 0..LOOKS {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut locked) if names(path, &locked) => {
                    let pid = i32::try_from(std::process::id()).context("process number")?;
                    let started = started(pid).context("/proc does not show this process")?;
                    // In place: a disk that is full since then still has the room that a dead process's line takes.
                    let line = format!("{pid} {started}\n");
                    locked.write_all(line.as_bytes()).context("pid file")?;
                    locked.set_len(line.len() as u64).context("pid file")?;
                    return Ok(Self { _file: locked, path: path.to_owned() });
                }
                // Removed by its holder between opening and locking: nobody would see this lock.
                Ok(_) => {
                    file = open(path)?;
                    continue;
                }
                Err((returned, _)) => file = returned,
            }
            std::thread::sleep(LOOK);
        }
        let directory = path.parent().unwrap_or(path);
        anyhow::bail!("{} is taken by a running guest: stop it or choose another --run-dir", directory.display())
    }

    /// The process that holds `path`, if one does.
    pub(crate) fn holder(path: &Path) -> Option<Holder> {
        let file = fs::File::open(path).ok()?;
        if Flock::lock(file, FlockArg::LockSharedNonblock).is_ok() {
            return None;
        }
        let text = files::read_capped(path, 64).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let said = text.trim().split_once(' ');
        let pid = said.and_then(|(pid, at)| Some((pid.parse::<i32>().ok()?, at.parse::<u64>().ok()?)));
        Some(Holder { pid: pid.filter(|(pid, at)| started(*pid) == Some(*at)).map(|(pid, _)| pid) })
    }
}

impl Holder {
    /// Whether it is this process, which removes the directory, say.
    pub(crate) fn is_self(self) -> bool {
        self.pid.is_some_and(|pid| u32::try_from(pid) == Ok(std::process::id()))
    }

    /// Signals it. False if it is not known which process it is, if it is this one, or gone.
    pub(crate) fn signal(self, signal: Signal) -> bool {
        !self.is_self() && self.pid.is_some_and(|pid| kill(Pid::from_raw(pid), signal).is_ok())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Removing the name is tidiness only: the lock says whether the directory is taken.
        let _ = fs::remove_file(&self.path);
    }
}

fn open(path: &Path) -> anyhow::Result<fs::File> {
    // One that is there is opened without O_CREAT: in a directory that two users share, the kernel refuses that for the
    // other's files (fs.protected_regular). And never through a link, nor waiting for the other end of a pipe.
    let careful = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    for _ in 0..LOOKS {
        let there = fs::OpenOptions::new().write(true).custom_flags(careful).open(path);
        let opened = match there {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::OpenOptions::new().write(true).create_new(true).open(path)
            }
            opened => opened,
        };
        match opened {
            // Made by somebody else in between.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            opened => return opened.with_context(|| format!("cannot open {}", path.display())),
        }
    }
    anyhow::bail!("{} comes and goes", path.display())
}

/// Whether this is the file that `path` names now.
fn names(path: &Path, file: &fs::File) -> bool {
    match (fs::metadata(path), file.metadata()) {
        (Ok(named), Ok(open)) => (named.dev(), named.ino()) == (open.dev(), open.ino()),
        _ => false,
    }
}

/// Start time of a process in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)).
fn started(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in field 2 may hold anything; what follows its last bracket does not.
    let (_, rest) = text.rsplit_once(") ")?;
    rest.split(' ').nth(START_TIME)?.parse().ok()
}

/// Field 22, counted from field 3.
const START_TIME: usize = 19;
const LOOKS: u32 = 50;
const LOOK: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder_and_stale_numbers_are_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        assert_eq!(Claim::holder(&path), None);
        let claim = Claim::take(&path).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(Claim::holder(&path), Some(Holder { pid: Some(own) }));
        assert!(Claim::holder(&path).unwrap().is_self());
        assert!(!Claim::holder(&path).unwrap().signal(Signal::SIGTERM), "nobody signals itself");
        assert!(Claim::take(&path).is_err());
        // Process 1 with another start time: the number was given out anew.
        fs::write(&path, "1 1\n").unwrap();
        assert_eq!(Claim::holder(&path), Some(Holder { pid: None }));
        assert!(!Claim::holder(&path).unwrap().signal(Signal::SIGTERM));
        drop(claim);
        assert_eq!(Claim::holder(&path), None);
        assert!(!path.exists());
    }

    #[test]
    fn a_claim_is_on_the_file_that_others_see() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        for milliseconds in [0, 1, 5, 15] {
            // The holder goes, with the file's name, while another waits for its lock.
            let first = Claim::take(&path).unwrap();
            let (waits, waiting) = (path.clone(), std::sync::Barrier::new(2));
            std::thread::scope(|scope| {
                let second = scope.spawn(|| {
                    waiting.wait();
                    Claim::take(&waits).unwrap()
                });
                waiting.wait();
                std::thread::sleep(Duration::from_millis(milliseconds));
                drop(first);
                let second = second.join().unwrap();
                assert!(Claim::holder(&path).is_some(), "nobody sees it");
                drop(second);
            });
        }
    }
}
