// SPDX-License-Identifier: Apache-2.0
//! Builds the guest's kernel from Debian's source, our fragments and our patches, in the build root.

mod config;
pub(crate) mod development;
mod required;

use std::path::{Path, PathBuf};

use types::Sha256Digest;

pub use self::config::{Difference, Fragment};
pub use self::required::RequirementError;
use crate::build_root::RootError;
use crate::cache::{CacheError, Entry};
use crate::command::{Tool, ToolError};
use crate::fetch::Input;
use crate::files::{self, FileError};
use crate::room::Room;
use crate::shop::Shop;
use crate::unpack::{self, UnpackError};

/// Why no kernel was built.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A fragment's line is not `CONFIG_NAME=value`.
    #[error("{fragment}, line {line}: must be CONFIG_NAME=value or a comment")]
    FragmentLine {
        /// Fragment name.
        fragment: String,
        /// Line number, from 1.
        line: usize,
    },
    /// Options that this kernel does not know, so that asking for them means nothing.
    #[error("the kernel has no option {}", .0.join(", "))]
    UnknownOptions(Vec<String>),
    /// The fragments leave out what is required.
    #[error(transparent)]
    Requirement(#[from] RequirementError),
    /// Options that came out of Kconfig's resolution other than wanted.
    #[error("kernel options differ after resolution: {}", config::list(.0))]
    OptionsDiffer(Vec<Difference>),
    /// The source could not be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// There is no build root.
    #[error(transparent)]
    Root(#[from] RootError),
    /// A tool failed (a patch that does not apply, a compiler error).
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<FileError> for KernelError {
    fn from(error: FileError) -> Self {
        Self::Cache(error.into())
    }
}

/// Everything that determines a kernel, but the build root.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Debian's source package.
    pub source: Input,
    /// Configuration fragments, in order; a later one overrides.
    pub fragments: Vec<Fragment>,
    /// Patches, in order: name and text.
    pub patches: Vec<(String, Vec<u8>)>,
    /// Whether modules will be compiled for it, so that what this takes is kept.
    pub modular: bool,
}

/// A built kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The bzImage, an EFI application.
    pub image: PathBuf,
    /// The resolved configuration.
    pub config: PathBuf,
    /// Versions of the locked tools that compiled it.
    pub compiler: String,
    /// What compiling modules for it takes, as one tar file, when its recipe says so.
    pub(crate) development: Option<Development>,
}

/// The part of a built source tree that compiling modules takes.
#[derive(Debug, Clone)]
pub(crate) struct Development {
    /// The tar file.
    pub(crate) archive: PathBuf,
    /// Its digest.
    pub(crate) sha256: Sha256Digest,
}

impl Recipe {
    /// Reads fragments and patches from `image/kernel`.
    ///
    /// # Errors
    /// [`KernelError`] when one cannot be read or a fragment's line is malformed.
    pub fn read(directory: &Path, fragments: &[String], source: Input, modular: bool) -> Result<Self, KernelError> {
        let fragment = |name: &String| {
            let path = directory.join("config").join(name);
            Fragment::parse(name, &files::read_capped(&path, MAX_TEXT)?)
        };
        let fragments = fragments.iter().map(fragment).collect::<Result<Vec<_>, _>>()?;
        let required = files::read_capped(&directory.join("required.toml"), MAX_TEXT)?;
        required::check(&String::from_utf8_lossy(&required), &fragments)?;
        let patches_in = directory.join("patches");
        let mut patches = Vec::new();
        for name in files::list_files(&patches_in)?.iter().filter(|n| n.extension().is_some_and(|e| e == "patch")) {
            patches.push((name.to_string_lossy().into_owned(), files::read_capped(&patches_in.join(name), MAX_TEXT)?));
        }
        Ok(Self { source, fragments, patches, modular })
    }

    /// The kernel from the cache, or built now (minutes). The cache key covers the source, configuration, patches, fixed
    /// build settings and everything in the build root.
    ///
    /// # Errors
    /// [`KernelError`]; nothing is kept then.
    pub(crate) fn build(&self, shop: &Shop<'_>) -> Result<Kernel, KernelError> {
        let Shop { root, sources, progress, source_date_epoch, .. } = *shop;
        let key = self.key(&root.digest(), source_date_epoch);
        let entry: Entry = sources.cache.entry("kernels", &key, progress, |directory| {
            let tree = directory.join("tree");
            files::create_directories(&tree)?;
            progress.step("unpack the kernel's source");
            let member = format!("usr/src/{}.tar.xz", self.source.lock.lock.package);
            unpack::debian_source_tree(&self.source, &member, &tree, unpack::is_wanted_of_linux, progress)?;
            let room = root.room(sources, progress)?.lend(&tree, PLACE);
            self.prepare(&tree, &room)?;
            compile(&room, shop, if self.modular { &["bzImage", "modules"] } else { &["bzImage"] })?;
            for (from, to) in [("arch/x86/boot/bzImage", IMAGE), (".config", CONFIG)] {
                let (from, to) = (tree.join(from), directory.join(to));
                std::fs::copy(&from, &to).map_err(|e| FileError::at(&to, e))?;
            }
            if self.modular {
                development::pack(&tree, &directory.join(DEVELOPMENT))?;
            }
            Ok::<(), KernelError>(files::remove_tree(&tree)?)
        })?;
        let development = entry.files.get(DEVELOPMENT).map(|file| file.sha256);
        Ok(Kernel {
            image: entry.file(IMAGE),
            config: entry.file(CONFIG),
            compiler: root.versions(&COMPILERS),
            development: development.map(|sha256| Development { archive: entry.file(DEVELOPMENT), sha256 }),
        })
    }

    fn key(&self, root: &Sha256Digest, source_date_epoch: u64) -> Sha256Digest {
        let mut parts = vec![
            ("recipe", Sha256Digest::of(RECIPE_VERSION.as_bytes())),
            ("source", self.source.lock.lock.sha256),
            ("build root", *root),
            ("epoch", Sha256Digest::of(&source_date_epoch.to_be_bytes())),
            ("config", Sha256Digest::of(config::merged_text(&self.fragments).as_bytes())),
        ];
        if self.modular {
            parts.push(("modular", Sha256Digest::of(development::VERSION.as_bytes())));
        }
        for (name, text) in &self.patches {
            parts.push(("patch name", Sha256Digest::of(name.as_bytes())));
            parts.push(("patch", Sha256Digest::of(text)));
        }
        let lines: String = parts.iter().map(|(name, digest)| format!("{name} {digest}\n")).collect();
        Sha256Digest::of(lines.as_bytes())
    }

    /// Patches and configuration: checked against what the fragments want before anything is compiled.
    fn prepare(&self, tree: &Path, room: &Room) -> Result<(), KernelError> {
        for (name, text) in &self.patches {
            files::write_whole(&tree.join(name), text)?;
            patch(room, name, Path::new(PLACE))?;
        }
        config::check_known(tree, &self.fragments)?;
        files::write_whole(&tree.join(WANTED), config::merged_text(&self.fragments).as_bytes())?;
        make(room).env("KCONFIG_ALLCONFIG", WANTED).args(["-s", "allnoconfig"]).output()?;
        let resolved = files::read_capped(&tree.join(".config"), MAX_TEXT)?;
        config::check_resolved(&self.fragments, &String::from_utf8_lossy(&resolved))
    }
}

fn compile(room: &Room, shop: &Shop<'_>, targets: &[&str]) -> Result<(), KernelError> {
    shop.progress.step("compile the kernel");
    make(room)
        .env("SOURCE_DATE_EPOCH", shop.source_date_epoch.to_string())
        .env("KBUILD_BUILD_TIMESTAMP", format!("@{}", shop.source_date_epoch))
        .arg(format!("-j{}", shop.jobs))
        .args(targets)
        .run("kernel: files compiled", shop.progress)?;
    Ok(())
}

/// Applies the patch `name`, a file of the tree at `place`, exactly.
pub(crate) fn patch(room: &Room, name: &str, place: &Path) -> Result<(), ToolError> {
    let arguments = ["--strip=1", "--fuzz=0", "--forward", "--batch", "--input", name];
    Tool::inside(room, "patch").args(arguments).directory(place).output().map(drop)
}

/// `make` at the kernel's place, under fixed names of user, host and version.
pub(crate) fn make(room: &Room) -> Tool {
    Tool::inside(room, "make")
        .directory(Path::new(PLACE))
        .env("KBUILD_BUILD_USER", "chrysalis")
        .env("KBUILD_BUILD_HOST", "chrysalis")
        .env("KBUILD_BUILD_VERSION", "1")
        .arg("ARCH=x86_64")
}

/// Where the source stands while it is compiled.
pub(crate) const PLACE: &str = "/build";
const WANTED: &str = "wanted.config";
/// Packages of the build root whose versions end up in the kernel or shape its code.
const COMPILERS: [&str; 3] = ["gcc-14", "binutils", "zstd"];
const IMAGE: &str = "bzImage";
const CONFIG: &str = "config";
const DEVELOPMENT: &str = "development.tar";
const MAX_TEXT: u64 = 1 << 20;
/// Changes when this file builds another way.
const RECIPE_VERSION: &str = "kernel/2";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locks::{Kind, Lock, NamedLock};

    fn recipe(config: &str, patch: &str) -> Recipe {
        let lock = Lock {
            kind: Kind::Debian,
            package: "linux-source".into(),
            version: "1".into(),
            path: "pool/l.deb".into(),
            size: 1,
            sha256: Sha256Digest::of(b"source"),
            licence: "x".into(),
            reason: "x".into(),
            suite: None,
            members: Vec::new(),
        };
        let lock = NamedLock { name: "l".into(), lock, lock_sha256: Sha256Digest::ZERO };
        Recipe {
            source: Input { path: PathBuf::new(), lock },
            fragments: vec![Fragment::parse("f", config.as_bytes()).unwrap()],
            patches: vec![("p".into(), patch.as_bytes().to_vec())],
            modular: false,
        }
    }

    #[test]
    fn every_part_of_a_recipe_is_in_the_key() {
        let (one, two) = (Sha256Digest::of(b"1"), Sha256Digest::of(b"2"));
        let base = recipe("CONFIG_A=y\n", "x").key(&one, 1);
        assert_eq!(base, recipe("# reason\nCONFIG_A=y\n", "x").key(&one, 1));
        for other in [
            recipe("CONFIG_A=n\n", "x").key(&one, 1),
            recipe("CONFIG_A=y\n", "y").key(&one, 1),
            recipe("CONFIG_A=y\n", "x").key(&two, 1),
            recipe("CONFIG_A=y\n", "x").key(&one, 2),
        ] {
            assert_ne!(base, other);
        }
        let modular = Recipe { modular: true, ..recipe("CONFIG_A=y\n", "x") };
        assert_ne!(base, modular.key(&one, 1));
    }

    #[test]
    fn the_repository_fragments_and_patches_are_readable() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel");
        let source = recipe("", "").source;
        let names = ["base.config".to_owned(), "debug.config".to_owned()];
        let read = Recipe::read(&directory, &names, source, false).unwrap();
        assert!(read.patches.iter().all(|(_, text)| text.starts_with(b"SPDX-License-Identifier: GPL-2.0-only\n")));
        assert_eq!(read.patches.len(), 4);
        assert!(config::merged_text(&read.fragments).contains("CONFIG_TTY=y\n"));
    }
}
