// SPDX-License-Identifier: Apache-2.0
//! Everything that enters from outside, as one list and as one archive from which a build without network succeeds:
//! mirrors forget old versions.

mod archive;

use std::collections::BTreeMap;
use std::path::PathBuf;

use types::Sha256Digest;

pub use self::archive::{ARCHIVE_SCHEMA, ArchiveIndex, ArchivedInput, export_inputs, import_inputs};
use crate::cache::CacheError;
use crate::crates::{self, CratesError, LockedCrate};
use crate::fetch::FetchError;
use crate::files::FileError;
use crate::host_tool;
use crate::locks::{self, Kind, LockError, NamedLock, NamedSet};
use crate::rust::NamedRust;
use crate::workspace::Workspace;

/// Why inputs could not be listed, exported or imported.
#[derive(Debug, thiserror::Error)]
pub enum InputsError {
    /// A lock was refused.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// `Cargo.lock` was refused, or a package cannot be had.
    #[error(transparent)]
    Crates(#[from] CratesError),
    /// An input cannot be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// No lock has this name.
    #[error("there is no lock {0:?}")]
    Unknown(String),
    /// The archive is not of the expected form.
    #[error("{archive}: {rule}")]
    Format {
        /// The archive.
        archive: PathBuf,
        /// The rule it breaks.
        rule: String,
    },
    /// A file of the archive is not what its name says.
    #[error("{archive}: digest mismatch: expected {expected}, found {found}")]
    DigestMismatch {
        /// The archive.
        archive: PathBuf,
        /// Its name in the archive.
        expected: Sha256Digest,
        /// Digest of its bytes.
        found: Sha256Digest,
    },
    /// The archive ended without inputs of this tree.
    #[error("{archive} lacks {count} inputs of this tree, the first is {first}")]
    Incomplete {
        /// The archive.
        archive: PathBuf,
        /// How many.
        count: usize,
        /// Name of the first.
        first: String,
    },
    /// The cache or a file operation failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<FileError> for InputsError {
    fn from(error: FileError) -> Self {
        Self::Cache(error.into())
    }
}

/// All locks of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    /// Files that have a lock of their own.
    pub files: Vec<NamedLock>,
    /// Sets of Debian packages.
    pub sets: Vec<NamedSet>,
    /// The Rust toolchain.
    pub rust: NamedRust,
    /// Packages that `Cargo.lock` names.
    pub crates: Vec<LockedCrate>,
    /// Packages of the tools in `image/host-tools`, named `TOOL/PACKAGE`.
    pub tools: Vec<NamedLock>,
}

impl Inputs {
    /// Reads all locks.
    ///
    /// # Errors
    /// [`InputsError`] naming the lock.
    pub fn read(workspace: &Workspace) -> Result<Self, InputsError> {
        let directory = workspace.image("locks");
        Ok(Self {
            files: locks::read_all(&directory)?,
            sets: locks::read_sets(&directory)?,
            rust: NamedRust::read(&directory)?,
            crates: crates::read_cargo_lock(workspace)?,
            tools: host_tool::tool_locks(workspace)?,
        })
    }

    /// Only the named locks (a set, a tool or `Cargo.lock` counts as one); all when no name is given.
    ///
    /// # Errors
    /// [`InputsError::Unknown`].
    pub fn select(mut self, names: &[String]) -> Result<Self, InputsError> {
        let known = |name: &&String| {
            self.files.iter().any(|l| l.name == **name)
                || self.sets.iter().any(|s| s.name == **name)
                || self.tools.iter().any(|l| tool_of(l) == **name)
                || *name == CARGO_LOCK
        };
        if let Some(unknown) = names.iter().find(|name| !known(name)) {
            return Err(InputsError::Unknown(unknown.clone()));
        }
        if !names.is_empty() {
            self.files.retain(|l| names.contains(&l.name));
            self.sets.retain(|s| names.contains(&s.name));
            self.tools.retain(|l| names.iter().any(|name| name == tool_of(l)));
            if !names.iter().any(|name| name == CARGO_LOCK) {
                self.crates.clear();
            }
        }
        Ok(self)
    }

    /// Files and packages of sets and tools, each as a lock.
    #[must_use]
    pub fn locks(&self) -> Vec<NamedLock> {
        let files = self.files.iter().chain(&self.tools).cloned();
        files.chain(self.sets.iter().flat_map(NamedSet::locks)).collect()
    }

    /// Every file by digest.
    fn by_digest(&self) -> BTreeMap<Sha256Digest, ArchivedInput> {
        let lock = |l: &NamedLock| ArchivedInput {
            name: l.name.clone(),
            version: l.lock.version.clone(),
            file: l.file_name().to_owned(),
            sha256: l.lock.sha256,
        };
        let package = |c: &LockedCrate| ArchivedInput {
            name: format!("{CARGO_LOCK}/{}", c.name),
            version: c.version.clone(),
            file: c.file_name(),
            sha256: c.sha256,
        };
        let all = self.locks();
        let all = all.iter().map(lock).chain(self.crates.iter().map(package));
        all.map(|input| (input.sha256, input)).collect()
    }
}

/// The tool that a package belongs to.
#[must_use]
pub fn tool_of(lock: &NamedLock) -> &str {
    lock.name.split_once('/').map_or(lock.name.as_str(), |(tool, _)| tool)
}

/// How a kind of source is called in lists.
#[must_use]
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Debian => "debian",
        Kind::Pypi => "pypi",
        Kind::Crate => "crate",
    }
}

/// The name under which `Cargo.lock` is selected.
pub const CARGO_LOCK: &str = "Cargo.lock";
