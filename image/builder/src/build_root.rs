// SPDX-License-Identifier: Apache-2.0
//! The build root: the tree in which everything is compiled, unpacked from locked Debian packages.

use std::path::Path;

use types::Sha256Digest;

use crate::cache::CacheError;
use crate::fetch::{self, FetchError, Sources};
use crate::files::{self, FileError};
use crate::locks::{LockError, NamedSet};
use crate::progress::{Progress, Silent, Unit};
use crate::room::Room;
use crate::unpack::{Growing, UnpackError};

/// Why there is no build root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Its lock was refused.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A package could not be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A package could not be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<FileError> for RootError {
    fn from(error: FileError) -> Self {
        Self::Cache(error.into())
    }
}

/// The build root that a lock describes. Nothing is fetched or unpacked before [`BuildRoot::room`] asks for it.
#[derive(Debug, Clone)]
pub(crate) struct BuildRoot {
    set: NamedSet,
}

impl BuildRoot {
    /// Reads the lock in `directory`.
    ///
    /// # Errors
    /// [`RootError::Lock`].
    pub(crate) fn read(directory: &Path) -> Result<Self, RootError> {
        Ok(Self { set: NamedSet::read(&directory.join("build-root.toml"))? })
    }

    /// Its lock.
    pub(crate) fn set(&self) -> &NamedSet {
        &self.set
    }

    /// A digest over everything in it.
    pub(crate) fn digest(&self) -> Sha256Digest {
        Sha256Digest::of(format!("{RECIPE_VERSION}\n{}\n", self.set.content()).as_bytes())
    }

    /// The versions of the named packages, for people.
    pub(crate) fn versions(&self, packages: &[&str]) -> String {
        let one = |name: &&str| format!("{name} {}", self.set.version(name).unwrap_or("none"));
        packages.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    /// The tree from the cache, or fetched and unpacked now.
    ///
    /// # Errors
    /// [`RootError`]; nothing is kept then.
    pub(crate) fn room(&self, sources: &Sources, progress: &dyn Progress) -> Result<Room, RootError> {
        let tree = sources.cache.tree("build-roots", &self.digest(), progress, |tree| {
            progress.step(&format!("put the build root together: {} packages", self.set.set.packages.len()));
            self.assemble(tree, sources, progress)
        })?;
        Ok(Room::new(tree))
    }

    fn assemble(&self, tree: &Path, sources: &Sources, progress: &dyn Progress) -> Result<(), RootError> {
        let mut growing = Growing::new(tree);
        let locks = self.set.locks();
        for (count, lock) in locks.iter().enumerate() {
            let package = fetch::fetch_input(lock, sources, &Silent)?;
            growing.debian(&package.path)?;
            progress.advance("build root: packages", count as u64 + 1, Some(locks.len() as u64), Unit::Items);
        }
        progress.finish();
        for (path, target) in LINKS {
            growing.link(path, target)?;
        }
        for path in PLACES {
            growing.directory(path)?;
        }
        for (path, text) in TEXTS {
            files::write_whole(&tree.join(path), text.as_bytes())?;
        }
        Ok(())
    }
}

/// Changes when this file puts it together another way.
const RECIPE_VERSION: &str = "build-root/1";
/// What Debian's maintainer scripts would make: the merged `/usr`, and names that several packages could provide.
const LINKS: [(&str, &str); 7] = [
    ("bin", "usr/bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("sbin", "usr/sbin"),
    ("usr/bin/awk", "mawk"),
    ("usr/bin/c++", "g++"),
    ("usr/bin/cc", "gcc"),
];
/// Places to mount on.
const PLACES: [&str; 12] =
    ["build", "cargo", "chrysalis", "crates", "dev", "etc", "model", "proc", "rust", "target", "tmp", "tools"];
const TEXTS: [(&str, &str); 2] = [("etc/passwd", "root:x:0:0:root:/tmp:/bin/sh\n"), ("etc/group", "root:x:0:\n")];
