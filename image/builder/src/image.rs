// SPDX-License-Identifier: Apache-2.0
//! Puts an image together: firmware, kernel, initial RAM disk, command line, and the description of it all.

mod manifest;
mod parts;

use std::path::PathBuf;

use types::Sha256Digest;

pub use self::manifest::{
    ImageManifest, ManifestFile, ManifestInput, RootDisk, RootEntry, RootNode, SCHEMA, ToolVersions,
};
use self::parts::Parts;
use crate::build_root::{BuildRoot, RootError};
use crate::cache::{Cache, CacheError};
use crate::crates::{self, CratesError};
use crate::disk::{Disk, DiskError, DiskProgram, DiskRecipe};
use crate::fetch::{self, FetchError, Input, Sources};
use crate::files::FileError;
use crate::kernel::{Kernel, KernelError, Recipe};
use crate::locks::{LockError, NamedLock, NamedSet};
use crate::model::{self, ModelError};
use crate::newc::NewcError;
use crate::profile::{Compile, Profile, ProfileError};
use crate::progress::Progress;
use crate::registers;
use crate::runtime::{self, GuestCargo, Linking, Runtime, RuntimeError};
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
    /// The verified disk was not made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// `Cargo.lock` was refused.
    #[error(transparent)]
    Crates(#[from] CratesError),
    /// The bill of materials could not be written.
    #[error(transparent)]
    Sbom(#[from] SbomError),
    /// The initial RAM disk could not be written.
    #[error(transparent)]
    Newc(#[from] NewcError),
    /// The image cannot be measured.
    #[error("the image's registers cannot be predicted: {0}")]
    Unmeasurable(#[from] calculator::ImageError),
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
    /// Holds `firmware.fd`, `vmlinuz`, `initrd`, `cmdline`, `rootfs` where the profile has a disk, the bills of materials and `image.json`.
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
    let shop = Shop {
        workspace,
        root: &root,
        rust: &rust,
        sources: &options.sources,
        source_date_epoch: SOURCE_DATE_EPOCH,
        jobs: options.jobs.unwrap_or_else(processors),
        progress,
    };
    let plan = DiskPlan::read(workspace, &profile, &root)?;
    // Only the kernel, its modules and the disk are made with the tools for GPUs: the programs are those of other profiles.
    let kernel_shop = Shop { root: plan.as_ref().map_or(&root, |plan| &plan.root), ..shop };
    let (firmware_lock, source_lock) = (firmware_input.lock, source.lock.clone());
    let recipe = Recipe::read(&workspace.image("kernel"), &profile.kernel, source, plan.is_some())?;
    let kernel = recipe.build(&kernel_shop)?;
    let mut runtime = runtime::build(&shop, &profile.compile, Linking::Static, None, &profile.programs)?;
    let disk = match &plan {
        Some(plan) => Some(plan.build(&shop, &kernel_shop, &profile, &kernel, &mut runtime)?),
        None => None,
    };
    progress.step("put the image together");
    let disk_sets = plan.as_ref().map_or(&[][..], |plan| plan.recipe.sets());
    let mut sets = kernel_shop.root.sets().to_vec();
    for set in plan.iter().flat_map(|plan| &plan.special).flat_map(|(_, root)| root.sets()) {
        if !sets.contains(set) {
            sets.push(set.clone());
        }
    }
    let mut inputs = vec![manifest_input(&firmware_lock), manifest_input(&source_lock)];
    inputs.extend(sets.iter().chain(disk_sets).map(set_input));
    inputs.push(rust_input(&rust));
    let parts = Parts::new(&profile, firmware, &kernel, &runtime, disk.as_ref())?;
    let manifest = parts.write(&options.out, &inputs)?;
    let origins = sbom::Origins {
        manifest: &manifest,
        firmware: &firmware_lock.lock,
        kernel: &source_lock.lock,
        tools: &sets,
        disk: disk_sets,
        rust: &rust.lock,
        crates: &crates::read_cargo_lock(workspace)?,
        dependencies: &runtime.dependencies,
    };
    registers::write(&options.out, &manifest)?;
    parts::describe(&options.out, &manifest, &sbom::bill(&origins)?)?;
    Ok(Image { directory: options.out.clone(), manifest })
}

/// How the verified disk of a profile is made.
struct DiskPlan {
    recipe: DiskRecipe,
    /// The build root with the tools for it.
    root: BuildRoot,
    /// Programs that want tools of their own, each with the build root that has them.
    special: Vec<(DiskProgram, BuildRoot)>,
}

impl DiskPlan {
    fn read(workspace: &Workspace, profile: &Profile, root: &BuildRoot) -> Result<Option<Self>, BuildError> {
        let Some(name) = &profile.disk else { return Ok(None) };
        let locks = workspace.image("locks");
        let recipe = DiskRecipe::read(&workspace.image("roots"), &locks, name).map_err(DiskError::from)?;
        let mut special = Vec::new();
        for program in &recipe.programs {
            if let Some(wanted) = &program.special {
                special.push((program.clone(), root.with(&locks, &wanted.tools)?));
            }
        }
        Ok(Some(Self { recipe, root: root.with(&locks, GPU_TOOLS)?, special }))
    }

    /// Compiles what stands on the disk, and makes it. Its programs are described with the others of `runtime`.
    fn build(
        &self,
        shop: &Shop<'_>,
        tools: &Shop<'_>,
        profile: &Profile,
        kernel: &Kernel,
        runtime: &mut Runtime,
    ) -> Result<Disk, BuildError> {
        let modules = self.recipe.modules(tools)?.build(tools, kernel).map_err(DiskError::from)?;
        let mut programs = Vec::new();
        let mut keep = |compiled: Runtime| {
            runtime.dependencies.push_str(&compiled.dependencies);
            let sources = format!("{}\n{}\n", runtime.sources, compiled.sources);
            runtime.sources = Sha256Digest::of(sources.as_bytes());
            programs.extend(compiled.programs);
        };
        let plain = self.recipe.programs.iter().filter(|program| program.special.is_none());
        let plain: Vec<_> = plain.map(DiskProgram::program).collect();
        if !plain.is_empty() {
            keep(runtime::build(shop, &profile.compile, Linking::Dynamic, None, &plain)?);
        }
        for (program, root) in &self.special {
            let shop = Shop { root, ..*shop };
            let (special, one) = (program.special.as_ref(), [program.program()]);
            keep(runtime::build(&shop, &profile.compile, Linking::Dynamic, special, &one)?);
        }
        Ok(self.recipe.build(tools, &modules, &programs)?)
    }
}

/// Cargo with what shapes the guest's programs in a profile: for lints, tests and benches of the programs that are too dear
/// to compile twice; `change` makes of the profile's settings those that are wanted. `CHRYSALIS_TEST_MODEL` names the
/// demonstration model for tests that want one.
///
/// # Errors
/// [`BuildError`].
pub fn guest_cargo(
    workspace: &Workspace,
    profile: &str,
    change: impl FnOnce(Compile) -> Compile,
    arguments: &[String],
    sources: &Sources,
    progress: &dyn Progress,
) -> Result<GuestCargo, BuildError> {
    let profile = Profile::read(&workspace.image("profiles"), profile)?;
    let model = model::fetch_model(&workspace.image("locks").join("model-smollm2.toml"), sources, progress)?;
    let (root, rust) = means(workspace)?;
    let (source_date_epoch, jobs) = (SOURCE_DATE_EPOCH, processors());
    let shop = Shop { workspace, root: &root, rust: &rust, sources, source_date_epoch, jobs, progress };
    Ok(runtime::cargo(&shop, &change(profile.compile), arguments, &model.weights)?)
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

fn manifest_input(lock: &NamedLock) -> ManifestInput {
    ManifestInput {
        name: lock.name.clone(),
        package: lock.lock.package.clone(),
        version: lock.lock.version.clone(),
        sha256: lock.lock.sha256,
        lock_sha256: lock.lock_sha256,
    }
}

fn set_input(set: &NamedSet) -> ManifestInput {
    ManifestInput {
        name: set.name.clone(),
        package: format!("{} packages", set.set.packages.len()),
        version: set.set.suite.clone(),
        sha256: set.content(),
        lock_sha256: set.lock_sha256,
    }
}

fn rust_input(rust: &NamedRust) -> ManifestInput {
    ManifestInput {
        name: "rust".to_owned(),
        package: "rust".to_owned(),
        version: rust.lock.channel.clone(),
        sha256: rust.lock.sha256,
        lock_sha256: rust.lock_sha256,
    }
}

/// 2026-01-01T00:00:00Z.
pub const SOURCE_DATE_EPOCH: u64 = 1_767_225_600;
const FIRMWARE: &str = "OVMF.fd";
const GPU_TOOLS: &str = "gpu-tools";
