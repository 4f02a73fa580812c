// SPDX-License-Identifier: Apache-2.0
//! The system calls of the guest, and all of its unsafe code.
//!
//! One module per topic. Each function does one thing and says in its error what it tried.

mod allocator;
pub mod block;
pub mod descriptors;
mod device_mapper;
pub mod entropy;
mod gpu_libraries;
pub mod kernel;
pub mod landlock;
pub mod memory;
pub mod modules;
pub mod mounts;
pub mod net;
pub mod nodes;
pub mod pci;
pub mod power;
pub mod process;
mod programs;
pub mod seccomp;
pub mod tdx_guest;
pub mod usage;
pub mod verity;
pub mod vsock;

/// A system call failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub struct SysError {
    /// What was tried.
    pub what: &'static str,
    /// What the kernel said.
    pub source: std::io::Error,
}

impl SysError {
    /// For `map_err`: adds what was tried.
    pub(crate) fn when<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self { what, source: error.into() }
    }
}
