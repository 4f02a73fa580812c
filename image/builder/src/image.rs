// SPDX-License-Identifier: Apache-2.0
//! Puts an image together: firmware, kernel, initial RAM disk, command line, and the description of it all.

mod manifest;

use std::path::{Path, PathBuf};
use std::process::Command;

use types::Sha256Digest;

pub use self::manifest::{ImageManifest, ManifestFile, ManifestInput, RootEntry, RootNode, SCHEMA, ToolVersions};
use crate::build_root::{BuildRoot, RootError};
use crate::cache::{Cache, CacheError};
use crate::compression;
use crate::crates::{self, CratesError};
use crate::fetch::{self, FetchError, Input, Sources};
use crate::files::{self, FileDigest, FileError};
use crate::kernel::{Kernel, KernelError, Recipe};
use crate::locks::{LockError, NamedLock};
use crate::model::{self, ModelError};
use crate::newc::{Archive, NewcError};
use crate::profile::{Profile, ProfileError};
use crate::progress::Progress;
use crate::runtime::{self, Runtime, RuntimeError};
use crate::rust::NamedRust;
use crate::sbom::{self, SbomError};
use crate::shop::Shop;
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
    /// There is no build root.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The model for tests could not be had.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The kernel was not built.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The programs were not built.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// `Cargo.lock` was refused.
    #[error(transparent)]
    Crates(#[from] CratesError),
    /// The bill of materials could not be written.
    #[error(transparent)]
    Sbom(#[from] SbomError),
    /// The initial RAM disk could not be written.
    #[error(transparent)]
    Newc(#[from] NewcError),
    /// Compressing the initial RAM disk failed.
    #[error("the initial RAM disk cannot be compressed")]
    Compression(#[source] std::io::Error),
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
    /// Compilations at a time; `None` stands for the number of processors. It shapes nothing.
    pub jobs: Option<usize>,
}

/// A built image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Holds `firmware.fd`, `vmlinuz`, `initrd`, `cmdline`, the bills of materials and `image.json`.
    pub directory: PathBuf,
    /// What `image.json` says.
    pub manifest: ImageManifest,
}

/// Builds one image. Parts that did not change come from the cache. The output directory has `image.json` only when all
/// other files are complete.
///
/// # Errors
/// [`BuildError`] naming the step's reason.
pub fn build(options: &BuildOptions, progress: &dyn Progress) -> Result<Image, BuildError> {
    let workspace = &options.workspace;
    let profile = Profile::read(&workspace.image("profiles"), &options.profile)?;
    let firmware_input = input(workspace, "ovmf", &options.sources, progress)?;
    let source = input(workspace, "linux-source", &options.sources, progress)?;
    let firmware = firmware(&firmware_input)?;
    let (root, rust) = means(workspace)?;
    let inputs = [
        manifest_input(&firmware_input.lock),
        manifest_input(&source.lock),
        ManifestInput {
            name: root.set().name.clone(),
            package: format!("{} packages", root.set().set.packages.len()),
            version: root.set().set.suite.clone(),
            sha256: root.set().content(),
            lock_sha256: root.set().lock_sha256,
        },
        ManifestInput {
            name: "rust".to_owned(),
            package: "rust".to_owned(),
            version: rust.lock.channel.clone(),
            sha256: rust.lock.sha256,
            lock_sha256: rust.lock_sha256,
        },
    ];
    let shop = Shop {
        workspace,
        root: &root,
        rust: &rust,
        sources: &options.sources,
        source_date_epoch: SOURCE_DATE_EPOCH,
        jobs: options.jobs.unwrap_or_else(processors),
        progress,
    };
    let source_lock = source.lock.lock.clone();
    let kernel = Recipe::read(&workspace.image("kernel"), &profile.kernel, source)?.build(&shop)?;
    let runtime = runtime::build(&shop, &profile.compile, &profile.programs)?;
    progress.step("put the image together");
    let (initrd, entries) = initrd(&profile, &runtime)?;
    let parts = Parts { profile: &profile, firmware, kernel: &kernel, initrd, root: entries, runtime: &runtime };
    let manifest = parts.write(&options.out, &inputs)?;
    let origins = sbom::Origins {
        manifest: &manifest,
        firmware: &firmware_input.lock.lock,
        kernel: &source_lock,
        root: root.set(),
        rust: &rust.lock,
        crates: &crates::read_cargo_lock(workspace)?,
        dependencies: &runtime.dependencies,
    };
    describe(&options.out, &manifest, &sbom::bill(&origins)?)?;
    Ok(Image { directory: options.out.clone(), manifest })
}

/// Writes the bills of materials, then `image.json`: the image is finished.
fn describe(out: &Path, manifest: &ImageManifest, bill: &sbom::Bill) -> Result<(), BuildError> {
    let documents = [
        ("sbom.spdx.json", serde_json::to_vec_pretty(&sbom::to_spdx(bill))),
        ("sbom.cdx.json", serde_json::to_vec_pretty(&sbom::to_cyclonedx(bill))),
        (DESCRIPTION, serde_json::to_vec_pretty(manifest)),
    ];
    for (name, text) in documents {
        let path = out.join(name);
        files::write_whole(&path, &text.map_err(|e| FileError::at(&path, e.into()))?)?;
    }
    Ok(())
}

/// Cargo with what shapes the guest's programs in a profile, unstarted: for lints and tests of the programs that are too
/// dear to compile twice. `CHRYSALIS_TEST_MODEL` names the demonstration model for tests that want one.
///
/// # Errors
/// [`BuildError`].
pub fn guest_cargo(
    workspace: &Workspace,
    profile: &str,
    arguments: &[String],
    sources: &Sources,
    progress: &dyn Progress,
) -> Result<Command, BuildError> {
    let profile = Profile::read(&workspace.image("profiles"), profile)?;
    let model = model::fetch_model(&workspace.image("locks").join("model-smollm2.toml"), sources, progress)?;
    let (root, rust) = means(workspace)?;
    let (source_date_epoch, jobs) = (SOURCE_DATE_EPOCH, processors());
    let shop = Shop { workspace, root: &root, rust: &rust, sources, source_date_epoch, jobs, progress };
    Ok(runtime::cargo(&shop, &profile.compile, arguments, &model.weights)?)
}

/// Build root and toolchain, as locked.
fn means(workspace: &Workspace) -> Result<(BuildRoot, NamedRust), BuildError> {
    let locks = workspace.image("locks");
    Ok((BuildRoot::read(&locks)?, NamedRust::read(&locks)?))
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
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
    /// Writes the image's files; the description is removed first.
    fn write(self, out: &Path, inputs: &[ManifestInput]) -> Result<ImageManifest, BuildError> {
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
        Ok(ImageManifest {
            schema: SCHEMA.to_owned(),
            profile: self.profile.name.clone(),
            command_line: self.profile.command_line.clone(),
            source_date_epoch: SOURCE_DATE_EPOCH,
            files: listed,
            initrd: self.root,
            inputs: inputs.to_vec(),
            toolchain: ToolVersions {
                kernel: self.kernel.compiler.clone(),
                programs: self.runtime.toolchain.clone(),
                sources: self.runtime.sources,
            },
        })
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

/// The compressed archive and the list of what is in it.
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
    let bytes = compression::compress(&archive.to_bytes()?).map_err(BuildError::Compression)?;
    Ok((bytes, root))
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
        let runtime =
            Runtime { programs, sources: Sha256Digest::ZERO, toolchain: "t".into(), dependencies: String::new() };
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
            let directory = dir.path().join(out);
            let manifest = parts.write(&directory, &[]).unwrap();
            describe(&directory, &manifest, &sbom::tests::example()).unwrap();
            Image { directory, manifest }
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
