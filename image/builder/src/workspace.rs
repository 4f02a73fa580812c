// SPDX-License-Identifier: Apache-2.0
//! The source tree that images are built from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use types::Sha256Digest;

use crate::command::{Tool, ToolError};
use crate::files::{self, FileError};

/// Why the source tree could not be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// No directory from here upwards holds `Cargo.toml` and `image/locks`.
    #[error("{0} is not inside a Chrysalis source tree")]
    NotFound(PathBuf),
    /// `rust-toolchain.toml` names no channel.
    #[error("rust-toolchain.toml names no channel")]
    NoToolchain,
    /// Cargo's description of the packages is not of the expected form.
    #[error("cargo metadata: {0}")]
    Metadata(String),
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Cargo is missing or failed (for example because `Cargo.lock` is out of date).
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// A source tree.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
    toolchain: String,
}

impl Workspace {
    /// The tree that `start` lies in.
    ///
    /// # Errors
    /// [`WorkspaceError::NotFound`], or a failure to read its toolchain file.
    pub fn containing(start: &Path) -> Result<Self, WorkspaceError> {
        let start = std::fs::canonicalize(start).map_err(|e| FileError::at(start, e))?;
        let is_root = |d: &&Path| d.join("Cargo.toml").is_file() && d.join("image/locks").is_dir();
        let root = start.ancestors().find(is_root).ok_or_else(|| WorkspaceError::NotFound(start.clone()))?.to_owned();
        let text = files::read_capped(&root.join("rust-toolchain.toml"), MAX_TEXT)?;
        let file: ToolchainFile =
            toml::from_str(&String::from_utf8_lossy(&text)).map_err(|_| WorkspaceError::NoToolchain)?;
        Ok(Self { root, toolchain: file.toolchain.channel })
    }

    /// Its directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The Rust version that the tree pins.
    #[must_use]
    pub fn toolchain(&self) -> &str {
        &self.toolchain
    }

    /// A directory of `image/`.
    #[must_use]
    pub fn image(&self, name: &str) -> PathBuf {
        self.root.join("image").join(name)
    }

    /// A tool of the Rust version that the tree pins.
    #[must_use]
    pub fn rust_tool(&self, name: &str) -> Tool {
        Tool::new(name, "install Rust with rustup").env("RUSTUP_TOOLCHAIN", &self.toolchain).env("LC_ALL", "C")
    }

    /// What `rustc` says it is, in full.
    ///
    /// # Errors
    /// [`WorkspaceError::Tool`].
    pub fn rustc_version(&self) -> Result<String, WorkspaceError> {
        Ok(self.rust_tool("rustc").arg("-vV").directory(&self.root).output()?)
    }

    /// A digest over everything of this tree that enters a build of `packages`: their sources and those of the packages
    /// they depend on, the lock file and the workspace's settings. Registry packages enter through the lock file.
    ///
    /// # Errors
    /// [`WorkspaceError`].
    pub fn source_digest(&self, packages: &[&str]) -> Result<Sha256Digest, WorkspaceError> {
        let mut hash = Sha256::new();
        for file in SETTINGS {
            add_file(&mut hash, &self.root, Path::new(file))?;
        }
        for directory in self.local_closure(packages)? {
            for file in files::list_files(&self.root.join(&directory))? {
                add_file(&mut hash, &self.root, &directory.join(file))?;
            }
        }
        Ok(Sha256Digest::from_bytes(hash.finalize().into()))
    }

    /// Directories of `packages` and of the packages in this tree that they are built from, without those that only
    /// their tests use.
    fn local_closure(&self, packages: &[&str]) -> Result<BTreeSet<PathBuf>, WorkspaceError> {
        let text = self
            .rust_tool("cargo")
            .args(["metadata", "--format-version=1", "--locked", "--no-deps"])
            .directory(&self.root)
            .output()?;
        let metadata: Metadata = serde_json::from_str(&text).map_err(|e| WorkspaceError::Metadata(e.to_string()))?;
        let by_name: BTreeMap<&str, &Package> = metadata.packages.iter().map(|p| (p.name.as_str(), p)).collect();
        let mut pending: Vec<&str> = packages.to_vec();
        let mut seen = BTreeSet::new();
        let mut directories = BTreeSet::new();
        while let Some(name) = pending.pop() {
            let package = by_name.get(name).ok_or_else(|| WorkspaceError::Metadata(format!("no package {name}")))?;
            if !seen.insert(name) {
                continue;
            }
            let directory = package.manifest_path.parent().unwrap_or(&package.manifest_path);
            let relative = directory.strip_prefix(&self.root);
            directories.insert(relative.map_err(|_| outside(name))?.to_owned());
            let local = package.dependencies.iter().filter(|d| d.path.is_some() && d.kind.as_deref() != Some("dev"));
            pending.extend(local.map(|d| d.name.as_str()));
        }
        Ok(directories)
    }
}

fn outside(name: &str) -> WorkspaceError {
    WorkspaceError::Metadata(format!("package {name} lies outside the source tree"))
}

fn add_file(hash: &mut Sha256, root: &Path, path: &Path) -> Result<(), WorkspaceError> {
    let (size, digest) = files::sha256_file(&root.join(path))?;
    hash.update(format!("{} {size} {digest}\n", path.display()));
    Ok(())
}

#[derive(Deserialize)]
struct ToolchainFile {
    toolchain: Toolchain,
}

#[derive(Deserialize)]
struct Toolchain {
    channel: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<PathBuf>,
}

/// Files of the tree that shape every build.
const SETTINGS: [&str; 4] = ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", ".cargo/config.toml"];
const MAX_TEXT: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (tempfile::TempDir, Workspace) {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("Cargo.toml", "[workspace]\nresolver = \"3\"\nmembers = [\"a\", \"b\", \"c\"]\n");
        write("rust-toolchain.toml", &std::fs::read_to_string(repository().join("rust-toolchain.toml")).unwrap());
        write(".cargo/config.toml", "");
        write("image/locks/x", "");
        let package = |name: &str, rest: &str| {
            write(&format!("{name}/Cargo.toml"), &format!("[package]\nname = \"{name}\"\nedition = \"2024\"\n{rest}"));
            write(&format!("{name}/src/lib.rs"), "");
        };
        package("a", "[dependencies]\nb = { path = \"../b\" }\n[dev-dependencies]\nc = { path = \"../c\" }\n");
        package("b", "");
        package("c", "");
        let packages = |n: &str| format!("[[package]]\nname = \"{n}\"\nversion = \"0.0.0\"\n");
        let a = format!("{}dependencies = [\"b\", \"c\"]\n", packages("a"));
        write("Cargo.lock", &format!("version = 4\n\n{a}\n{}\n{}", packages("b"), packages("c")));
        let workspace = Workspace::containing(&dir.path().join("a/src")).unwrap();
        (dir, workspace)
    }

    fn repository() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn what_enters_a_build_is_in_its_digest() {
        let (dir, workspace) = tree();
        let digest = || workspace.source_digest(&["a"]).unwrap();
        let before = digest();
        std::fs::write(dir.path().join("c/src/lib.rs"), "// only tests use it\n").unwrap();
        assert_eq!(digest(), before);
        std::fs::write(dir.path().join("b/src/lib.rs"), "// used\n").unwrap();
        let after = digest();
        assert_ne!(after, before);
        std::fs::write(dir.path().join(".cargo/config.toml"), "# changed\n").unwrap();
        assert_ne!(digest(), after);
    }

    #[test]
    fn an_unknown_package_is_named() {
        let (_dir, workspace) = tree();
        let error = workspace.source_digest(&["z"]).unwrap_err();
        assert!(error.to_string().contains("no package z"), "{error}");
    }

    #[test]
    fn a_directory_outside_any_tree_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Workspace::containing(dir.path()), Err(WorkspaceError::NotFound(_))));
    }
}
