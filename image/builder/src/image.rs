// SPDX-License-Identifier: Apache-2.0
//! Puts an image together: firmware, kernel, initial RAM disk, command line, and the description of it all.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use types::{Sha256Digest, Sha384Digest};

use crate::cache::{Cache, CacheError};
use crate::fetch::{self, FetchError, Input, Sources};
use crate::files::{self, FileDigest, FileError};
use crate::kernel::{Kernel, KernelError, Recipe};
use crate::locks::{LockError, NamedLock};
use crate::newc::{Archive, NewcError};
use crate::profile::{Profile, ProfileError};
use crate::progress::Progress;
use crate::runtime::{self, Runtime, RuntimeError};
use crate::unpack::{self, UnpackError};
use crate::workspace::{Workspace, WorkspaceError};

/// Why no image was built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The source tree could not be used.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// The profile was refused.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A lock was refused.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// An input could not be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A package does not hold what its lock states.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The kernel was not built.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The programs were not built.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The initial RAM disk could not be written.
    #[error(transparent)]
    Newc(#[from] NewcError),
    /// The cache or the output failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<FileError> for BuildError {
    fn from(error: FileError) -> Self {
        Self::Cache(error.into())
    }
}

/// What to build, from what, and where to.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The source tree.
    pub workspace: Workspace,
    /// The profile's name.
    pub profile: String,
    /// The directory for the result; created. What an earlier build wrote there is replaced.
    pub out: PathBuf,
    /// Where inputs come from, and the cache.
    pub sources: Sources,
}

/// A built image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Holds `firmware.fd`, `vmlinuz`, `initrd`, `cmdline` and `image.json`.
    pub directory: PathBuf,
    /// What `image.json` says.
    pub manifest: ImageManifest,
}

/// `image.json`: what an image consists of and where each part comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageManifest {
    /// [`SCHEMA`].
    pub schema: String,
    /// The profile.
    pub profile: String,
    /// The kernel's command line, as in `cmdline`.
    pub command_line: String,
    /// The one date that the build knows, seconds since 1970; the guest's floor for the time.
    pub source_date_epoch: u64,
    /// The image's files.
    pub files: Vec<ManifestFile>,
    /// Everything inside the initial RAM disk.
    pub initrd: Vec<RootEntry>,
    /// The locked inputs that entered.
    pub inputs: Vec<ManifestInput>,
    /// What compiled it and is not locked yet.
    pub toolchain: ToolVersions,
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// File name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the bytes.
    pub sha256: Sha256Digest,
    /// SHA-384 of the bytes. A TDX event's digest of the same file can differ (Authenticode for the kernel).
    pub sha384: Sha384Digest,
    /// Where it comes from, in words.
    pub origin: String,
}

/// A path inside the initial RAM disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootEntry {
    /// Absolute path.
    pub path: String,
    /// Permissions, octal.
    pub mode: String,
    /// What stands there.
    pub node: RootNode,
}

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RootNode {
    /// An empty directory.
    Directory,
    /// A character device.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A program of this repository.
    Program {
        /// Its package.
        package: String,
        /// Bytes.
        size: u64,
        /// SHA-256 of the bytes.
        sha256: Sha256Digest,
    },
}

/// A locked input of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestInput {
    /// Lock name.
    pub name: String,
    /// Package.
    pub package: String,
    /// Version.
    pub version: String,
    /// SHA-256 of the fetched file.
    pub sha256: Sha256Digest,
    /// SHA-256 of the lock file.
    pub lock_sha256: Sha256Digest,
}

/// Compilers of this machine that shaped the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolVersions {
    /// Of the kernel.
    pub kernel: String,
    /// Of the programs.
    pub programs: String,
    /// Digest over the sources of the programs.
    pub sources: Sha256Digest,
}

/// Builds one image. Parts that did not change come from the cache. The output directory has `image.json` only when all
/// other files are complete.
///
/// # Errors
/// [`BuildError`] naming the step's reason.
pub fn build(options: &BuildOptions, progress: &dyn Progress) -> Result<Image, BuildError> {
    let workspace = &options.workspace;
    let profile = Profile::read(&workspace.image("profiles"), &options.profile)?;
    let cache = &options.sources.cache;
    let firmware_input = input(workspace, "ovmf", &options.sources, progress)?;
    let source = input(workspace, "linux-source", &options.sources, progress)?;
    let firmware = firmware(&firmware_input)?;
    let recipe = Recipe::read(&workspace.image("kernel"), &profile.kernel, source.clone())?;
    let kernel = recipe.build(cache, SOURCE_DATE_EPOCH, progress)?;
    let programs = &profile.programs;
    let runtime = runtime::build(workspace, &profile.compile, programs, cache, SOURCE_DATE_EPOCH, progress)?;
    progress.step("put the image together");
    let (initrd, root) = initrd(&profile, &runtime)?;
    let parts = Parts { profile: &profile, firmware, kernel: &kernel, initrd, root, runtime: &runtime };
    parts.write(&options.out, &[firmware_input, source])
}

/// Cargo with what shapes the guest's programs in a profile, unstarted: for lints and tests of the programs that are too
/// dear to compile twice.
///
/// # Errors
/// [`BuildError`].
pub fn guest_cargo(
    workspace: &Workspace,
    profile: &str,
    arguments: &[String],
    sources: &Sources,
) -> Result<Command, BuildError> {
    let profile = Profile::read(&workspace.image("profiles"), profile)?;
    Ok(runtime::cargo(workspace, &profile.compile, &sources.cache, SOURCE_DATE_EPOCH, arguments)?)
}

/// The cache that an environment names, with the sources of its inputs.
///
/// # Errors
/// [`CacheError`].
pub fn default_sources(mirror: Option<String>) -> Result<Sources, CacheError> {
    Ok(Sources::new(Cache::from_environment()?, mirror))
}

struct Parts<'a> {
    profile: &'a Profile,
    firmware: Vec<u8>,
    kernel: &'a Kernel,
    initrd: Vec<u8>,
    root: Vec<RootEntry>,
    runtime: &'a Runtime,
}

impl Parts<'_> {
    fn write(self, out: &Path, inputs: &[Input]) -> Result<Image, BuildError> {
        files::create_directories(out)?;
        let description = out.join(DESCRIPTION);
        match std::fs::remove_file(&description) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(FileError::at(&description, e).into()),
            _ => {}
        }
        let vmlinuz = files::read_capped(&self.kernel.image, MAX_KERNEL)?;
        let contents = [
            ("firmware.fd", self.firmware, "OVMF.fd of the locked package ovmf"),
            ("vmlinuz", vmlinuz, "compiled from the locked package linux-source"),
            ("initrd", self.initrd, "this repository's programs"),
            ("cmdline", self.profile.command_line.clone().into_bytes(), "this repository's profile"),
        ];
        let mut listed = Vec::new();
        for (name, bytes, origin) in &contents {
            files::write_whole(&out.join(name), bytes)?;
            let FileDigest { size, sha256, sha384 } = FileDigest::of(bytes);
            listed.push(ManifestFile { name: (*name).to_owned(), size, sha256, sha384, origin: (*origin).to_owned() });
        }
        let manifest = ImageManifest {
            schema: SCHEMA.to_owned(),
            profile: self.profile.name.clone(),
            command_line: self.profile.command_line.clone(),
            source_date_epoch: SOURCE_DATE_EPOCH,
            files: listed,
            initrd: self.root,
            inputs: inputs.iter().map(|i| manifest_input(&i.lock)).collect(),
            toolchain: ToolVersions {
                kernel: self.kernel.compiler.clone(),
                programs: self.runtime.toolchain.clone(),
                sources: self.runtime.sources,
            },
        };
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| FileError::at(&description, e.into()))?;
        files::write_whole(&description, &text)?;
        Ok(Image { directory: out.to_owned(), manifest })
    }
}

fn input(workspace: &Workspace, name: &str, sources: &Sources, progress: &dyn Progress) -> Result<Input, BuildError> {
    let lock = NamedLock::read(&workspace.image("locks").join(format!("{name}.toml")))?;
    Ok(fetch::fetch_input(&lock, sources, progress)?)
}

fn firmware(input: &Input) -> Result<Vec<u8>, BuildError> {
    let member = input.lock.member(FIRMWARE).ok_or_else(|| LockError::Field {
        path: PathBuf::from("ovmf.toml"),
        field: "member",
        rule: "one must be OVMF.fd",
    })?;
    Ok(unpack::debian_member(input, member)?)
}

/// The archive and the list of what is in it.
fn initrd(profile: &Profile, runtime: &Runtime) -> Result<(Vec<u8>, Vec<RootEntry>), BuildError> {
    let mut archive = Archive::new();
    let mut root = Vec::new();
    let mut list = |path: &str, mode: u32, node| {
        root.push(RootEntry { path: path.to_owned(), mode: format!("{mode:04o}"), node });
    };
    for path in &profile.directories {
        archive.directory(path)?;
        list(path, 0o755, RootNode::Directory);
    }
    for device in &profile.devices {
        let mode = device.permissions().unwrap_or_default();
        archive.char_device(&device.path, mode, device.major, device.minor)?;
        list(&device.path, mode, RootNode::Device { major: device.major, minor: device.minor });
    }
    for (program, file) in &runtime.programs {
        let bytes = files::read_capped(file, MAX_PROGRAM)?;
        let (package, size, sha256) = (program.package.clone(), bytes.len() as u64, Sha256Digest::of(&bytes));
        archive.file(&program.path, 0o755, bytes)?;
        list(&program.path, 0o755, RootNode::Program { package, size, sha256 });
    }
    Ok((archive.to_bytes()?, root))
}

fn manifest_input(lock: &NamedLock) -> ManifestInput {
    ManifestInput {
        name: lock.name.clone(),
        package: lock.lock.package.clone(),
        version: lock.lock.version.clone(),
        sha256: lock.lock.sha256,
        lock_sha256: lock.lock_sha256,
    }
}

/// The format of `image.json`.
pub const SCHEMA: &str = "chrysalis/image/v1";
/// 2026-01-01T00:00:00Z.
pub const SOURCE_DATE_EPOCH: u64 = 1_767_225_600;
const DESCRIPTION: &str = "image.json";
const FIRMWARE: &str = "OVMF.fd";
const MAX_KERNEL: u64 = 64 << 20;
const MAX_PROGRAM: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::profile::Program;

    fn parts(dir: &Path, mode: u32) -> (Profile, Runtime, Kernel) {
        let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiles");
        let profile = Profile::read(&profiles, "debug").unwrap();
        let program = |p: &Program| {
            let file = dir.join(&p.package);
            std::fs::write(&file, &p.package).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            (p.clone(), file)
        };
        let programs = profile.programs.iter().map(program).collect();
        let runtime = Runtime { programs, sources: Sha256Digest::ZERO, toolchain: "t".into() };
        let image = dir.join("bzImage");
        std::fs::write(&image, "kernel").unwrap();
        (profile, runtime, Kernel { config: image.clone(), image, compiler: "c".into() })
    }

    #[test]
    fn an_image_is_described_completely_and_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let write = |out: &str, mode| {
            let (profile, runtime, kernel) = parts(dir.path(), mode);
            let (initrd, root) = initrd(&profile, &runtime).unwrap();
            let firmware = b"firmware".to_vec();
            let parts = Parts { profile: &profile, firmware, kernel: &kernel, initrd, root, runtime: &runtime };
            parts.write(&dir.path().join(out), &[]).unwrap()
        };
        let (a, b) = (write("a", 0o644), write("b", 0o700));
        for file in &a.manifest.files {
            let bytes = std::fs::read(a.directory.join(&file.name)).unwrap();
            assert_eq!((file.size, file.sha256), (bytes.len() as u64, Sha256Digest::of(&bytes)));
            assert_eq!(bytes, std::fs::read(b.directory.join(&file.name)).unwrap());
        }
        let text = std::fs::read(a.directory.join(DESCRIPTION)).unwrap();
        assert_eq!(serde_json::from_slice::<ImageManifest>(&text).unwrap(), a.manifest);
        assert_eq!(text, std::fs::read(b.directory.join(DESCRIPTION)).unwrap());
        assert_eq!(a.manifest.files.len(), 4);
        assert!(!std::fs::read(a.directory.join("cmdline")).unwrap().ends_with(b"\n"));
        let paths: Vec<_> = a.manifest.initrd.iter().map(|e| e.path.as_str()).collect();
        assert!(paths.contains(&"/init") && paths.contains(&"/bin/attester") && paths.contains(&"/dev/console"));
    }

    #[test]
    fn a_failed_build_leaves_no_description() {
        let dir = tempfile::tempdir().unwrap();
        let (profile, runtime, mut kernel) = parts(dir.path(), 0o644);
        let out = dir.path().join("out");
        std::fs::create_dir(&out).unwrap();
        std::fs::write(out.join(DESCRIPTION), "old").unwrap();
        kernel.image = dir.path().join("missing");
        let parts = Parts {
            profile: &profile,
            firmware: vec![],
            kernel: &kernel,
            initrd: vec![],
            root: vec![],
            runtime: &runtime,
        };
        assert!(parts.write(&out, &[]).is_err());
        assert!(!out.join(DESCRIPTION).exists());
    }
}
