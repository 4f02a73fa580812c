// SPDX-License-Identifier: Apache-2.0
//! The build root: the tree in which everything is compiled, unpacked from locked Debian packages. A second set of packages
//! can stand over it, for what only some profiles need: so the others' compilations do not depend on it.

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
    /// What is unpacked, in order; the first is the build root's own.
    sets: Vec<NamedSet>,
}

impl BuildRoot {
    /// Reads the lock in `directory`.
    ///
    /// # Errors
    /// [`RootError::Lock`].
    pub(crate) fn read(directory: &Path) -> Result<Self, RootError> {
        Ok(Self { sets: vec![NamedSet::read(&directory.join("build-root.toml"))?] })
    }

    /// The build root with the set `name`, a lock in `directory`, over it.
    ///
    /// # Errors
    /// [`RootError::Lock`], also when that set is not made for it.
    pub(crate) fn with(&self, directory: &Path, name: &str) -> Result<Self, RootError> {
        let path = directory.join(format!("{name}.toml"));
        let set = NamedSet::read(&path)?;
        if set.set.over.as_deref() != self.sets.first().map(|base| base.name.as_str()) {
            return Err(LockError::Field { path, field: "over", rule: "must be build-root" }.into());
        }
        Ok(Self { sets: self.sets.iter().cloned().chain([set]).collect() })
    }

    /// Its locks.
    pub(crate) fn sets(&self) -> &[NamedSet] {
        &self.sets
    }

    /// A digest over everything in it.
    pub(crate) fn digest(&self) -> Sha256Digest {
        let contents: String = self.sets.iter().map(|set| format!("{}\n", set.content())).collect();
        Sha256Digest::of(format!("{RECIPE_VERSION}\n{contents}").as_bytes())
    }

    /// The versions of the named packages, for people.
    pub(crate) fn versions(&self, packages: &[&str]) -> String {
        let version = |name: &str| self.sets.iter().find_map(|set| set.version(name));
        let one = |name: &&str| format!("{name} {}", version(name).unwrap_or("none"));
        packages.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    /// The tree from the cache, or fetched and unpacked now.
    ///
    /// # Errors
    /// [`RootError`]; nothing is kept then.
    pub(crate) fn room(&self, sources: &Sources, progress: &dyn Progress) -> Result<Room, RootError> {
        let tree = sources.cache.tree("build-roots", &self.digest(), progress, |tree| {
            let count: usize = self.sets.iter().map(|set| set.set.packages.len()).sum();
            progress.step(&format!("put the build root together: {count} packages"));
            self.assemble(tree, sources, progress)
        })?;
        Ok(Room::new(tree))
    }

    fn assemble(&self, tree: &Path, sources: &Sources, progress: &dyn Progress) -> Result<(), RootError> {
        let mut growing = Growing::new(tree);
        let locks: Vec<_> =
            self.sets.iter().flat_map(|set| set.locks().into_iter().map(move |lock| (set, lock))).collect();
        for (count, (set, lock)) in locks.iter().enumerate() {
            let package = fetch::fetch_input(lock, sources, &Silent)?;
            growing.debian(&package.path, set.only(&lock.lock.package))?;
            progress.advance("build root: packages", count as u64 + 1, Some(locks.len() as u64), Unit::Items);
        }
        progress.finish();
        let links =
            self.sets.iter().flat_map(|set| &set.set.links).map(|link| (link.path.as_str(), link.target.as_str()));
        for (path, target) in LINKS.into_iter().chain(links) {
            growing.link(path, target)?;
        }
        for file in self.sets.iter().flat_map(|set| &set.set.texts) {
            growing.text(&file.path, &file.text)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn locks() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../locks")
    }

    #[test]
    fn what_stands_over_it_is_in_the_digest_and_leaves_the_others_alone() {
        let plain = BuildRoot::read(&locks()).unwrap();
        let more = plain.with(&locks(), "gpu-tools").unwrap();
        assert_ne!(plain.digest(), more.digest());
        assert_eq!(plain.digest(), BuildRoot::read(&locks()).unwrap().digest());
        assert!(more.versions(&["erofs-utils", "gcc-14"]).find("none").is_none());
        let twice = |name: &str| more.sets().iter().filter(|set| set.version(name).is_some()).count();
        assert!(more.sets().iter().flat_map(|set| &set.set.packages).all(|p| twice(&p.package) == 1));
    }

    /// The compiler for GPUs stands over the build root without changing it, and what is unpacked of it shapes the digest.
    #[test]
    fn the_tools_for_cuda_are_whole() {
        let plain = BuildRoot::read(&locks()).unwrap();
        let more = plain.with(&locks(), "cuda-tools").unwrap();
        assert!(!more.versions(&["nvidia-cuda-toolkit", "nvidia-cuda-dev", "g++-13", "gcc-14"]).contains("none"));
        let set = &more.sets()[1];
        assert!(set.set.want.iter().all(|name| set.version(name).is_some()));
        assert_eq!(set.set.want.len(), set.set.packages.len());
        assert!(set.locks().iter().all(|lock| lock.lock.sha256 != Sha256Digest::ZERO && lock.lock.size > 0));
        // One release of CUDA, for compiling and for running.
        let cuda = NamedSet::read(&locks().join("cuda.toml")).unwrap();
        let release = |version: &str| version.split('~').nth(1).map(str::to_owned);
        let all = set.set.packages.iter().chain(&cuda.set.packages);
        let releases: Vec<_> = all.filter_map(|package| release(&package.version)).collect();
        assert!(releases.len() >= 5 && releases.iter().all(|one| *one == releases[0]), "{releases:?}");
        let changed = |change: fn(&mut NamedSet)| {
            let mut sets = more.sets().to_vec();
            change(&mut sets[1]);
            BuildRoot { sets }.digest()
        };
        assert_eq!(changed(|_| {}), more.digest());
        assert_ne!(changed(|set| drop(set.set.only[0].paths.pop())), more.digest());
        assert_ne!(changed(|set| drop(set.set.texts.pop())), more.digest());
    }

    #[test]
    fn a_set_that_is_not_made_for_it_is_refused() {
        let plain = BuildRoot::read(&locks()).unwrap();
        let error = plain.with(&locks(), "nvidia").unwrap_err();
        assert!(matches!(error, RootError::Lock(LockError::Field { field: "over", .. })), "{error}");
    }
}
