// SPDX-License-Identifier: Apache-2.0
//! Compiles the guest's programs in the build root, for one processor level: static, but for those that stand on the verified
//! disk beside the libraries that they load.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use types::Sha256Digest;

use crate::build_root::RootError;
use crate::cache::CacheError;
use crate::command::{Tool, ToolError};
use crate::crates::{self, CratesError};
use crate::elf;
use crate::files::{self, FileError};
use crate::profile::{Compile, Program};
use crate::room::{Mount, Room};
use crate::rust::{self, RustError};
use crate::shop::Shop;
use crate::workspace::WorkspaceError;

/// Why the guest's programs were not built.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A source file changed while it was being compiled, so nobody knows what was built.
    #[error("the sources changed while the guest's programs were being compiled")]
    SourcesChanged,
    /// A program needs a dynamic linker, which the guest does not have.
    #[error("program {program} is not a static executable: {reason}")]
    NotStatic {
        /// The package.
        program: String,
        /// What the file shows.
        reason: &'static str,
    },
    /// A program for the verified disk is no program that its loader could start.
    #[error("program {program} cannot be loaded: {reason}")]
    NotLoadable {
        /// The package.
        program: String,
        /// What the file shows.
        reason: &'static str,
    },
    /// The source tree could not be used.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// There is no build root.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The Rust toolchain is not the locked one.
    #[error(transparent)]
    Rust(#[from] RustError),
    /// The Rust packages could not be had.
    #[error(transparent)]
    Crates(#[from] CratesError),
    /// The compiler failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<FileError> for RuntimeError {
    fn from(error: FileError) -> Self {
        Self::Cache(error.into())
    }
}

/// The compiled programs.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Each program and the file it was compiled to.
    pub programs: Vec<(Program, PathBuf)>,
    /// Digest of the sources they come from.
    pub sources: Sha256Digest,
    /// Versions of the locked compilers.
    pub toolchain: String,
    /// What is linked into the programs: cargo's list, for the bill of materials.
    pub dependencies: String,
}

/// The programs from the cache, or compiled now. The cache key covers the sources, `Cargo.lock`, flags, the build root and
/// the Rust toolchain. Sources that change meanwhile are compiled again, a few times.
///
/// # Errors
/// [`RuntimeError`]; nothing is kept then.
pub(crate) fn build(
    shop: &Shop<'_>,
    compile: &Compile,
    linking: Linking,
    special: Option<&Special>,
    programs: &[Program],
) -> Result<Runtime, RuntimeError> {
    let mut settings = Settings::new(compile, linking, shop.source_date_epoch);
    if let Some(special) = special {
        settings.apply(special);
    }
    let mut attempts = 1..ATTEMPTS;
    loop {
        match build_once(shop, &settings, programs) {
            Err(RuntimeError::SourcesChanged) if attempts.next().is_some() => {
                shop.progress.step("the sources changed meanwhile: compile again");
            }
            other => return other,
        }
    }
}

/// Cargo as for the guest's programs, so that their lints and tests share what was compiled for the image.
/// `arguments` are cargo's own, a subcommand first; target and profile are added behind it. The test model stands at
/// [`TEST_MODEL`].
///
/// # Errors
/// [`RuntimeError`].
pub(crate) fn cargo(
    shop: &Shop<'_>,
    compile: &Compile,
    arguments: &[String],
    model: &Path,
) -> Result<GuestCargo, RuntimeError> {
    let settings = Settings::new(compile, Linking::Static, shop.source_date_epoch);
    let room = rust::show_unchecked(shop.workspace, settings.room(shop)?, &["clippy-preview".to_owned()])?;
    let room = match on_path("cargo-nextest") {
        Some(nextest) => room.show(&nextest, Path::new(rust::PLACE).join("bin/cargo-nextest")),
        None => room,
    };
    let room = room.mount(Mount::Scratch { to: "/model".into() }).show(model, TEST_MODEL);
    let words = arguments.iter().take_while(|argument| !argument.starts_with('-')).count();
    let (subcommand, rest) = arguments.split_at_checked(words).unwrap_or((arguments, &[]));
    let tool = settings.cargo(&room, shop.jobs).env("CHRYSALIS_TEST_MODEL", TEST_MODEL);
    let tool = tool.args(subcommand).args(["--release", "--locked", "--target", TARGET]);
    let built = settings.target(shop)?.join(TARGET).join("release");
    Ok(GuestCargo { command: tool.args(rest).command()?, built })
}

/// Cargo as for the guest's programs.
#[derive(Debug)]
pub struct GuestCargo {
    /// Not started yet.
    pub command: Command,
    /// Where the programs stand that it compiles. They are static: they run outside of the build root, too.
    pub built: PathBuf,
}

fn build_once(shop: &Shop<'_>, settings: &Settings, programs: &[Program]) -> Result<Runtime, RuntimeError> {
    let packages: Vec<&str> = programs.iter().map(|p| p.package.as_str()).collect();
    let sources = shop.workspace.source_digest(&packages)?;
    let root = shop.root.digest().to_string();
    let rust = shop.rust.lock.sha256.to_string();
    let key = key(&[&sources.to_string(), &settings.described(), &root, &rust, &packages.join(" ")]);
    let entry = shop.sources.cache.entry("programs", &key, shop.progress, |directory| {
        shop.progress.step(&format!("compile {}", packages.join(", ")));
        let room = settings.room(shop)?;
        settings.compile(&room, shop, &packages)?;
        let target = settings.target(shop)?;
        programs.iter().try_for_each(|program| settings.linking.keep(&target, program.binary(), directory))?;
        let listed = settings.dependencies(&room, shop.jobs, &packages)?;
        files::write_whole(&directory.join(DEPENDENCIES), listed.as_bytes())?;
        let unchanged = shop.workspace.source_digest(&packages)? == sources;
        if unchanged { Ok(()) } else { Err(RuntimeError::SourcesChanged) }
    })?;
    let programs = programs.iter().map(|p| (p.clone(), entry.file(p.binary()))).collect();
    let toolchain = format!("rust {}; {}", shop.rust.lock.channel, shop.root.versions(&COMPILERS));
    let dependencies = files::read_capped(&entry.file(DEPENDENCIES), MAX_LIST)?;
    let dependencies = String::from_utf8_lossy(&dependencies).into_owned();
    Ok(Runtime { programs, sources, toolchain, dependencies })
}

/// How programs find what they are linked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Linking {
    /// It is in the program.
    Static,
    /// A loader brings it: for programs that load libraries which nobody has as source.
    Dynamic,
}

impl Linking {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Static => &["-Ctarget-feature=+crt-static", "-Crelocation-model=static"],
            Self::Dynamic => &["-Ctarget-feature=-crt-static", "-Crelocation-model=pic"],
        }
    }

    /// Copies a compiled program into its cache entry when it is linked so.
    fn keep(self, target: &Path, name: &str, directory: &Path) -> Result<(), RuntimeError> {
        let bytes = files::read_capped(&target.join(TARGET).join("release").join(name), MAX_PROGRAM)?;
        let program = || name.to_owned();
        match self {
            Self::Static => {
                elf::check_static(&bytes).map_err(|reason| RuntimeError::NotStatic { program: program(), reason })?;
            }
            Self::Dynamic => {
                elf::needs(&bytes).map_err(|reason| RuntimeError::NotLoadable { program: program(), reason })?;
            }
        }
        Ok(files::write_whole(&directory.join(name), &bytes)?)
    }
}

/// How a program is compiled that wants more than the others.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Special {
    /// The set of packages that stands over the build root for it.
    pub(crate) tools: String,
    /// Cargo features of its package.
    pub(crate) features: Vec<String>,
    /// Shared libraries that it is linked with beside those that its packages name.
    pub(crate) libraries: Vec<String>,
    /// Variables of the compilation.
    pub(crate) variables: BTreeMap<String, String>,
}

/// Flags and variables of a build.
struct Settings {
    processor: String,
    linking: Linking,
    /// Cargo features of the programs' packages.
    features: Vec<String>,
    flags: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Settings {
    fn new(compile: &Compile, linking: Linking, source_date_epoch: u64) -> Self {
        let mut flags: Vec<String> = linking.flags().iter().map(|flag| (*flag).to_owned()).collect();
        flags.push(format!("-Ctarget-cpu={}", compile.target_cpu));
        flags.push("-Clink-arg=-Wl,--build-id=none".to_owned());
        // Randomness comes from the system call or not at all. A static program finds no function to call, and the crate
        // would open /dev/random instead, which the guest's programs may not.
        flags.push(r#"--cfg=getrandom_backend="linux_getrandom""#.to_owned());
        let mut variables = vec![
            ("SOURCE_DATE_EPOCH".to_owned(), source_date_epoch.to_string()),
            ("CARGO_INCREMENTAL".to_owned(), "0".to_owned()),
            ("CARGO_HOME".to_owned(), crates::HOME.to_owned()),
            ("CARGO_TARGET_DIR".to_owned(), TARGET_PLACE.to_owned()),
            ("LIBCLANG_PATH".to_owned(), LIBCLANG.to_owned()),
        ];
        for (name, on) in &compile.ggml {
            variables.push((format!("GGML_{name}"), if *on { "ON" } else { "OFF" }.to_owned()));
        }
        Self { processor: compile.target_cpu.clone(), linking, features: Vec::new(), flags, variables }
    }

    fn apply(&mut self, special: &Special) {
        self.features.clone_from(&special.features);
        self.flags.extend(special.libraries.iter().map(|library| format!("-Clink-arg=-l{library}")));
        self.variables.extend(special.variables.iter().map(|(name, value)| (name.clone(), value.clone())));
    }

    /// What of the settings shapes the result.
    fn described(&self) -> String {
        let plain = format!("{RECIPE_VERSION} {:?} {:?}", self.flags, self.variables);
        if self.features.is_empty() { plain } else { format!("{plain} {:?}", self.features) }
    }

    /// Cargo's words for the features.
    fn feature_words(&self) -> Vec<String> {
        if self.features.is_empty() { Vec::new() } else { vec!["--features".to_owned(), self.features.join(",")] }
    }

    /// Cargo's own directory between builds. Cargo judges by times and paths, and every tree has the same path in the room:
    /// so each tree of this machine, build root and toolchain has its own.
    fn target(&self, shop: &Shop<'_>) -> Result<PathBuf, RuntimeError> {
        let tree = shop.workspace.root().to_string_lossy();
        let key = key(&[&tree, &shop.root.digest().to_string(), &shop.rust.lock.sha256.to_string()]).to_string();
        let short = key.get(..16).unwrap_or(&key);
        let linking = match self.linking {
            Linking::Static => String::new(),
            Linking::Dynamic if self.features.is_empty() => "dynamic-".to_owned(),
            // Cargo does not see that variables changed which a package's own build reads.
            Linking::Dynamic => {
                format!("{}-{:.8}-", self.features.join("-"), Sha256Digest::of(self.described().as_bytes()).to_string())
            }
        };
        Ok(shop.sources.cache.work(&format!("cargo-{}-{linking}{short}", self.processor))?)
    }

    /// The build root with the toolchain, the Rust packages, the source and cargo's own directory.
    fn room(&self, shop: &Shop<'_>) -> Result<Room, RuntimeError> {
        let Shop { workspace, sources, progress, .. } = *shop;
        let room = shop.root.room(sources, progress)?;
        let room = crates::show(workspace, shop.rust.show(workspace, room)?, sources, progress)?;
        Ok(room.show(workspace.root(), SOURCE_PLACE).lend(&self.target(shop)?, TARGET_PLACE))
    }

    /// Programs compiled together share features of their dependencies. Those of [`ALONE`] are compiled by themselves, so
    /// that linting and testing one of them finds the very same dependencies compiled.
    fn compile(&self, room: &Room, shop: &Shop<'_>, packages: &[&str]) -> Result<(), RuntimeError> {
        let (alone, together): (Vec<&str>, Vec<&str>) = packages.iter().partition(|package| ALONE.contains(package));
        let groups = alone.into_iter().map(|package| vec![package]).chain([together]);
        for group in groups.filter(|group| !group.is_empty()) {
            let mut tool = self.cargo(room, shop.jobs);
            tool = tool.args(["build", "--release", "--locked", "--target", TARGET]);
            for package in group {
                tool = tool.args(["--package", package]);
            }
            let tool = tool.args(self.feature_words());
            tool.run("programs: packages compiled", shop.progress)?;
        }
        Ok(())
    }

    /// What cargo says is linked into the programs: `name version|licence` lines, packages often more than once.
    fn dependencies(&self, room: &Room, jobs: usize, packages: &[&str]) -> Result<String, RuntimeError> {
        let mut tool = self.cargo(room, jobs).args(["tree", "--locked", "--target", TARGET, "--edges", "normal"]);
        tool = tool.args(["--prefix", "none", "--format", "{p}|{l}"]);
        for package in packages {
            tool = tool.args(["--package", package]);
        }
        Ok(tool.args(self.feature_words()).output()?)
    }

    /// Cargo with everything that shapes the guest's programs.
    fn cargo(&self, room: &Room, jobs: usize) -> Tool {
        let tool = Tool::inside(room, "cargo")
            .directory(Path::new(SOURCE_PLACE))
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags.join("\x1f"))
            .env("CARGO_BUILD_JOBS", jobs.to_string());
        self.variables.iter().fold(tool, |tool, (name, value)| tool.env(name, value))
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

fn key(parts: &[&str]) -> Sha256Digest {
    let lines: String = parts.iter().map(|p| format!("{}\n", Sha256Digest::of(p.as_bytes()))).collect();
    Sha256Digest::of(lines.as_bytes())
}

/// Where the test model stands for tests of the engine.
const TEST_MODEL: &str = "/model/model.gguf";
/// Where a build finds the source tree.
const SOURCE_PLACE: &str = "/chrysalis";
/// Where a build writes.
const TARGET_PLACE: &str = "/target";
const LIBCLANG: &str = "/usr/lib/x86_64-linux-gnu";
/// Packages of the build root whose versions shape the programs.
const COMPILERS: [&str; 4] = ["gcc-14", "binutils", "libc6-dev", "cmake"];
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Compilations before giving up on sources that keep changing.
const ATTEMPTS: u32 = 3;
/// Beside the programs in their cache entry. No package has a dot in its name.
const DEPENDENCIES: &str = "dependencies.txt";
const MAX_LIST: u64 = 4 << 20;
const MAX_PROGRAM: u64 = 256 << 20;
/// Changes when this file builds another way.
const RECIPE_VERSION: &str = "programs/3";
/// Programs whose dependencies take minutes to compile.
const ALONE: &[&str] = &["engine"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_parts_apart() {
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["a"]), key(&["a", ""]));
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
    }
    #[test]
    fn linking_shapes_the_programs_and_only_theirs() {
        let compile = Compile { target_cpu: "x86-64-v2".into(), ggml: [("AVX".to_owned(), false)].into() };
        let described = |linking| Settings::new(&compile, linking, 1).described();
        assert_ne!(described(Linking::Static), described(Linking::Dynamic));
        // What this says is in the cache's keys: see that it stays as long as the programs do.
        let flags = r#"["-Ctarget-feature=+crt-static", "-Crelocation-model=static", "-Ctarget-cpu=x86-64-v2", "-Clink-arg=-Wl,--build-id=none", "--cfg=getrandom_backend=\"linux_getrandom\""]"#;
        assert!(described(Linking::Static).starts_with(&format!("programs/3 {flags} ")));
    }

    #[test]
    fn special_settings_shape_a_program_and_no_other() {
        let compile = Compile { target_cpu: "x86-64-v2".into(), ggml: BTreeMap::new() };
        let plain = || Settings::new(&compile, Linking::Dynamic, 1);
        assert!(plain().feature_words().is_empty());
        let special = |change: fn(&mut Special)| {
            let variables = [("CMAKE_CUDA_ARCHITECTURES".to_owned(), "90-real".to_owned())].into();
            let (features, libraries) = (vec!["cuda".to_owned()], vec!["cublas".to_owned()]);
            let mut special = Special { tools: "t".into(), features, libraries, variables };
            change(&mut special);
            let mut settings = plain();
            settings.apply(&special);
            settings
        };
        let settings = special(|_| {});
        assert_eq!(settings.feature_words(), ["--features", "cuda"]);
        assert!(settings.flags.contains(&"-Clink-arg=-lcublas".to_owned()));
        let mut seen = vec![plain().described(), settings.described()];
        for change in [
            (|special: &mut Special| special.features.push("x".into())) as fn(&mut Special),
            |special| special.libraries.clear(),
            |special| drop(special.variables.insert("CMAKE_CUDA_ARCHITECTURES".into(), "90".into())),
        ] {
            let described = special(change).described();
            assert!(!seen.contains(&described), "{described}");
            seen.push(described);
        }
    }

    #[test]
    fn programs_are_kept_when_they_are_linked_as_wanted() {
        let (target, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let release = target.path().join(TARGET).join("release");
        std::fs::create_dir_all(&release).unwrap();
        std::fs::write(release.join("d"), elf::tests::dynamic("/lib64/ld.so", &["libc.so.6"], None)).unwrap();
        std::fs::write(release.join("r"), elf::tests::dynamic("/lib64/ld.so", &["libc.so.6"], Some(29))).unwrap();
        Linking::Dynamic.keep(target.path(), "d", out.path()).unwrap();
        let error = Linking::Static.keep(target.path(), "d", out.path()).unwrap_err();
        assert!(matches!(error, RuntimeError::NotStatic { .. }), "{error}");
        let error = Linking::Dynamic.keep(target.path(), "r", out.path()).unwrap_err();
        assert!(matches!(error, RuntimeError::NotLoadable { .. }), "{error}");
        assert!(!out.path().join("r").exists());
    }
}
