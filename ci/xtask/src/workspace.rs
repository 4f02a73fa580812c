// SPDX-License-Identifier: Apache-2.0
//! Where things are.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Root of the repository.
pub(crate) fn root() -> anyhow::Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .map(Path::to_owned)
        .context("the repository has moved since this program was built: build it again")
}

/// Cache of fetched and built things, outside of the repository; its entries are named by the digest of their inputs.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("CHRYSALIS_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|path| path.join("chrysalis")))
        .or_else(|| variable("HOME").map(|path| path.join(".cache/chrysalis")))
        .context("set CHRYSALIS_CACHE: neither it nor XDG_CACHE_HOME nor HOME is set")
}

/// Directory of cargo's own output.
pub(crate) fn target() -> anyhow::Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(path) => Ok(root()?.join(path)),
        None => Ok(root()?.join("target")),
    }
}
