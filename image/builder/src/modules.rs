// SPDX-License-Identifier: Apache-2.0
//! Compiles the GPU driver's modules against a kernel of ours, in the build root.
//!
//! What this does **not** establish: what stands in the driver's core, an object of 222 MB that its package brings compiled.

use std::path::{Path, PathBuf};

use types::Sha256Digest;

use crate::build_root::RootError;
use crate::cache::CacheError;
use crate::command::{Tool, ToolError};
use crate::fetch::Input;
use crate::files::{self, FileError};
use crate::kernel::{self, Kernel};
use crate::shop::Shop;
use crate::unpack::{self, UnpackError};

/// Why there are no modules.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// The kernel was compiled without modules.
    #[error("the kernel's recipe has no modules")]
    NoModules,
    /// The driver left out its encrypted session with the GPU: it does so without a word when the kernel lacks an algorithm.
    #[error("module {module} uses no {symbol}: the driver was compiled without its encrypted session")]
    NoSession {
        /// The module.
        module: String,
        /// What a driver with the session uses.
        symbol: &'static str,
    },
    /// The source could not be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// There is no build root.
    #[error(transparent)]
    Root(#[from] RootError),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<FileError> for ModulesError {
    fn from(error: FileError) -> Self {
        Self::Cache(error.into())
    }
}

/// What to compile, and from what.
#[derive(Debug, Clone)]
pub(crate) struct ModulesRecipe {
    /// The package with the source.
    pub(crate) source: Input,
    /// Path of the `.tar.xz` file in the package.
    pub(crate) archive: String,
    /// The directory to compile in, below the archive's top directory.
    pub(crate) directory: String,
    /// The modules.
    pub(crate) names: Vec<String>,
    /// Patches to the source, in order: name and text.
    pub(crate) patches: Vec<(String, Vec<u8>)>,
}

/// Compiled modules, stripped.
#[derive(Debug, Clone)]
pub(crate) struct Modules {
    /// Each module's name and file.
    pub(crate) files: Vec<(String, PathBuf)>,
    /// A digest over their bytes.
    pub(crate) sha256: Sha256Digest,
}

impl ModulesRecipe {
    /// The modules from the cache, or compiled now (minutes). The cache key covers the source, the kernel's configuration,
    /// headers and symbol versions, and everything in the build root.
    ///
    /// # Errors
    /// [`ModulesError`]; nothing is kept then.
    pub(crate) fn build(&self, shop: &Shop<'_>, kernel: &Kernel) -> Result<Modules, ModulesError> {
        let development = kernel.development.as_ref().ok_or(ModulesError::NoModules)?;
        let key = self.key(&shop.root.digest(), &development.sha256, shop.source_date_epoch);
        let entry = shop.sources.cache.entry("modules", &key, shop.progress, |directory| {
            let (linux, source) = (directory.join("linux"), directory.join("source"));
            files::create_directories(&linux)?;
            files::create_directories(&source)?;
            shop.progress.step(&format!("unpack the source of {}", self.names.join(", ")));
            kernel::development::unpack(&development.archive, &linux)?;
            let wanted = |path: &Path| path.starts_with(&self.directory);
            unpack::debian_source_tree(&self.source, &self.archive, &source, wanted, shop.progress)?;
            self.compile(shop, &linux, &source)?;
            for name in &self.names {
                let bytes = files::read_capped(&self.compiled(&source, name), MAX_MODULE)?;
                files::write_whole(&directory.join(format!("{name}.ko")), &bytes)?;
            }
            self.check_session(directory)?;
            files::remove_tree(&linux)?;
            Ok::<(), ModulesError>(files::remove_tree(&source)?)
        })?;
        let place = |name: &String| (name.clone(), entry.file(&format!("{name}.ko")));
        let line = |(name, file): (&String, &crate::cache::EntryFile)| format!("{name} {}\n", file.sha256);
        Ok(Modules {
            files: self.names.iter().map(place).collect(),
            sha256: Sha256Digest::of(entry.files.iter().map(line).collect::<String>().as_bytes()),
        })
    }

    fn key(&self, root: &Sha256Digest, kernel: &Sha256Digest, source_date_epoch: u64) -> Sha256Digest {
        let source = self.source.lock.lock.sha256;
        let (archive, directory, names) = (&self.archive, &self.directory, self.names.join(" "));
        let patch = |(name, text): &(String, Vec<u8>)| format!("{name} {}\n", Sha256Digest::of(text));
        let patches: String = self.patches.iter().map(patch).collect();
        let text = format!(
            "{RECIPE_VERSION}\nroot {root}\nkernel {kernel}\nsource {source}\n{archive}\n{directory}\n{names}\n{patches}{source_date_epoch}\n"
        );
        Sha256Digest::of(text.as_bytes())
    }

    fn compile(&self, shop: &Shop<'_>, linux: &Path, source: &Path) -> Result<(), ModulesError> {
        let room = shop.root.room(shop.sources, shop.progress)?.lend(linux, kernel::PLACE).lend(source, SOURCE_PLACE);
        let place = Path::new(SOURCE_PLACE).join(&self.directory);
        for (name, text) in &self.patches {
            files::write_whole(&source.join(&self.directory).join(name), text)?;
            kernel::patch(&room, name, &place)?;
        }
        shop.progress.step(&format!("compile {}", self.names.join(", ")));
        kernel::make(&room)
            .directory(&place)
            .env("SOURCE_DATE_EPOCH", shop.source_date_epoch.to_string())
            .env("KBUILD_BUILD_TIMESTAMP", format!("@{}", shop.source_date_epoch))
            .arg(format!("-j{}", shop.jobs))
            .arg(format!("SYSSRC={}", kernel::PLACE))
            .arg(format!("NV_KERNEL_MODULES={}", self.names.join(" ")))
            .args(["NV_VERBOSE=1", "modules"])
            .run("modules: lines of the build", shop.progress)?;
        for name in &self.names {
            let module = format!("{name}.ko");
            Tool::inside(&room, "strip").args(["--strip-debug", &module]).directory(&place).output()?;
        }
        Ok(())
    }

    fn compiled(&self, source: &Path, name: &str) -> PathBuf {
        source.join(&self.directory).join(format!("{name}.ko"))
    }

    fn check_session(&self, directory: &Path) -> Result<(), ModulesError> {
        let Some(module) = self.names.iter().find(|name| *name == DRIVER) else { return Ok(()) };
        let bytes = files::read_capped(&directory.join(format!("{module}.ko")), MAX_MODULE)?;
        match SESSION.iter().find(|symbol| !names_symbol(&bytes, symbol)) {
            None => Ok(()),
            Some(symbol) => Err(ModulesError::NoSession { module: module.clone(), symbol }),
        }
    }
}

/// Whether a table of strings in the file has `symbol` as an entry.
fn names_symbol(file: &[u8], symbol: &str) -> bool {
    let entry = [b"\0", symbol.as_bytes(), b"\0"].concat();
    file.windows(entry.len()).any(|window| window == entry)
}

/// Where the driver's source stands while it is compiled.
const SOURCE_PLACE: &str = "/target";
/// The module that talks to the GPU's firmware.
const DRIVER: &str = "nvidia";
/// Functions of the kernel that the session (SPDM) is made with.
const SESSION: [&str; 3] = ["crypto_alloc_aead", "crypto_alloc_shash", "public_key_verify_signature"];
const MAX_MODULE: u64 = 512 << 20;
/// Changes when this file builds another way.
const RECIPE_VERSION: &str = "modules/1";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locks::{Kind, Lock, NamedLock};

    fn recipe(package: &[u8], names: &[&str]) -> ModulesRecipe {
        let lock = Lock {
            kind: Kind::Debian,
            package: "d".into(),
            version: "1".into(),
            path: "pool/d.deb".into(),
            size: 1,
            sha256: Sha256Digest::of(package),
            licence: "x".into(),
            reason: "x".into(),
            suite: None,
            members: Vec::new(),
        };
        let lock = NamedLock { name: "n/d".into(), lock, lock_sha256: Sha256Digest::ZERO };
        let source = Input { path: PathBuf::new(), lock };
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        ModulesRecipe { source, archive: "a.tar.xz".into(), directory: "d".into(), names, patches: Vec::new() }
    }

    #[test]
    fn every_part_of_a_recipe_is_in_the_key() {
        let (one, two) = (Sha256Digest::of(b"1"), Sha256Digest::of(b"2"));
        let base = recipe(b"s", &["a"]).key(&one, &one, 1);
        let patches = vec![("p".to_owned(), b"x".to_vec())];
        assert_ne!(base, ModulesRecipe { patches, ..recipe(b"s", &["a"]) }.key(&one, &one, 1));
        for other in [
            recipe(b"t", &["a"]).key(&one, &one, 1),
            recipe(b"s", &["a", "b"]).key(&one, &one, 1),
            recipe(b"s", &["a"]).key(&two, &one, 1),
            recipe(b"s", &["a"]).key(&one, &two, 1),
            recipe(b"s", &["a"]).key(&one, &one, 2),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn a_driver_without_its_session_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let write = |symbols: &[&str]| {
            let text = format!("\x7fELF\0{}\0", symbols.join("\0"));
            std::fs::write(dir.path().join("nvidia.ko"), text).unwrap();
            recipe(b"s", &["nvidia", "nvidia-uvm"]).check_session(dir.path())
        };
        write(&SESSION).unwrap();
        let error = write(&["crypto_alloc_aead", "my_crypto_alloc_shash", "public_key_verify_signature"]).unwrap_err();
        assert!(matches!(error, ModulesError::NoSession { symbol: "crypto_alloc_shash", .. }), "{error}");
    }
}
