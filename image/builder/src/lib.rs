// SPDX-License-Identifier: Apache-2.0
//! Builds guest images reproducibly from locked inputs.
//!
//! An image is four files and their description: TDX firmware, kernel, initial RAM disk and command line. Everything in
//! it is either taken out of a package pinned by digest (`image/locks`) or compiled from source that is pinned or part of
//! this repository. Nothing is copied from the machine that builds.
//!
//! What this does **not** establish yet: the C compiler, linker and system C library of the building machine are recorded
//! in `image.json`, not pinned; two machines with other versions of them build other bytes.

mod cache;
mod command;
mod elf;
mod explain;
mod fetch;
mod files;
mod host_tool;
mod image;
mod kernel;
mod locks;
mod model;
mod newc;
mod profile;
mod progress;
mod runtime;
mod unpack;
mod workspace;

pub use cache::{Cache, CacheError, Entry, EntryFile};
pub use command::ToolError;
pub use explain::Explain;
pub use fetch::{FetchError, Input, Sources, fetch_input};
pub use files::{FileDigest, FileError};
pub use host_tool::{HostToolError, PackagedTool, host_tool_packaged, host_tool_vsock, packaged_tools};
pub use image::{
    BuildError, BuildOptions, Image, ImageManifest, ManifestFile, ManifestInput, RootEntry, RootNode, SCHEMA,
    SOURCE_DATE_EPOCH, ToolVersions, build, default_sources, guest_cargo,
};
pub use kernel::{Difference, Fragment, Kernel, KernelError, Recipe};
pub use locks::{Kind, Lock, LockError, Member, NamedLock, read_all};
pub use model::{Model, ModelError, fetch_model};
pub use newc::{Archive, NewcError};
pub use profile::{Compile, Device, Profile, ProfileError, Program};
pub use progress::{Console, Progress, Silent, Unit};
pub use runtime::{Runtime, RuntimeError};
pub use unpack::UnpackError;
pub use workspace::{Workspace, WorkspaceError};
