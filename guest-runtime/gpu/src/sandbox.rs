// SPDX-License-Identifier: Apache-2.0
//! The collector's seccomp filter.

use linux_sys::seccomp::{Filter, SeccompError};

/// Confines the process once the libraries are loaded: it reads files and uses devices that exist (which ones, Landlock decides),
/// and speaks on the socket that it has. What the libraries try and can do without fails and does not end it.
///
/// # Errors
/// The kernel refused the filter; then the process must not go on.
pub(crate) fn confine() -> Result<(), SeccompError> {
    Filter::common().allow_gpu_libraries().apply()
}
