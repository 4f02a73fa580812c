// SPDX-License-Identifier: Apache-2.0
//! What shall stand on a verified disk: one TOML file each, in `image/roots`, additive as profiles are.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use types::Sha256Digest;

use crate::files::{self, FileError};
use crate::locks::{LockError, NamedSet};
use crate::profile::Program;
use crate::runtime::Special;

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
    /// A root says where the kernel's modules come from, or which other root it stands over: one of both.
    #[error("root {0} must have either modules or, in `over`, a root that has them")]
    Base(String),
}

/// What shall stand on a disk.
#[derive(Debug, Clone)]
pub(crate) struct DiskRecipe {
    /// The locked packages: the base's first.
    pub(super) sets: Vec<NamedSet>,
    /// The kernel's modules.
    pub(super) modules: ModulesSource,
    /// Files of packages.
    pub(super) files: Vec<PackagedFile>,
    /// Patches to the modules' source, in order: name and text.
    pub(super) patches: Vec<(String, Vec<u8>)>,
    /// Programs of this repository.
    pub(crate) programs: Vec<DiskProgram>,
    /// Digest of the files that state this.
    pub(super) sha256: Sha256Digest,
}

/// A program of this repository on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskProgram {
    package: String,
    #[serde(default)]
    binary: Option<String>,
    path: String,
    /// How it is compiled, where that differs from all others.
    #[serde(default)]
    pub(crate) special: Option<Special>,
}

impl DiskProgram {
    /// The program and its place.
    pub(crate) fn program(&self) -> Program {
        Program { package: self.package.clone(), binary: self.binary.clone(), path: self.path.clone() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    set: String,
    /// Another root, all of which stands on this one, too.
    #[serde(default)]
    over: Option<String>,
    #[serde(default)]
    modules: Option<ModulesSource>,
    #[serde(rename = "file")]
    files: Vec<PackagedFile>,
    #[serde(default, rename = "program")]
    programs: Vec<DiskProgram>,
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
        Self::read_from(roots, locks, name, true)
    }

    /// There is one level: what another root stands over has the modules.
    fn read_from(roots: &Path, locks: &Path, name: &str, may_stand_over: bool) -> Result<Self, RecipeError> {
        plain(name)?;
        let path = roots.join(format!("{name}.toml"));
        let bytes = files::read_capped(&path, MAX_TEXT)?;
        let text: Text = toml::from_str(&String::from_utf8_lossy(&bytes))
            .map_err(|source| RecipeError::Syntax { path, source: Box::new(source) })?;
        plain(&text.set)?;
        let set = NamedSet::read(&locks.join(format!("{}.toml", text.set)))?;
        check(&text, &set)?;
        let Text { modules, over, files, programs, .. } = text;
        let (sets, sha256) = (vec![set], Sha256Digest::of(&bytes));
        match (modules, over) {
            (Some(modules), None) => {
                let text = |file: &String| files::read_capped(&roots.join(name).join(file), MAX_TEXT);
                let patch = |file: &String| Ok((file.clone(), text(file)?));
                let patches = modules.patches.iter().map(patch).collect::<Result<_, FileError>>()?;
                Ok(Self { sets, modules, files, patches, programs, sha256 })
            }
            (None, Some(base)) if may_stand_over => {
                let mut recipe = Self::read_from(roots, locks, &base, false)?;
                recipe.sets.extend(sets);
                recipe.files.extend(files);
                recipe.programs.extend(programs);
                recipe.sha256 = Sha256Digest::of(format!("{}\n{sha256}\n", recipe.sha256).as_bytes());
                Ok(recipe)
            }
            _ => Err(RecipeError::Base(name.to_owned())),
        }
    }
}

/// Every package is known and used; names are plain.
fn check(text: &Text, set: &NamedSet) -> Result<(), RecipeError> {
    let Text { modules, files, programs, .. } = text;
    let source = modules.iter().map(|modules| &modules.package);
    let used: Vec<&String> = files.iter().map(|file| &file.package).chain(source).collect();
    if let Some(package) = used.iter().find(|package| set.version(package).is_none()) {
        return Err(RecipeError::NoPackage { package: (*package).clone(), set: set.name.clone() });
    }
    if let Some(unused) = set.set.packages.iter().find(|locked| !used.contains(&&locked.package)) {
        return Err(RecipeError::Unused { package: unused.package.clone(), set: set.name.clone() });
    }
    let modules =
        modules.iter().flat_map(|modules| modules.names.iter().chain(&modules.patches).chain([&modules.directory]));
    let special = programs.iter().filter_map(|program| program.special.as_ref());
    let special = special.flat_map(|special| special.features.iter().chain(&special.libraries).chain([&special.tools]));
    modules.chain(special).try_for_each(|name| plain(name))
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
        let stated = |recipe: &DiskRecipe| {
            recipe.sets.iter().flat_map(NamedSet::locks).all(|lock| lock.lock.licence != "NOASSERTION")
        };
        assert!(stated(&recipe));
        let more = DiskRecipe::read(&image("roots"), &image("locks"), "cuda").unwrap();
        assert!(stated(&more));
        let names = |recipe: &DiskRecipe| recipe.sets.iter().map(|set| set.name.clone()).collect::<Vec<_>>();
        assert_eq!((names(&recipe), names(&more)), (vec!["nvidia".into()], vec!["nvidia".into(), "cuda".into()]));
        assert_eq!((more.modules.names.len(), more.files.len()), (2, recipe.files.len() + 2));
        assert_ne!(more.sha256, recipe.sha256);
        let engine = more.programs.iter().find(|program| program.package == "engine").unwrap();
        let special = engine.special.as_ref().unwrap();
        assert_eq!((special.tools.as_str(), special.features.join(" ").as_str()), ("cuda-tools", "cuda"));
        // Machine code for Hopper and no PTX: the driver compiles nothing in the guest.
        assert_eq!(special.variables["CMAKE_CUDA_ARCHITECTURES"], "90-real");
        assert!(recipe.programs.iter().all(|program| program.special.is_none()));
    }

    #[test]
    fn a_root_stands_over_one_that_has_the_modules() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["nvidia.toml", "cuda.toml", "nvidia"] {
            std::os::unix::fs::symlink(image("roots").canonicalize().unwrap().join(name), dir.path().join(name))
                .unwrap();
        }
        let text = std::fs::read_to_string(image("roots").join("cuda.toml")).unwrap();
        let read = |text: &str| {
            std::fs::write(dir.path().join("x.toml"), text).unwrap();
            DiskRecipe::read(dir.path(), &image("locks"), "x")
        };
        read(&text).unwrap();
        for base in ["cuda", "x"] {
            let error = read(&text.replace("over = \"nvidia\"", &format!("over = \"{base}\""))).unwrap_err();
            assert!(matches!(error, RecipeError::Base(_)), "{base}: {error}");
        }
        assert!(matches!(read(&text.replace("over = \"nvidia\"", "")), Err(RecipeError::Base(name)) if name == "x"));
        let error = read(&text.replace("libraries = [\"cublas\"]", "libraries = [\"a b\"]")).unwrap_err();
        assert!(matches!(error, RecipeError::Name(_)), "{error}");
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
