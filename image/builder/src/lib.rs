// SPDX-License-Identifier: Apache-2.0
//! Builds guest images reproducibly from locked inputs.
//!
//! An image is four files and their description: TDX firmware, kernel, initial RAM disk and command line; profiles for GPUs
//! have a verified disk besides. Everything in it is either taken out of a package pinned by digest (`image/locks`) or compiled from source that is pinned or part of
//! this repository. Nothing is copied from the machine that builds.. Everything is compiled
//! in the build root: a tree unpacked from locked Debian packages, with the locked Rust toolchain, without network.
//!
//! What this does **not** establish: that the locked compilers are honest, or that the machine that builds is.

mod audit;
mod build_root;
mod cache;
mod command;
mod compression;
mod crates;
mod disk;
mod elf;
mod erofs;
mod explain;
mod fetch;
mod files;
mod host_tool;
mod image;
mod inputs;
mod kernel;
mod lock_update;
mod locks;
mod model;
mod modules;
mod newc;
mod profile;
mod progress;
mod registers;
mod room;
mod runtime;
mod rust;
mod sbom;
mod shop;
mod tree;
mod unpack;
mod workspace;

pub use audit::{Audit, AuditError, FileAudit, InputAudit, Place, Published, audit};
pub use build_root::RootError;
pub use cache::{Cache, CacheError, Entry, EntryFile};
pub use command::ToolError;
pub use crates::{CratesError, LockedCrate, read_cargo_lock};
pub use disk::{ContentsError, DiskError, RecipeError};
pub use explain::Explain;
pub use fetch::{FetchError, Input, Sources, fetch_input};
pub use files::{FileDigest, FileError};
pub use host_tool::{HostToolError, PackagedTool, host_tool_packaged, host_tool_vsock, packaged_tools};
pub use image::{
    BuildError, BuildOptions, Image, ImageManifest, ManifestFile, ManifestInput, RootDisk, RootEntry, RootNode, SCHEMA,
    SOURCE_DATE_EPOCH, ToolVersions, build, default_sources, guest_cargo,
};
pub use inputs::{
    ARCHIVE_SCHEMA, ArchiveIndex, ArchivedInput, CARGO_LOCK, Inputs, InputsError, export_inputs, import_inputs,
    kind_name, tool_of,
};
pub use kernel::{Difference, Fragment, Kernel, KernelError, Recipe, RequirementError};
pub use lock_update::{Change, UpdateError, Updated, update_locks};
pub use locks::{
    Kind, Linked, Lock, LockError, LockedPackage, Member, NamedLock, NamedSet, Only, PackageSet, TreeLink, TreeText,
    read_all, read_sets,
};
pub use model::{Model, ModelError, fetch_model, fetch_model_directory};
pub use modules::ModulesError;
pub use newc::{Archive, NewcError};
pub use profile::{Compile, Device, Link, Profile, ProfileError, Program};
pub use progress::{Console, Progress, Silent, Unit};
pub use registers::{PREDICTED, PredictedMachine, PredictedRegisters};
pub use room::{EnterError, Stage, enter};
pub use runtime::{GuestCargo, Runtime, RuntimeError};
pub use rust::{NamedRust, RustError, RustLock};
pub use sbom::SbomError;
pub use tree::TreeDigest;
pub use unpack::UnpackError;
pub use workspace::{Workspace, WorkspaceError};
