// SPDX-License-Identifier: Apache-2.0
//! What shall stand on a verified disk: one TOML file each, in `image/roots`, additive as profiles are.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use types::Sha256Digest;

use crate::files::{self, FileError};
use crate::locks::{LockError, NamedSet};
use crate::profile::Program;

/// Why the description of a disk was refused.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The lock of its packages was refused.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The file is not TOML of the expected shape.
    #[error("root {path}: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A package that no lock of the set names.
    #[error("package {package} is not in the lock {set}")]
    NoPackage {
        /// The package.
        package: String,
        /// The set.
        set: String,
    },
    /// A package of the set from which nothing is taken.
    #[error("nothing is taken from package {package} of the lock {set}")]
    Unused {
        /// The package.
        package: String,
        /// The set.
        set: String,
    },
    /// A name that is not plain: it becomes part of a path and a command.
    #[error("name {0:?} must be letters, digits and .+-_")]
    Name(String),
}

/// What shall stand on a disk.
#[derive(Debug, Clone)]
pub(crate) struct DiskRecipe {
    /// The locked packages.
    pub(super) set: NamedSet,
    /// The kernel's modules.
    pub(super) modules: ModulesSource,
    /// Files of packages.
    pub(super) files: Vec<PackagedFile>,
    /// Patches to the modules' source, in order: name and text.
    pub(super) patches: Vec<(String, Vec<u8>)>,
    /// Programs of this repository.
    pub(crate) programs: Vec<Program>,
    /// Digest of the file that states this.
    pub(super) sha256: Sha256Digest,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    set: String,
    modules: ModulesSource,
    #[serde(rename = "file")]
    files: Vec<PackagedFile>,
    #[serde(default, rename = "program")]
    programs: Vec<Program>,
}

/// Where modules come from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModulesSource {
    pub(super) package: String,
    pub(super) archive: String,
    pub(super) directory: String,
    /// In load order.
    pub(super) names: Vec<String>,
    /// Files of the directory that has this file's name.
    #[serde(default)]
    pub(super) patches: Vec<String>,
}

/// A file of a package and its place.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PackagedFile {
    pub(super) package: String,
    pub(super) from: String,
    pub(super) path: String,
    #[serde(default)]
    pub(super) executable: bool,
}

impl DiskRecipe {
    /// Reads the description `name` from `roots` and its lock from `locks`.
    ///
    /// # Errors
    /// [`RecipeError`].
    pub(crate) fn read(roots: &Path, locks: &Path, name: &str) -> Result<Self, RecipeError> {
        plain(name)?;
        let path = roots.join(format!("{name}.toml"));
        let bytes = files::read_capped(&path, MAX_TEXT)?;
        let text: Text = toml::from_str(&String::from_utf8_lossy(&bytes))
            .map_err(|source| RecipeError::Syntax { path, source: Box::new(source) })?;
        plain(&text.set)?;
        let set = NamedSet::read(&locks.join(format!("{}.toml", text.set)))?;
        check(&text, &set)?;
        let Text { modules, files, programs, .. } = text;
        let patch = |file: &String| Ok((file.clone(), files::read_capped(&roots.join(name).join(file), MAX_TEXT)?));
        let patches = modules.patches.iter().map(patch).collect::<Result<_, FileError>>()?;
        Ok(Self { set, modules, files, patches, programs, sha256: Sha256Digest::of(&bytes) })
    }
}

/// Every package is known and used; names are plain.
fn check(text: &Text, set: &NamedSet) -> Result<(), RecipeError> {
    let Text { modules, files, .. } = text;
    let used: Vec<&String> = files.iter().map(|file| &file.package).chain([&modules.package]).collect();
    if let Some(package) = used.iter().find(|package| set.version(package).is_none()) {
        return Err(RecipeError::NoPackage { package: (*package).clone(), set: set.name.clone() });
    }
    if let Some(unused) = set.set.packages.iter().find(|locked| !used.contains(&&locked.package)) {
        return Err(RecipeError::Unused { package: unused.package.clone(), set: set.name.clone() });
    }
    modules.names.iter().chain(&modules.patches).chain([&modules.directory]).try_for_each(|name| plain(name))
}

fn plain(name: &str) -> Result<(), RecipeError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b".+-_".contains(&b);
    if !name.is_empty() && !name.starts_with(['-', '.']) && name.bytes().all(good) {
        return Ok(());
    }
    Err(RecipeError::Name(name.to_owned()))
}

const MAX_TEXT: u64 = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
    }

    fn read(change: impl Fn(String) -> String) -> Result<DiskRecipe, RecipeError> {
        let dir = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(image("roots").join("nvidia.toml")).unwrap();
        std::fs::write(dir.path().join("nvidia.toml"), change(text)).unwrap();
        std::os::unix::fs::symlink(image("roots").canonicalize().unwrap().join("nvidia"), dir.path().join("nvidia"))
            .unwrap();
        DiskRecipe::read(dir.path(), &image("locks"), "nvidia")
    }

    #[test]
    fn the_repository_root_is_good() {
        let recipe = read(|text| text).unwrap();
        assert_eq!(recipe.modules.names, ["nvidia", "nvidia-uvm"]);
        assert!(recipe.patches.iter().all(|(_, text)| text.starts_with(b"SPDX-License-Identifier: MIT\n")));
        assert!(recipe.set.locks().iter().all(|lock| lock.lock.licence != "NOASSERTION"));
    }

    #[test]
    fn bad_roots_are_named() {
        let replaced = |from: &str, to: &str| {
            read(|text| {
                assert!(text.contains(from), "{from}");
                text.replace(from, to)
            })
            .unwrap_err()
        };
        let error = replaced("package = \"libcuda1\"", "package = \"libcuda2\"");
        assert!(matches!(error, RecipeError::NoPackage { package, .. } if package == "libcuda2"));
        let error = replaced("package = \"libcuda1\"", "package = \"libc6\"");
        assert!(matches!(error, RecipeError::Unused { package, .. } if package == "libcuda1"));
        assert!(matches!(replaced("\"nvidia-uvm\"]", "\"../uvm\"]"), RecipeError::Name(_)));
        assert!(matches!(replaced("0001-resize", "0009-resize"), RecipeError::File(_)));
        assert!(matches!(replaced("set = \"nvidia\"", "set = \"../x\""), RecipeError::Name(_)));
        assert!(matches!(replaced("set = ", "shell = true\nset = "), RecipeError::Syntax { .. }));
        assert!(matches!(replaced("executable = true", "mode = 4755"), RecipeError::Syntax { .. }));
    }
}
