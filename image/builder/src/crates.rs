// SPDX-License-Identifier: Apache-2.0
//! The Rust packages that `Cargo.lock` pins: each as a file whose digest was compared, unpacked by itself. A build finds
//! them under fixed paths, whichever registry or mirror they came from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use types::Sha256Digest;

use crate::cache::CacheError;
use crate::command::ToolError;
use crate::fetch::{self, Sources};
use crate::files::{self, FileError};
use crate::progress::{Progress, Unit};
use crate::room::{Mount, Room};
use crate::unpack::{Growing, UnpackError};
use crate::workspace::Workspace;

/// Why the Rust packages could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CratesError {
    /// `Cargo.lock` is not of the expected form.
    #[error("Cargo.lock: {0}")]
    Lock(String),
    /// A package comes from somewhere else than the Rust package registry, or without a digest.
    #[error("Cargo.lock: {package} does not come from the Rust package registry with a digest")]
    Source {
        /// Name and version.
        package: String,
    },
    /// Cargo fetched, and the package with the locked digest is still not there.
    #[error("{package} with the digest of Cargo.lock cannot be had from cargo's registry")]
    Missing {
        /// Name and version.
        package: String,
    },
    /// A package could not be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// Cargo is missing or failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<FileError> for CratesError {
    fn from(error: FileError) -> Self {
        Self::Cache(error.into())
    }
}

/// A package of the registry, as `Cargo.lock` pins it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockedCrate {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// SHA-256 of the `.crate` file.
    pub sha256: Sha256Digest,
}

impl LockedCrate {
    /// `name-version`.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }

    /// The name of its file.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}.crate", self.directory())
    }
}

/// All packages of the registry in the tree's `Cargo.lock`, sorted.
///
/// # Errors
/// [`CratesError::Lock`] or [`CratesError::Source`].
pub fn read_cargo_lock(workspace: &Workspace) -> Result<Vec<LockedCrate>, CratesError> {
    parse(&files::read_capped(&workspace.root().join("Cargo.lock"), MAX_LOCK)?)
}

/// Each package with its file, digest compared: from the cache's inputs, from cargo's own cache, else fetched by cargo.
///
/// # Errors
/// [`CratesError`].
pub(crate) fn files(
    workspace: &Workspace,
    crates: &[LockedCrate],
    sources: &Sources,
    progress: &dyn Progress,
) -> Result<BTreeMap<Sha256Digest, PathBuf>, CratesError> {
    let mut found = BTreeMap::new();
    let mut fetched = false;
    for locked in crates {
        let mut path = find(locked, sources)?;
        if path.is_none() && !fetched {
            progress.step("fetch the Rust packages that Cargo.lock names");
            let cargo = workspace.rust_tool("cargo").args(["fetch", "--locked"]).directory(workspace.root());
            cargo.run("Rust packages: lines", progress)?;
            fetched = true;
            path = find(locked, sources)?;
        }
        let path = path.ok_or_else(|| CratesError::Missing { package: locked.directory() })?;
        found.insert(locked.sha256, path);
    }
    Ok(found)
}

/// Shows all packages in `room`, at `/crates`, with settings for cargo that name no other source, at `/cargo`.
///
/// # Errors
/// [`CratesError`].
pub(crate) fn show(
    workspace: &Workspace,
    room: Room,
    sources: &Sources,
    progress: &dyn Progress,
) -> Result<Room, CratesError> {
    let crates = read_cargo_lock(workspace)?;
    let mut room = room.mount(Mount::Scratch { to: PLACE.into() });
    for (count, locked) in crates.iter().enumerate() {
        let tree = sources.cache.tree("crates", &locked.sha256, progress, |tree| {
            let file = files(workspace, std::slice::from_ref(locked), sources, progress)?;
            unpack(locked, file.get(&locked.sha256), tree)
        })?;
        room = room.show(&tree, Path::new(PLACE).join(locked.directory()));
        progress.advance("Rust packages", count as u64 + 1, Some(crates.len() as u64), Unit::Items);
    }
    progress.finish();
    let settings = Mount::Text { to: Path::new(HOME).join("config.toml"), text: SETTINGS.to_owned() };
    Ok(room.mount(Mount::Seal { to: PLACE.into() }).mount(Mount::Scratch { to: HOME.into() }).mount(settings))
}

fn unpack(locked: &LockedCrate, file: Option<&PathBuf>, tree: &Path) -> Result<(), CratesError> {
    let file = file.ok_or_else(|| CratesError::Missing { package: locked.directory() })?;
    Growing::new(tree).rust_package(file)?;
    // Cargo wants one in a directory of packages. It lists no files: the tree's digest is compared before.
    let text = format!("{{\"files\":{{}},\"package\":\"{}\"}}", locked.sha256);
    Ok(files::write_whole(&tree.join(".cargo-checksum.json"), text.as_bytes())?)
}

/// The file with the locked digest, if it is on this machine.
fn find(locked: &LockedCrate, sources: &Sources) -> Result<Option<PathBuf>, CratesError> {
    let name = locked.file_name();
    let mut places = vec![fetch::place(sources, &locked.sha256, &name)];
    places.extend(fetch::cargo_cache()?.into_iter().map(|directory| directory.join(&name)));
    for path in places {
        if path.is_file() && files::sha256_file(&path)?.1 == locked.sha256 {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn parse(bytes: &[u8]) -> Result<Vec<LockedCrate>, CratesError> {
    let lock: CargoLock =
        toml::from_str(&String::from_utf8_lossy(bytes)).map_err(|e| CratesError::Lock(e.message().to_owned()))?;
    let mut crates = Vec::new();
    for package in lock.package {
        let described = format!("{}-{}", package.name, package.version);
        let Some(source) = package.source else { continue };
        let plain = described.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b));
        match package.checksum {
            Some(sha256) if source == REGISTRY && plain => {
                crates.push(LockedCrate { name: package.name, version: package.version, sha256 });
            }
            _ => return Err(CratesError::Source { package: described }),
        }
    }
    crates.sort();
    Ok(crates)
}

#[derive(Deserialize)]
struct CargoLock {
    package: Vec<LockedPackage>,
}

#[derive(Deserialize)]
struct LockedPackage {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<Sha256Digest>,
}

/// Where a build finds the packages.
const PLACE: &str = "/crates";
/// Cargo's home in a build.
pub(crate) const HOME: &str = "/cargo";
const SETTINGS: &str = "\
[source.crates-io]
replace-with = \"locked\"

[source.locked]
directory = \"/crates\"

[net]
offline = true
";
/// How `Cargo.lock` names the Rust package registry.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";
const MAX_LOCK: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"
version = 4

[[package]]
name = "ours"
version = "0.1.0"

[[package]]
name = "a"
version = "1.0.0+x"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "78e0d54df11fc77406cb7a0bc9a39e5bca6d1cbe06556b91d9a73491c52decdf"
"#;

    #[test]
    fn packages_of_the_registry_are_listed() {
        let crates = parse(LOCK.as_bytes()).unwrap();
        assert_eq!(crates.iter().map(LockedCrate::file_name).collect::<Vec<_>>(), ["a-1.0.0+x.crate"]);
    }

    #[test]
    fn other_sources_and_missing_digests_are_named() {
        for (from, to) in
            [("registry+https", "git+https"), ("checksum = \"78", "other = \"78"), ("name = \"a\"", "name = \"../a\"")]
        {
            let error = parse(LOCK.replace(from, to).as_bytes()).unwrap_err();
            assert!(matches!(error, CratesError::Source { .. }), "{to}: {error}");
        }
        assert!(matches!(parse(LOCK.replace("decdf", "").as_bytes()), Err(CratesError::Lock(_))));
    }
}
