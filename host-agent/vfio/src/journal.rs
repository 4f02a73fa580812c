// SPDX-License-Identifier: Apache-2.0
//! What was changed, written down before it is changed, so that a crash at any point can be undone.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::pci::PciAddress;

/// The open journal of one directory. Nobody else can open it meanwhile.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    document: Document,
    _lock: Flock<File>,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
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
    entries: Vec<Entry>,
}

impl Journal {
    /// Opens the journal in `directory`, which is made if missing.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        let failed = |path: &Path, source| JournalError::Io { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|e| failed(directory, e))?;
        let lock_path = directory.join("gpu-bindings.lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let lock = Flock::lock(file.map_err(|e| failed(&lock_path, e))?, FlockArg::LockExclusiveNonblock)
            .map_err(|_| JournalError::Locked { path: lock_path })?;
        let path = directory.join("gpu-bindings.json");
        let document = match File::open(&path) {
            Ok(file) => {
                let mut bytes = Vec::new();
                file.take(MAX_JOURNAL).read_to_end(&mut bytes).map_err(|e| failed(&path, e))?;
                let malformed = |source| JournalError::Malformed { path: path.clone(), source };
                let document: Document = serde_json::from_slice(&bytes).map_err(malformed)?;
                if document.version != VERSION {
                    let source = serde::de::Error::custom("the version is not 1");
                    return Err(malformed(source));
                }
                let plain = |entry: &Entry| {
                    let address = entry.address.parse::<PciAddress>().is_ok_and(|a| a.to_string() == entry.address);
                    address && !entry.previous_driver.as_ref().is_some_and(|driver| driver.contains('/'))
                };
                if !document.entries.iter().all(plain) {
                    return Err(malformed(serde::de::Error::custom("an entry names no PCI address or driver")));
                }
                document
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Document { version: VERSION, entries: vec![] }
            }
            Err(error) => return Err(failed(&path, error)),
        };
        Ok(Self { path, document, _lock: lock })
    }

    pub(crate) fn entry(&self, address: PciAddress) -> Option<&Entry> {
        let text = address.to_string();
        self.document.entries.iter().find(|entry| entry.address == text)
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
        let temporary = self.path.with_extension("new");
        let write = || -> std::io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)?;
            match self.path.parent() {
                Some(parent) => File::open(parent)?.sync_all(),
                None => Ok(()),
            }
        };
        write().map_err(failed)
    }
}

/// Of the only form of the journal.
const VERSION: u32 = 1;
/// Entries of a thousand devices.
const MAX_JOURNAL: u64 = 256 << 10;
