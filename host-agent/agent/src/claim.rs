// SPDX-License-Identifier: Apache-2.0
//! Who holds a directory: one process at a time, seen by anybody, over restarts of everybody else.

use std::fs::{self, Metadata};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg, OFlag};
use rustix::process::Signal;

use crate::files;
use crate::pid::{Process, started, this_has_open};

/// A directory is taken while this lives: a lock on a file in it, which the kernel drops with the process. The file says
/// which process, with its start time, so that a number that was given out anew is not taken for it.
#[derive(Debug)]
pub(crate) struct Claim {
    _file: Flock<fs::File>,
    path: PathBuf,
}

/// The process that holds a directory.
///
/// In a directory that guests' user can write, that user says which process it is: it can make others believe in a holder
/// and in a number, and have no process signalled but its own.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    /// Its number; `None` while it has not said it.
    pub(crate) pid: Option<i32>,
    path: PathBuf,
    file: Metadata,
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
        let file = files::open_shared(path).ok()?;
        let Err((file, _)) = Flock::lock(file, FlockArg::LockSharedNonblock) else { return None };
        let metadata = file.metadata().ok()?;
        let mut text = Vec::new();
        // Of the file that is locked, whatever its name stands for by now.
        file.take(64).read_to_end(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let said = text.trim().split_once(' ');
        let pid = said.and_then(|(pid, at)| Some((pid.parse::<i32>().ok()?, at.parse::<u64>().ok()?)));
        let pid = pid.filter(|(pid, at)| started(*pid) == Some(*at)).map(|(pid, _)| pid);
        Some(Holder { pid, path: path.to_owned(), file: metadata })
    }
}

impl Holder {
    /// Whether it is this process, which removes the directory, say.
    pub(crate) fn is_self(&self) -> bool {
        let said = self.pid.is_some_and(|pid| u32::try_from(pid) == Ok(std::process::id()));
        said && this_has_open(&self.path, &self.file)
    }

    /// The user whose word it is.
    pub(crate) fn owner(&self) -> u32 {
        self.file.uid()
    }

    /// Signals it. False if it is not known which process it is, if it is this one, or gone, if it is neither of the user
    /// `account`, whom guests run as, nor of the one whose file names it, or does not have that file open.
    pub(crate) fn signal(&self, signal: Signal, account: u32) -> bool {
        let Some(process) = self.pid.and_then(Process::other) else { return false };
        let known = process.is_of(self.owner()) || process.is_of(account);
        known && process.has_open(&self.path, &self.file) && process.signal(signal)
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
            opened => {
                let file = opened.with_context(|| format!("cannot open {}", path.display()))?;
                let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
                anyhow::ensure!(regular, "{} is not a regular file", path.display());
                return Ok(file);
            }
        }
    }
    anyhow::bail!("{} comes and goes", path.display())
}

/// Whether this is the file that `path` names now.
fn names(path: &Path, file: &fs::File) -> bool {
    match (path.symlink_metadata(), file.metadata()) {
        (Ok(named), Ok(open)) => (named.dev(), named.ino()) == (open.dev(), open.ino()),
        _ => false,
    }
}

const LOOKS: u32 = 50;
const LOOK: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder_and_stale_numbers_are_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        assert!(Claim::holder(&path).is_none());
        let claim = Claim::take(&path).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(Claim::holder(&path).unwrap().pid, Some(own));
        assert!(Claim::holder(&path).unwrap().is_self());
        assert!(!Claim::holder(&path).unwrap().signal(Signal::TERM, OTHER), "nobody signals itself");
        assert!(Claim::take(&path).is_err());
        // Process 1 with another start time: the number was given out anew.
        fs::write(&path, "1 1\n").unwrap();
        assert_eq!(Claim::holder(&path).unwrap().pid, None);
        assert!(!Claim::holder(&path).unwrap().signal(Signal::TERM, OTHER));
        drop(claim);
        assert!(Claim::holder(&path).is_none());
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

    /// A user whom nothing here is of.
    const OTHER: u32 = 12_345;

    /// A stand-in for a keeper that locks `path` and says what it is told; it has the file open while it lives.
    fn keeper(path: &Path, word: impl Fn(i32) -> i32) -> std::process::Child {
        fs::write(path, "").unwrap();
        let mut command = std::process::Command::new("flock");
        let child = command.args(["--no-fork", "-x"]).arg(path).args(["sleep", "600"]).spawn().unwrap();
        let said = word(i32::try_from(child.id()).unwrap());
        while Claim::holder(path).is_none() {}
        fs::write(path, format!("{said} {}\n", started(said).unwrap())).unwrap();
        child
    }

    #[test]
    fn the_process_that_holds_a_directory_is_signalled_and_no_other_that_it_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.pid");
        // One of the same user that has nothing to do with it, and one of another: neither is the file's to name.
        let mut bystander = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let number = i32::try_from(bystander.id()).unwrap();
        for named in [number, 1] {
            let mut child = keeper(&path, |_| named);
            let holder = Claim::holder(&path).unwrap();
            assert_eq!(holder.pid, Some(named));
            assert!(!holder.signal(Signal::KILL, OTHER), "{named}");
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(bystander.try_wait().unwrap().is_none());
        // This process, by another's word: it is not the holder, and is not signalled.
        let own = i32::try_from(std::process::id()).unwrap();
        let mut child = keeper(&path, |_| own);
        let holder = Claim::holder(&path).unwrap();
        assert!(holder.pid == Some(own) && !holder.is_self() && !holder.signal(Signal::KILL, OTHER));
        child.kill().unwrap();
        child.wait().unwrap();
        // The one that holds it.
        let mut child = keeper(&path, |child| child);
        if nix::unistd::geteuid().is_root() {
            // By the word of another user than the process's.
            std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
            assert!(!Claim::holder(&path).unwrap().signal(Signal::KILL, OTHER));
            std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        } else {
            println!("SKIPPED: only root gives files to another user");
        }
        assert!(Claim::holder(&path).unwrap().signal(Signal::KILL, OTHER));
        assert!(!child.wait().unwrap().success());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }

    #[test]
    fn a_pipe_or_a_link_in_place_of_the_file_holds_nothing_and_nobody_waits_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let (pipe, link) = (directory.path().join("pipe"), directory.path().join("link"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _claim = Claim::take(&directory.path().join("pid")).unwrap();
        std::os::unix::fs::symlink(directory.path().join("pid"), &link).unwrap();
        for path in [&pipe, &link] {
            assert!(Claim::holder(path).is_none() && Claim::take(path).is_err(), "{}", path.display());
        }
        // Somebody waits at the other end.
        let _reader = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
        assert!(Claim::holder(&pipe).is_none() && Claim::take(&pipe).is_err());
    }
}
