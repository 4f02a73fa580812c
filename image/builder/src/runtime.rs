// SPDX-License-Identifier: Apache-2.0
//! Compiles the guest's programs: static, for one processor level, without paths of this machine in them.

use std::path::{Path, PathBuf};
use std::process::Command;

use types::Sha256Digest;

use crate::cache::{Cache, CacheError};
use crate::command::{Tool, ToolError};
use crate::elf;
use crate::files::{self, FileError};
use crate::profile::{Compile, Program};
use crate::progress::Progress;
use crate::workspace::{Workspace, WorkspaceError};

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
    /// The source tree could not be used.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// The compiler is missing or failed.
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
    /// Versions of the compilers.
    pub toolchain: String,
}

/// The programs from the cache, or compiled now. The cache key covers the sources, `Cargo.lock`, flags and compilers.
/// Sources that change meanwhile are compiled again, a few times.
///
/// # Errors
/// [`RuntimeError`]; nothing is kept then.
pub(crate) fn build(
    workspace: &Workspace,
    compile: &Compile,
    programs: &[Program],
    cache: &Cache,
    source_date_epoch: u64,
    progress: &dyn Progress,
) -> Result<Runtime, RuntimeError> {
    let target = cache.work(&format!("cargo-{}", compile.target_cpu))?;
    let settings = Settings::new(workspace, compile, &target, source_date_epoch)?;
    let toolchain = toolchain(workspace)?;
    let mut attempts = 1..ATTEMPTS;
    loop {
        match build_once(workspace, &settings, programs, cache, &toolchain, progress) {
            Err(RuntimeError::SourcesChanged) if attempts.next().is_some() => {
                progress.step("the sources changed meanwhile: compile again");
            }
            other => return other,
        }
    }
}

/// Cargo as for the guest's programs, so that their lints and tests share what was compiled for the image.
/// `arguments` are cargo's own, a subcommand first; target and profile are added behind it. It is returned unstarted.
///
/// # Errors
/// [`RuntimeError`].
pub(crate) fn cargo(
    workspace: &Workspace,
    compile: &Compile,
    cache: &Cache,
    source_date_epoch: u64,
    arguments: &[String],
) -> Result<Command, RuntimeError> {
    let target = cache.work(&format!("cargo-{}", compile.target_cpu))?;
    let settings = Settings::new(workspace, compile, &target, source_date_epoch)?;
    let words = arguments.iter().take_while(|argument| !argument.starts_with('-')).count();
    let (subcommand, rest) = arguments.split_at_checked(words).unwrap_or((arguments, &[]));
    let tool = settings.cargo(workspace).args(subcommand).args(["--release", "--locked", "--target", TARGET]);
    Ok(tool.args(rest).command())
}

fn build_once(
    workspace: &Workspace,
    settings: &Settings,
    programs: &[Program],
    cache: &Cache,
    toolchain: &str,
    progress: &dyn Progress,
) -> Result<Runtime, RuntimeError> {
    let packages: Vec<&str> = programs.iter().map(|p| p.package.as_str()).collect();
    let sources = workspace.source_digest(&packages)?;
    let key = key(&[&sources.to_string(), &settings.described(), toolchain, &packages.join(" ")]);
    let entry = cache.entry("programs", &key, progress, |directory| {
        progress.step(&format!("compile {}", packages.join(", ")));
        settings.compile(workspace, &packages, progress)?;
        packages.iter().try_for_each(|name| keep_static(&settings.target, name, directory))?;
        let unchanged = workspace.source_digest(&packages)? == sources;
        if unchanged { Ok(()) } else { Err(RuntimeError::SourcesChanged) }
    })?;
    let programs = programs.iter().map(|p| (p.clone(), entry.file(&p.package))).collect();
    Ok(Runtime { programs, sources, toolchain: toolchain.to_owned() })
}

/// Flags and variables of a build. Paths of this machine appear only to be mapped away.
struct Settings {
    flags: Vec<String>,
    maps: Vec<(PathBuf, &'static str)>,
    variables: Vec<(String, String)>,
    target: PathBuf,
}

impl Settings {
    fn new(
        workspace: &Workspace,
        compile: &Compile,
        target: &Path,
        source_date_epoch: u64,
    ) -> Result<Self, RuntimeError> {
        let sysroot = workspace.rust_tool("rustc").args(["--print", "sysroot"]).directory(workspace.root()).output()?;
        let maps = vec![
            (workspace.root().to_owned(), "/chrysalis"),
            (cargo_home(), "/cargo"),
            (PathBuf::from(sysroot.trim()), "/rust"),
            (target.to_owned(), "/target"),
        ];
        let flags = [
            "-Ctarget-feature=+crt-static".to_owned(),
            "-Crelocation-model=static".to_owned(),
            format!("-Ctarget-cpu={}", compile.target_cpu),
            "-Clink-arg=-Wl,--build-id=none".to_owned(),
        ];
        let mut variables = vec![
            ("SOURCE_DATE_EPOCH".to_owned(), source_date_epoch.to_string()),
            ("CARGO_INCREMENTAL".to_owned(), "0".to_owned()),
            ("TZ".to_owned(), "UTC".to_owned()),
        ];
        for (name, on) in &compile.ggml {
            variables.push((format!("GGML_{name}"), if *on { "ON" } else { "OFF" }.to_owned()));
        }
        Ok(Self { flags: flags.to_vec(), maps, variables, target: target.to_owned() })
    }

    /// What of the settings shapes the result.
    fn described(&self) -> String {
        let places: Vec<_> = self.maps.iter().map(|(_, to)| *to).collect();
        format!("{RECIPE_VERSION} {:?} {places:?} {:?}", self.flags, self.variables)
    }

    /// Programs compiled together share features of their dependencies. Those of [`ALONE`] are compiled by themselves, so
    /// that linting and testing one of them finds the very same dependencies compiled.
    fn compile(&self, workspace: &Workspace, packages: &[&str], progress: &dyn Progress) -> Result<(), RuntimeError> {
        let (alone, together): (Vec<&str>, Vec<&str>) = packages.iter().partition(|package| ALONE.contains(package));
        let groups = alone.into_iter().map(|package| vec![package]).chain([together]);
        for group in groups.filter(|group| !group.is_empty()) {
            let mut tool = self.cargo(workspace).args(["build", "--release", "--locked", "--target", TARGET]);
            for package in group {
                tool = tool.args(["--package", package]);
            }
            tool.run("programs: packages compiled", progress)?;
        }
        Ok(())
    }

    /// Cargo with everything that shapes the guest's programs.
    fn cargo(&self, workspace: &Workspace) -> Tool {
        let rust_map = |(from, to): &(PathBuf, &str)| format!("--remap-path-prefix={}={to}", from.display());
        let c_map = |(from, to): &(PathBuf, &str)| format!("-ffile-prefix-map={}={to}", from.display());
        let flags: Vec<String> = self.flags.iter().cloned().chain(self.maps.iter().map(rust_map)).collect();
        let c_flags: Vec<String> = self.maps.iter().map(c_map).collect();
        let tool = workspace
            .rust_tool("cargo")
            .directory(workspace.root())
            .env("CARGO_TARGET_DIR", &self.target)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env("CFLAGS", c_flags.join(" "))
            .env("CXXFLAGS", c_flags.join(" "));
        self.variables.iter().fold(tool, |tool, (name, value)| tool.env(name, value))
    }
}

fn keep_static(target: &Path, name: &str, directory: &Path) -> Result<(), RuntimeError> {
    let bytes = files::read_capped(&target.join(TARGET).join("release").join(name), MAX_PROGRAM)?;
    elf::check_static(&bytes).map_err(|reason| RuntimeError::NotStatic { program: name.to_owned(), reason })?;
    Ok(files::write_whole(&directory.join(name), &bytes)?)
}

/// The compilers that shape the programs.
fn toolchain(workspace: &Workspace) -> Result<String, RuntimeError> {
    let mut said = workspace.rustc_version()?.trim().replace('\n', "; ");
    for (tool, fix) in [
        ("cc", "install the Debian package build-essential"),
        ("c++", "install the Debian package build-essential"),
        ("ld", "install the Debian package binutils"),
        ("cmake", "install the Debian package cmake"),
    ] {
        let version = Tool::new(tool, fix).env("LC_ALL", "C").arg("--version").output()?;
        said.push_str("; ");
        said.push_str(version.lines().next().unwrap_or_default());
    }
    Ok(said)
}

fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

fn key(parts: &[&str]) -> Sha256Digest {
    let lines: String = parts.iter().map(|p| format!("{}\n", Sha256Digest::of(p.as_bytes()))).collect();
    Sha256Digest::of(lines.as_bytes())
}

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Compilations before giving up on sources that keep changing.
const ATTEMPTS: u32 = 3;
const MAX_PROGRAM: u64 = 256 << 20;
/// Changes when this file builds another way.
const RECIPE_VERSION: &str = "programs/2";
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
}
