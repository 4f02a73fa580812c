// SPDX-License-Identifier: Apache-2.0
//! What this process and the server, which inherits it, may ask of the kernel.

use crate::{Places, Server};
use linux_sys::{
    SysError,
    seccomp::{Condition, Filter, SeccompError},
};
use thiserror::Error;

/// Confines this process and all that it will start, for good. Call it before the first thread.
///
/// Landlock: the paths of the description, and sockets beside `serve`'s. seccomp: what programs with shared libraries need,
/// without any network: all sockets are Unix ones. That is wider than the engine's own filter in four ways: programs can be
/// started (which, Landlock says), memory can be made executable, files can be opened throughout, and what was read of a
/// prompt can be written to the files of `write`, where there are some.
///
/// # Errors
/// The kernel refused; then the process must not go on.
pub fn confine(server: &Server, places: &Places) -> Result<(), ConfineError> {
    server.reach(places).confine()?;
    let unix = Condition::Equals { argument: 0, value: libc::AF_UNIX.cast_unsigned() };
    Filter::programs(true).allow_if(libc::SYS_socket, &[unix]).apply()?;
    Ok(())
}

/// Why the process could not be confined.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// Landlock.
    #[error(transparent)]
    Landlock(#[from] SysError),
    /// The filter.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}
