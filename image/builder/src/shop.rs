// SPDX-License-Identifier: Apache-2.0
//! What every compilation needs: the tree, the build root, the toolchain, and where things go.

use crate::build_root::BuildRoot;
use crate::fetch::Sources;
use crate::progress::Progress;
use crate::rust::NamedRust;
use crate::workspace::Workspace;

/// The means of a build.
pub(crate) struct Shop<'a> {
    /// The source tree.
    pub(crate) workspace: &'a Workspace,
    /// The tree that everything is compiled in.
    pub(crate) root: &'a BuildRoot,
    /// The Rust toolchain.
    pub(crate) rust: &'a NamedRust,
    /// Where inputs come from, and the cache.
    pub(crate) sources: &'a Sources,
    /// The one date that a build knows.
    pub(crate) source_date_epoch: u64,
    /// Compilations at a time. It shapes nothing.
    pub(crate) jobs: usize,
    /// Who is told.
    pub(crate) progress: &'a dyn Progress,
}
