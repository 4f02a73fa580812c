// SPDX-License-Identifier: Apache-2.0
//! Makes the verified disk of a profile: a file system of locked files and compiled modules, and its hash tree.
//!
//! The file system is made by `mkfs.erofs` from an archive in memory's order and the hash tree by `veritysetup`, both locked
//! and run in the build root. Nothing of this machine's file system enters: neither owners, permissions, times nor order.

mod contents;
mod recipe;

use std::fs::File;
use std::path::{Path, PathBuf};

use types::Sha256Digest;

pub use self::contents::ContentsError;
use self::contents::{Contents, Origin};
pub use self::recipe::RecipeError;
pub(crate) use self::recipe::{DiskProgram, DiskRecipe};
use crate::build_root::RootError;
use crate::cache::CacheError;
use crate::command::{Tool, ToolError};
use crate::fetch::{self, FetchError};
use crate::files::{self, FileError};
use crate::image::RootDisk;
use crate::locks::NamedSet;
use crate::modules::{Modules, ModulesError, ModulesRecipe};
use crate::profile::Program;
use crate::shop::Shop;
use crate::unpack::{self, UnpackError};

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// What shall stand on it was refused.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// What stands on it does not fit together.
    #[error(transparent)]
    Contents(#[from] ContentsError),
    /// A tool said something unexpected.
    #[error("{tool} did not say {what}")]
    Said {
        /// The tool.
        tool: &'static str,
        /// What was looked for.
        what: &'static str,
    },
    /// The modules were not built.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// A package could not be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A package does not hold a file.
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

impl From<FileError> for DiskError {
    fn from(error: FileError) -> Self {
        Self::Cache(error.into())
    }
}

/// A made disk.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    /// File system and hash tree.
    pub(crate) file: PathBuf,
    /// What is on it.
    pub(crate) description: RootDisk,
}

impl Disk {
    /// The word of the command line that names it.
    pub(crate) fn word(&self) -> String {
        let RootDisk { root_hash, salt, data_blocks, .. } = &self.description;
        format!("{}{root_hash}:{salt}:{data_blocks}", crate::profile::ROOT_WORD)
    }
}

impl DiskRecipe {
    /// How to compile its modules; their source is fetched.
    ///
    /// # Errors
    /// [`DiskError`].
    pub(crate) fn modules(&self, shop: &Shop<'_>) -> Result<ModulesRecipe, DiskError> {
        let recipe = &self.modules;
        let source = fetch::fetch_input(&self.lock(&recipe.package)?, shop.sources, shop.progress)?;
        let (archive, directory, names) = (recipe.archive.clone(), recipe.directory.clone(), recipe.names.clone());
        Ok(ModulesRecipe { source, archive, directory, names, patches: self.patches.clone() })
    }

    /// The disk from the cache, or made now. The cache key covers the recipe, the locks, the modules, the programs and
    /// everything in the build root.
    ///
    /// # Errors
    /// [`DiskError`]; nothing is kept then.
    pub(crate) fn build(
        &self,
        shop: &Shop<'_>,
        modules: &Modules,
        programs: &[(Program, PathBuf)],
    ) -> Result<Disk, DiskError> {
        let key = self.key(shop, modules, programs)?;
        let entry = shop.sources.cache.entry("disks", &key, shop.progress, |directory| {
            shop.progress.step("make the verified disk");
            let contents = self.contents(shop, modules, programs)?;
            let salt = Sha256Digest::of(format!("{SALT}\n{key}\n").as_bytes());
            let (root_hash, data_blocks) = make(shop, &contents, &salt, directory)?;
            let description = RootDisk { root_hash, salt, data_blocks, entries: contents.entries() };
            let path = directory.join(DESCRIPTION);
            let text = serde_json::to_vec(&description).map_err(|e| FileError::at(&path, e.into()))?;
            Ok::<(), DiskError>(files::write_whole(&path, &text)?)
        })?;
        let path = entry.file(DESCRIPTION);
        let text = files::read_capped(&path, MAX_DESCRIPTION)?;
        let description = serde_json::from_slice(&text).map_err(|e| FileError::at(&path, e.into()))?;
        Ok(Disk { file: entry.file(FILE), description })
    }

    fn key(
        &self,
        shop: &Shop<'_>,
        modules: &Modules,
        programs: &[(Program, PathBuf)],
    ) -> Result<Sha256Digest, DiskError> {
        let mut lines =
            vec![RECIPE_VERSION.to_owned(), format!("root {}", shop.root.digest()), format!("recipe {}", self.sha256)];
        lines.extend(self.sets.iter().map(|set| format!("packages {}", set.content())));
        lines.extend([format!("modules {}", modules.sha256), format!("epoch {}", shop.source_date_epoch)]);
        for (program, file) in programs {
            lines.push(format!("program {} {}", program.path, files::sha256_file(file)?.1));
        }
        Ok(Sha256Digest::of(lines.join("\n").as_bytes()))
    }

    /// Takes the files out of their packages and puts modules and programs beside them.
    fn contents(
        &self,
        shop: &Shop<'_>,
        modules: &Modules,
        programs: &[(Program, PathBuf)],
    ) -> Result<Contents, DiskError> {
        let mut contents = Contents::new();
        for lock in self.sets.iter().flat_map(NamedSet::locks) {
            let package = &lock.lock.package;
            let wanted: Vec<_> = self.files.iter().filter(|file| file.package == *package).collect();
            if wanted.is_empty() {
                continue;
            }
            let input = fetch::fetch_input(&lock, shop.sources, shop.progress)?;
            let names: Vec<&str> = wanted.iter().map(|file| file.from.as_str()).collect();
            let mut found = unpack::debian_files(&input, &names, MAX_FILE)?;
            for file in wanted {
                let bytes = found.remove(&file.from).unwrap_or_default();
                contents.add(&file.path, file.executable, Origin::Package(package.clone()), bytes)?;
            }
        }
        for (name, file) in &modules.files {
            let bytes = files::read_capped(file, MAX_FILE)?;
            let origin = Origin::Module(self.modules.package.clone());
            contents.add(&format!("{MODULES}/{name}.ko"), false, origin, bytes)?;
        }
        let order: String = self.modules.names.iter().map(|name| format!("{name}.ko\n")).collect();
        contents.add(&format!("{MODULES}/{ORDER}"), false, Origin::Build, order.into_bytes())?;
        for (program, file) in programs {
            let bytes = files::read_capped(file, MAX_FILE)?;
            contents.add(&program.path, true, Origin::Program(program.package.clone()), bytes)?;
        }
        contents.check()?;
        Ok(contents)
    }

    /// The lock of one of its packages; [`DiskRecipe::read`] has seen that it is there.
    fn lock(&self, package: &str) -> Result<crate::locks::NamedLock, DiskError> {
        let names = || self.sets.iter().map(|set| set.name.as_str()).collect::<Vec<_>>().join(", ");
        let missing = || RecipeError::NoPackage { package: package.to_owned(), set: names() };
        Ok(self.sets.iter().find_map(|set| set.lock(package)).ok_or_else(missing)?)
    }

    /// The sets that its files come from.
    pub(crate) fn sets(&self) -> &[NamedSet] {
        &self.sets
    }
}

/// Writes file system and hash tree into `directory`; returns the root's hash and the number of the file system's blocks.
fn make(
    shop: &Shop<'_>,
    contents: &Contents,
    salt: &Sha256Digest,
    directory: &Path,
) -> Result<(Sha256Digest, u64), DiskError> {
    let room = shop.root.room(shop.sources, shop.progress)?.lend(directory, PLACE);
    let archive = directory.join(ARCHIVE);
    contents.archive(&archive, shop.source_date_epoch)?;
    Tool::inside(&room, "mkfs.erofs")
        .directory(Path::new(PLACE))
        .args(["--quiet", "--tar=f", "--all-root", "-x-1", "-Enoinline_data", "-b4096", "-U", UUID])
        .arg(format!("-T{}", shop.source_date_epoch))
        .args([FILE, ARCHIVE])
        .output()?;
    std::fs::remove_file(&archive).map_err(|e| FileError::at(&archive, e))?;
    let data_blocks = pad(&directory.join(FILE))?;
    let said = Tool::inside(&room, "veritysetup")
        .directory(Path::new(PLACE))
        .args(["format", "--no-superblock", "--format=1", "--hash=sha256"])
        .args([format!("--data-block-size={BLOCK}"), format!("--hash-block-size={BLOCK}")])
        .args([format!("--data-blocks={data_blocks}"), format!("--hash-offset={}", data_blocks * BLOCK)])
        .args([format!("--salt={salt}"), FILE.to_owned(), FILE.to_owned()])
        .output()?;
    let root_hash = said.lines().find_map(|line| line.strip_prefix("Root hash:")?.trim().parse().ok());
    let root_hash = root_hash.ok_or(DiskError::Said { tool: "veritysetup", what: "the root hash" })?;
    Ok((root_hash, data_blocks))
}

/// Extends a file to whole blocks; returns their number.
fn pad(path: &Path) -> Result<u64, FileError> {
    let at = |e| FileError::at(path, e);
    let file = File::options().write(true).open(path).map_err(at)?;
    let blocks = file.metadata().map_err(at)?.len().div_ceil(BLOCK);
    file.set_len(blocks * BLOCK).map_err(at)?;
    Ok(blocks)
}

/// Where the tools find the directory that they work in.
const PLACE: &str = "/target";
/// File system and hash tree.
const FILE: &str = "rootfs";
const DESCRIPTION: &str = "disk.json";
const ARCHIVE: &str = "contents.tar";
const MODULES: &str = "/lib/modules";
/// Beside the modules: their names in load order, one a line.
const ORDER: &str = "order";
const BLOCK: u64 = 4096;
/// The file system's own number says nothing: its bytes are what counts.
const UUID: &str = "00000000-0000-0000-0000-000000000001";
const SALT: &str = "chrysalis/disk-salt/v1";
const MAX_FILE: u64 = 512 << 20;
const MAX_DESCRIPTION: u64 = 4 << 20;
/// Changes when this file builds another way.
const RECIPE_VERSION: &str = "disk/1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_padded_to_whole_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for (length, blocks) in [(1, 1), (4096, 1), (4097, 2)] {
            std::fs::write(&path, vec![7; length]).unwrap();
            assert_eq!(pad(&path).unwrap(), blocks);
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes.len() as u64, blocks * BLOCK);
            assert!(bytes[length..].iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn the_word_of_the_command_line_names_hash_salt_and_size() {
        let (root_hash, salt) = (Sha256Digest::of(b"r"), Sha256Digest::of(b"s"));
        let description = RootDisk { root_hash, salt, data_blocks: 7, entries: Vec::new() };
        let word = Disk { file: PathBuf::new(), description }.word();
        assert_eq!(word, format!("chrysalis.root={root_hash}:{salt}:7"));
    }
}
