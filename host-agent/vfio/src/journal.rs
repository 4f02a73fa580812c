// SPDX-License-Identifier: Apache-2.0
//! What was changed, written down before it is changed, so that a crash at any point can be undone.

use std::fs::{DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, fsync, geteuid, unlinkat};
use serde::{Deserialize, Serialize};

use crate::pci::PciAddress;
use crate::tree::HostTree;

/// The open journal of one directory. Nobody else can open it meanwhile.
#[derive(Debug)]
pub struct Journal {
    directory: OwnedFd,
    path: PathBuf,
    document: Document,
    _lock: Flock<File>,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Somebody else could write into the directory: what a journal in it says would be done with the rights of whoever
    /// opens it.
    #[error("{path}: {problem}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The rule that it breaks.
        problem: &'static str,
    },
    /// Another process changes bindings right now.
    #[error("{path}: another host-agent is changing bindings")]
    Locked {
        /// The lock's file.
        path: PathBuf,
    },
    /// Reading or writing.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The content is not a journal.
    #[error("{path}: not a journal of bindings")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The reader's reason.
        #[source]
        source: serde_json::Error,
    },
}

/// One device that was taken from the host, or is being taken or given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) address: String,
    pub(crate) phase: Phase,
    pub(crate) previous_driver: Option<String>,
    pub(crate) previous_override: Option<String>,
}

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// Being changed: to be undone after a crash.
    Changing,
    /// Bound to `vfio-pci`.
    Bound,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    /// Of the kernel's run that the entries are about, where it is known: bindings do not outlive it.
    boot: Option<String>,
    entries: Vec<Entry>,
}

impl Journal {
    /// Opens the journal in `directory`, which is made if missing. The directory must belong to the effective user, and
    /// nobody else may write into it; no link in it is followed. Entries of an earlier run of the kernel in `tree` are
    /// dropped.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(directory: &Path, tree: &HostTree) -> Result<Self, JournalError> {
        let failed = |path: &Path, source| JournalError::Io { path: path.to_owned(), source };
        let (lock_path, path) = (directory.join(LOCK), directory.join(JOURNAL));
        let directory = own_directory(directory)?;
        let file = open_in(&directory, LOCK, OFlag::O_WRONLY | OFlag::O_CREAT);
        let lock = Flock::lock(file.map_err(|e| failed(&lock_path, e.into()))?, FlockArg::LockExclusiveNonblock)
            .map_err(|_| JournalError::Locked { path: lock_path })?;
        let mut document = match open_in(&directory, JOURNAL, OFlag::O_RDONLY) {
            Ok(file) => {
                let mut bytes = Vec::new();
                file.take(MAX_JOURNAL).read_to_end(&mut bytes).map_err(|e| failed(&path, e))?;
                let malformed = |source| JournalError::Malformed { path: path.clone(), source };
                let document: Document = serde_json::from_slice(&bytes).map_err(malformed)?;
                if document.version != VERSION {
                    let source = serde::de::Error::custom("the version is not 2");
                    return Err(malformed(source));
                }
                let plain = |entry: &Entry| {
                    let address = entry.address.parse::<PciAddress>().is_ok_and(|a| a.to_string() == entry.address);
                    address && entry.previous_driver.as_deref().is_none_or(plain_name)
                };
                if !document.entries.iter().all(plain) {
                    return Err(malformed(serde::de::Error::custom("an entry names no PCI address or driver")));
                }
                document
            }
            Err(Errno::ENOENT) => Document { version: VERSION, boot: None, entries: vec![] },
            Err(error) => return Err(failed(&path, error.into())),
        };
        let boot = tree.text(BOOT_ID).ok();
        if boot.is_some() && document.boot.is_some() && boot != document.boot {
            document.entries.clear();
        }
        document.boot = boot.or(document.boot);
        Ok(Self { directory, path, document, _lock: lock })
    }

    pub(crate) fn entry(&self, address: PciAddress) -> Option<&Entry> {
        let text = address.to_string();
        self.document.entries.iter().find(|entry| entry.address == text)
    }

    /// Devices that are bound and nothing else.
    pub(crate) fn bound(&self) -> Vec<Entry> {
        self.document.entries.iter().filter(|entry| entry.phase == Phase::Bound).cloned().collect()
    }

    pub(crate) fn unfinished(&self) -> Vec<Entry> {
        self.document.entries.iter().filter(|entry| entry.phase == Phase::Changing).cloned().collect()
    }

    /// Writes entries down, replacing those of the same address.
    pub(crate) fn put(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        self.document.entries.retain(|old| !entries.iter().any(|new| new.address == old.address));
        self.document.entries.extend_from_slice(entries);
        self.save()
    }

    pub(crate) fn remove(&mut self, addresses: &[String]) -> Result<(), JournalError> {
        self.document.entries.retain(|entry| !addresses.contains(&entry.address));
        self.save()
    }

    fn save(&self) -> Result<(), JournalError> {
        let failed = |source| JournalError::Io { path: self.path.clone(), source };
        let bytes = serde_json::to_vec_pretty(&self.document)
            .map_err(|source| JournalError::Malformed { path: self.path.clone(), source })?;
        let write = || -> std::io::Result<()> {
            // One that an interrupted run left.
            match unlinkat(&self.directory, TEMPORARY, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            let mut file = open_in(&self.directory, TEMPORARY, flags)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            renameat(&self.directory, TEMPORARY, &self.directory, JOURNAL)?;
            Ok(fsync(&self.directory)?)
        };
        write().map_err(failed)
    }
}

fn plain_name(driver: &str) -> bool {
    !matches!(driver, "" | "." | "..") && !driver.contains(['/', '\0'])
}

/// Makes the directory if it is missing, and opens it if nobody but the effective user can change what is in it.
fn own_directory(path: &Path) -> Result<OwnedFd, JournalError> {
    let failed = |source| JournalError::Io { path: path.to_owned(), source };
    let refused = |problem| JournalError::Directory { path: path.to_owned(), problem };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = nix::fcntl::open(path, flags, Mode::empty()).map_err(|error| match error {
        Errno::ENOTDIR | Errno::ELOOP => refused("a link, not a directory"),
        error => failed(error.into()),
    })?;
    let facts = fstat(&directory).map_err(|error| failed(error.into()))?;
    if facts.st_uid != geteuid().as_raw() {
        return Err(refused("the directory belongs to another user"));
    }
    if facts.st_mode & 0o022 != 0 {
        return Err(refused("other users may write into the directory"));
    }
    Ok(directory)
}

fn open_in(directory: &OwnedFd, name: &str, flags: OFlag) -> Result<File, Errno> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map(File::from)
}

/// Random for each boot.
const BOOT_ID: &str = "proc/sys/kernel/random/boot_id";
/// Whoever holds its lock changes bindings.
const LOCK: &str = "gpu-bindings.lock";
/// The journal.
const JOURNAL: &str = "gpu-bindings.json";
/// The journal while it is written.
const TEMPORARY: &str = "gpu-bindings.new";
/// Of the only form of the journal.
const VERSION: u32 = 2;
/// Entries of a thousand devices.
const MAX_JOURNAL: u64 = 256 << 10;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    fn entry() -> Entry {
        Entry {
            address: "0000:17:00.0".to_owned(),
            phase: Phase::Bound,
            previous_driver: None,
            previous_override: None,
        }
    }

    fn open(directory: &Path) -> Result<Journal, JournalError> {
        let root = tempfile::tempdir().unwrap();
        Journal::open(directory, &HostTree::open(root.path()).unwrap())
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("a/state");
        drop(open(&directory).unwrap());
        assert_eq!(std::fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
        let refused = |path: &Path| matches!(open(path), Err(JournalError::Directory { .. }));
        for (mode, wanted) in [(0o770, true), (0o702, true), (0o1777, true), (0o755, false), (0o700, false)] {
            std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(refused(&directory), wanted, "{mode:o}");
        }
        symlink(&directory, base.path().join("link")).unwrap();
        assert!(refused(&base.path().join("link")));
        if geteuid().is_root() {
            chown(&directory, Some(65_534), None).unwrap();
            assert!(refused(&directory));
        } else {
            println!("SKIPPED: only root can give a directory away");
        }
    }

    #[test]
    fn no_link_in_the_directory_is_followed() {
        let (state, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = outside.path().join("target");
        for name in [LOCK, JOURNAL] {
            std::fs::write(&target, r#"{"version":2,"entries":[]}"#).unwrap();
            symlink(&target, state.path().join(name)).unwrap();
            assert!(matches!(open(state.path()), Err(JournalError::Io { .. })), "{name}");
            std::fs::remove_file(state.path().join(name)).unwrap();
        }
        std::fs::write(&target, "as it was").unwrap();
        symlink(&target, state.path().join(TEMPORARY)).unwrap();
        open(state.path()).unwrap().put(&[entry()]).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "as it was");
        assert_eq!(open(state.path()).unwrap().document.entries, [entry()]);
        let kept = std::fs::symlink_metadata(state.path().join(JOURNAL)).unwrap();
        assert!(kept.is_file() && kept.permissions().mode() & 0o777 == 0o600);
    }

    #[test]
    fn entries_of_another_boot_are_dropped() {
        let (state, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tree = HostTree::open(root.path()).unwrap();
        let entries = || Journal::open(state.path(), &tree).unwrap().document.entries;
        let boot_id = root.path().join(BOOT_ID);
        std::fs::create_dir_all(boot_id.parent().unwrap()).unwrap();
        std::fs::write(&boot_id, "6c1d3c4e-4f5b-4a71-8f4e-b10c5e8fd5ac\n").unwrap();
        Journal::open(state.path(), &tree).unwrap().put(&[entry()]).unwrap();
        assert_eq!(entries(), [entry()]);
        std::fs::remove_file(&boot_id).unwrap();
        assert_eq!(entries(), [entry()], "it is not known to be another");
        std::fs::write(&boot_id, "f0a1ad60-9f0b-4d9b-9c6b-2f4c0a8f1b33\n").unwrap();
        assert_eq!(entries(), []);
    }
}
