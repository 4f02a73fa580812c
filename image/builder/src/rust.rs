// SPDX-License-Identifier: Apache-2.0
//! The Rust toolchain: the official distribution that `rust-toolchain.toml` pins, as rustup installs it, file by file.
//!
//! rustup puts it under the user's home and others may add components to it. So only the files that the manifests of the
//! locked components list are shown to a build, and their digest is compared with the lock first.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::Sha256Digest;

use crate::files::{self, FileError};
use crate::locks::LockError;
use crate::room::{Mount, Room};
use crate::tree::{self, TreeDigest};
use crate::workspace::{Workspace, WorkspaceError};

/// Why the toolchain was not used.
#[derive(Debug, thiserror::Error)]
pub enum RustError {
    /// The lock was refused.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Rust is not installed, or not this version.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// A component is not installed.
    #[error("the Rust toolchain in {sysroot} has no component {component}")]
    NoComponent {
        /// Where it is installed.
        sysroot: PathBuf,
        /// The component.
        component: String,
    },
    /// A manifest names a path that does not stay inside the toolchain.
    #[error("the manifest of {component} lists {path:?}")]
    Manifest {
        /// The component.
        component: String,
        /// The path.
        path: String,
    },
    /// The files are not the locked ones.
    #[error("the Rust toolchain in {sysroot} is not the locked one: expected {expected}, found {found}")]
    Differs {
        /// Where it is installed.
        sysroot: PathBuf,
        /// Digest in the lock.
        expected: Sha256Digest,
        /// Digest of what is installed.
        found: Sha256Digest,
    },
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// `image/locks/rust.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RustLock {
    /// `rust`.
    pub kind: String,
    /// The version, as in `rust-toolchain.toml`.
    pub channel: String,
    /// Components whose files a build sees.
    pub components: Vec<String>,
    /// Files in them, without documentation.
    pub entries: u64,
    /// Bytes in them.
    pub size: u64,
    /// Digest of the tree they form.
    pub sha256: Sha256Digest,
    /// SPDX licence expression.
    pub licence: String,
    /// Why the project needs it.
    pub reason: String,
}

/// The lock with the digest of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedRust {
    /// What it says.
    pub lock: RustLock,
    /// SHA-256 of the lock file.
    pub lock_sha256: Sha256Digest,
}

impl NamedRust {
    /// Reads the lock in `directory`.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn read(directory: &Path) -> Result<Self, LockError> {
        let path = directory.join(LOCK);
        let bytes = files::read_capped(&path, MAX_TEXT)?;
        let lock: RustLock = toml::from_str(&String::from_utf8_lossy(&bytes))
            .map_err(|e| LockError::Syntax { path: path.clone(), source: Box::new(e) })?;
        let refuse = |field, rule| Err(LockError::Field { path: path.clone(), field, rule });
        if lock.kind != "rust" {
            return refuse("kind", "must be rust");
        }
        if lock.components.is_empty() || !lock.components.iter().all(|c| is_component(c)) {
            return refuse("components", "must be names of components");
        }
        if lock.licence.trim().is_empty() || lock.reason.trim().is_empty() {
            return refuse("licence, reason", "must be stated");
        }
        Ok(Self { lock, lock_sha256: Sha256Digest::of(&bytes) })
    }

    /// Shows the installed toolchain in `room`, at `/rust`, after its digest was compared.
    ///
    /// # Errors
    /// [`RustError`].
    pub(crate) fn show(&self, workspace: &Workspace, room: Room) -> Result<Room, RustError> {
        let sysroot = sysroot(workspace)?;
        let files = installed(&sysroot, &self.lock.components)?;
        let found = tree::digest_of(&sysroot, files.clone())?.sha256;
        if found != self.lock.sha256 {
            return Err(RustError::Differs { sysroot, expected: self.lock.sha256, found });
        }
        Ok(show(room.mount(Mount::Scratch { to: PLACE.into() }), &sysroot, &files))
    }
}

/// Shows further components, unchecked: tools that look at the source and shape nothing.
///
/// # Errors
/// [`RustError`].
pub(crate) fn show_unchecked(workspace: &Workspace, room: Room, components: &[String]) -> Result<Room, RustError> {
    let sysroot = sysroot(workspace)?;
    let files = installed(&sysroot, components)?;
    Ok(show(room, &sysroot, &files))
}

/// Size and digest of the named components as they are installed: what a new lock states.
///
/// # Errors
/// [`RustError`].
pub(crate) fn measure(workspace: &Workspace, components: &[String]) -> Result<TreeDigest, RustError> {
    let sysroot = sysroot(workspace)?;
    let files = installed(&sysroot, components)?;
    Ok(tree::digest_of(&sysroot, files)?)
}

fn show(room: Room, sysroot: &Path, files: &[PathBuf]) -> Room {
    files.iter().fold(room, |room, file| room.show(&sysroot.join(file), Path::new(PLACE).join(file)))
}

fn sysroot(workspace: &Workspace) -> Result<PathBuf, WorkspaceError> {
    let said = workspace.rust_tool("rustc").args(["--print", "sysroot"]).directory(workspace.root()).output()?;
    Ok(PathBuf::from(said.trim()))
}

/// The files of the named components, without documentation and tools for editors.
fn installed(sysroot: &Path, components: &[String]) -> Result<Vec<PathBuf>, RustError> {
    let mut found = Vec::new();
    for component in components {
        let path = sysroot.join("lib/rustlib").join(format!("manifest-{component}-{TARGET}"));
        if !path.is_file() {
            return Err(RustError::NoComponent { sysroot: sysroot.to_owned(), component: component.clone() });
        }
        let text = files::read_capped(&path, MAX_TEXT)?;
        for line in String::from_utf8_lossy(&text).lines() {
            let Some(file) = line.strip_prefix("file:") else { continue };
            if !is_inside(file) {
                return Err(RustError::Manifest { component: component.clone(), path: file.to_owned() });
            }
            if USED.iter().any(|place| file.starts_with(place)) {
                found.push(PathBuf::from(file));
            }
        }
    }
    Ok(found)
}

fn is_component(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
}

fn is_inside(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Where a build finds it.
pub(crate) const PLACE: &str = "/rust";
const LOCK: &str = "rust.toml";
const TARGET: &str = "x86_64-unknown-linux-gnu";
const USED: [&str; 2] = ["bin/", "lib/"];
const MAX_TEXT: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn toolchain(manifest: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("lib/rustlib")).unwrap();
        std::fs::create_dir_all(dir.path().join("bin")).unwrap();
        std::fs::write(dir.path().join("bin/rustc"), "rustc").unwrap();
        std::fs::write(dir.path().join("bin/stray"), "another component").unwrap();
        std::fs::write(dir.path().join(format!("lib/rustlib/manifest-rustc-{TARGET}")), manifest).unwrap();
        dir
    }

    #[test]
    fn only_files_of_the_locked_components_count() {
        let dir = toolchain("file:bin/rustc\nfile:share/man/x\ndir:lib/d\n");
        assert_eq!(installed(dir.path(), &["rustc".into()]).unwrap(), [PathBuf::from("bin/rustc")]);
        let error = installed(dir.path(), &["cargo".into()]).unwrap_err();
        assert!(matches!(error, RustError::NoComponent { component, .. } if component == "cargo"));
    }

    #[test]
    fn a_manifest_cannot_lead_outside() {
        for path in ["bin/../../x", "/etc/passwd", "bin//x"] {
            let dir = toolchain(&format!("file:{path}\n"));
            assert!(matches!(installed(dir.path(), &["rustc".into()]), Err(RustError::Manifest { .. })), "{path}");
        }
    }

    #[test]
    fn the_repository_lock_is_for_the_pinned_version() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let lock = NamedRust::read(&root.join("image/locks")).unwrap().lock;
        let toolchain = std::fs::read_to_string(root.join("rust-toolchain.toml")).unwrap();
        assert!(toolchain.contains(&format!("channel = \"{}\"", lock.channel)));
    }
}
