// SPDX-License-Identifier: Apache-2.0
//! Tools of the host that its own packages do not carry: compiled from locked source, or taken out of locked packages.

mod packaged;

use std::path::PathBuf;

use types::Sha256Digest;

use crate::cache::CacheError;
use crate::command::{Tool, ToolError};
use crate::fetch::{self, FetchError, Sources};
use crate::files::{self, FileError};
use crate::locks::{LockError, NamedLock};
use crate::progress::Progress;
use crate::unpack::UnpackError;
use crate::workspace::{Workspace, WorkspaceError};

pub(crate) use packaged::tool_locks;
pub use packaged::{PackagedTool, host_tool_packaged, packaged_tools};

/// Why a host tool could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HostToolError {
    /// The lock was refused.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The source could not be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A tool is missing or failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The source tree could not be used.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// There is no such tool.
    #[error("there is no host tool {name:?}")]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// A package does not hold the locked files.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

impl From<FileError> for HostToolError {
    fn from(error: FileError) -> Self {
        Self::Cache(error.into())
    }
}

/// The program `vhost-device-vsock`: serves a guest's vsock device from unix sockets, without the kernel's vhost-vsock.
/// It runs on the untrusted host and is part of no image.
///
/// # Errors
/// [`HostToolError`]; nothing is kept then.
pub fn host_tool_vsock(
    workspace: &Workspace,
    sources: &Sources,
    progress: &dyn Progress,
) -> Result<PathBuf, HostToolError> {
    let lock = NamedLock::read(&workspace.image("locks").join("vhost-device-vsock.toml"))?;
    let rustc = workspace.rustc_version()?;
    let key = Sha256Digest::of(format!("tool/1\n{}\n{rustc}", lock.lock.sha256).as_bytes());
    let entry = sources.cache.entry("tools", &key, progress, |directory| {
        let input = fetch::fetch_input(&lock, sources, progress)?;
        progress.step(&format!("compile {} {}", lock.lock.package, lock.lock.version));
        Tool::new("tar", "install the Debian package tar")
            .args(["--extract", "--gzip", "--no-same-owner", "--file"])
            .arg(&input.path)
            .directory(directory)
            .output()?;
        let tree = directory.join(format!("{}-{}", lock.lock.package, lock.lock.version));
        workspace
            .rust_tool("cargo")
            .args(["build", "--release", "--locked"])
            .env("CARGO_TARGET_DIR", tree.join("target"))
            .directory(&tree)
            .run("host tool: packages compiled", progress)?;
        let (from, to) = (tree.join("target/release").join(&lock.lock.package), directory.join(&lock.lock.package));
        std::fs::copy(&from, &to).map_err(|e| FileError::at(&to, e))?;
        Ok::<(), HostToolError>(files::remove_tree(&tree)?)
    })?;
    Ok(entry.file(&lock.lock.package))
}
