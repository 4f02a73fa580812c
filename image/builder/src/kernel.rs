// SPDX-License-Identifier: Apache-2.0
//! Builds the guest's kernel from Debian's source, our fragments and our patches.

mod config;
mod required;

use std::path::{Path, PathBuf};

use types::Sha256Digest;

pub use self::config::{Difference, Fragment};
pub use self::required::RequirementError;
use crate::cache::{Cache, CacheError, Entry};
use crate::command::{Tool, ToolError};
use crate::fetch::Input;
use crate::files::{self, FileError};
use crate::progress::Progress;
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
    /// A tool is missing or failed (a patch that does not apply, a compiler error).
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

/// Everything that determines a kernel, but the compiler, which is asked for its version.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Debian's source package.
    pub source: Input,
    /// Configuration fragments, in order; a later one overrides.
    pub fragments: Vec<Fragment>,
    /// Patches, in order: name and text.
    pub patches: Vec<(String, Vec<u8>)>,
}

/// A built kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The bzImage, an EFI application.
    pub image: PathBuf,
    /// The resolved configuration.
    pub config: PathBuf,
    /// Versions of the tools that compiled it.
    pub compiler: String,
}

impl Recipe {
    /// Reads fragments and patches from `image/kernel`.
    ///
    /// # Errors
    /// [`KernelError`] when one cannot be read or a fragment's line is malformed.
    pub fn read(directory: &Path, fragments: &[String], source: Input) -> Result<Self, KernelError> {
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
        Ok(Self { source, fragments, patches })
    }

    /// The kernel from the cache, or built now (minutes). The cache key covers the source, configuration, patches, fixed
    /// build settings and the versions of compiler, linker and compressor.
    ///
    /// # Errors
    /// [`KernelError`]; nothing is kept then.
    pub fn build(&self, cache: &Cache, source_date_epoch: u64, progress: &dyn Progress) -> Result<Kernel, KernelError> {
        let compiler = compiler_version()?;
        let key = self.key(&compiler, source_date_epoch);
        let entry: Entry = cache.entry("kernels", &key, progress, |directory| {
            let tree = directory.join("tree");
            files::create_directories(&tree)?;
            self.prepare(&tree, progress)?;
            compile(&tree, source_date_epoch, progress)?;
            for (from, to) in [("arch/x86/boot/bzImage", IMAGE), (".config", CONFIG)] {
                let (from, to) = (tree.join(from), directory.join(to));
                std::fs::copy(&from, &to).map_err(|e| FileError::at(&to, e))?;
            }
            Ok::<(), KernelError>(files::remove_tree(&tree)?)
        })?;
        Ok(Kernel { image: entry.file(IMAGE), config: entry.file(CONFIG), compiler })
    }

    fn key(&self, compiler: &str, source_date_epoch: u64) -> Sha256Digest {
        let mut parts = vec![
            ("recipe", Sha256Digest::of(RECIPE_VERSION.as_bytes())),
            ("source", self.source.lock.lock.sha256),
            ("compiler", Sha256Digest::of(compiler.as_bytes())),
            ("epoch", Sha256Digest::of(&source_date_epoch.to_be_bytes())),
            ("config", Sha256Digest::of(config::merged_text(&self.fragments).as_bytes())),
        ];
        for (name, text) in &self.patches {
            parts.push(("patch name", Sha256Digest::of(name.as_bytes())));
            parts.push(("patch", Sha256Digest::of(text)));
        }
        let lines: String = parts.iter().map(|(name, digest)| format!("{name} {digest}\n")).collect();
        Sha256Digest::of(lines.as_bytes())
    }

    /// Source, patches, configuration: checked against what the fragments want before anything is compiled.
    fn prepare(&self, tree: &Path, progress: &dyn Progress) -> Result<(), KernelError> {
        progress.step("unpack the kernel's source");
        let member = format!("usr/src/{}.tar.xz", self.source.lock.lock.package);
        unpack::debian_source_tree(&self.source, &member, tree, progress)?;
        for (name, text) in &self.patches {
            let path = tree.join(name);
            files::write_whole(&path, text)?;
            Tool::new("patch", "install the Debian package patch")
                .args(["--strip=1", "--fuzz=0", "--forward", "--batch", "--input", name.as_str()])
                .directory(tree)
                .output()?;
        }
        config::check_known(tree, &self.fragments)?;
        let wanted = tree.join("wanted.config");
        files::write_whole(&wanted, config::merged_text(&self.fragments).as_bytes())?;
        make(tree).env("KCONFIG_ALLCONFIG", &wanted).args(["-s", "allnoconfig"]).output()?;
        let resolved = files::read_capped(&tree.join(".config"), MAX_TEXT)?;
        config::check_resolved(&self.fragments, &String::from_utf8_lossy(&resolved))
    }
}

fn compile(tree: &Path, source_date_epoch: u64, progress: &dyn Progress) -> Result<(), KernelError> {
    progress.step("compile the kernel");
    let map = format!("-ffile-prefix-map={}=/kernel", tree.display());
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    make(tree)
        .env("SOURCE_DATE_EPOCH", source_date_epoch.to_string())
        .env("KBUILD_BUILD_TIMESTAMP", format!("@{source_date_epoch}"))
        .args([format!("KCFLAGS={map}"), format!("KAFLAGS={map}"), format!("-j{jobs}"), "bzImage".to_owned()])
        .run("kernel: files compiled", progress)?;
    Ok(())
}

fn make(tree: &Path) -> Tool {
    Tool::new("make", "install the Debian packages build-essential, flex, bison, bc, libelf-dev and zstd")
        .directory(tree)
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .env("KBUILD_BUILD_USER", "chrysalis")
        .env("KBUILD_BUILD_HOST", "chrysalis")
        .env("KBUILD_BUILD_VERSION", "1")
        .arg("ARCH=x86_64")
}

/// The versions that end up in the kernel or shape its code.
fn compiler_version() -> Result<String, ToolError> {
    let mut lines = Vec::new();
    for (tool, fix) in [
        ("gcc", "install the Debian package build-essential"),
        ("ld", "install the Debian package binutils"),
        ("zstd", "install the Debian package zstd"),
    ] {
        let said = Tool::new(tool, fix).env("LC_ALL", "C").arg("--version").output()?;
        lines.push(said.lines().next().unwrap_or_default().to_owned());
    }
    Ok(lines.join("; "))
}

const IMAGE: &str = "bzImage";
const CONFIG: &str = "config";
const MAX_TEXT: u64 = 1 << 20;
/// Changes when this file builds another way.
const RECIPE_VERSION: &str = "kernel/1";

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
            members: Vec::new(),
        };
        let lock = NamedLock { name: "l".into(), lock, lock_sha256: Sha256Digest::ZERO };
        Recipe {
            source: Input { path: PathBuf::new(), lock },
            fragments: vec![Fragment::parse("f", config.as_bytes()).unwrap()],
            patches: vec![("p".into(), patch.as_bytes().to_vec())],
        }
    }

    #[test]
    fn every_part_of_a_recipe_is_in_the_key() {
        let base = recipe("CONFIG_A=y\n", "x").key("gcc 1", 1);
        assert_eq!(base, recipe("# reason\nCONFIG_A=y\n", "x").key("gcc 1", 1));
        for other in [
            recipe("CONFIG_A=n\n", "x").key("gcc 1", 1),
            recipe("CONFIG_A=y\n", "y").key("gcc 1", 1),
            recipe("CONFIG_A=y\n", "x").key("gcc 2", 1),
            recipe("CONFIG_A=y\n", "x").key("gcc 1", 2),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_repository_fragments_and_patches_are_readable() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel");
        let source = recipe("", "").source;
        let names = ["base.config".to_owned(), "debug.config".to_owned()];
        let read = Recipe::read(&directory, &names, source).unwrap();
        assert!(read.patches.iter().all(|(_, text)| text.starts_with(b"SPDX-License-Identifier: GPL-2.0-only\n")));
        assert_eq!(read.patches.len(), 4);
        assert!(config::merged_text(&read.fragments).contains("CONFIG_TTY=y\n"));
    }
}
