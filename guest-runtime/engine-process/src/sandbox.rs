// SPDX-License-Identifier: Apache-2.0
//! An engine's own seccomp filters: lists of what it may ask of the kernel, everything else kills it.

use linux_sys::seccomp::{Condition, Filter, SeccompError};

/// What the process is about to do. A later stage takes rights away; none gives them back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Read the model, accept a client.
    Load,
    /// Compute, and speak on the sockets that are open.
    Serve,
}

/// Confines all threads of the process, and those they will start, to `stage`.
///
/// In both stages a file cannot be opened for writing, no program started, no socket made or connected, no process
/// traced, no memory made executable, and a new process is impossible (threads are not). In [`Stage::Serve`] no file
/// can be opened at all, and standard output and error take nothing: an abort in a library cannot print a prompt.
///
/// # Errors
/// The kernel refused the filter; then the process must not go on.
pub fn confine(stage: Stage) -> Result<(), SeccompError> {
    // The arithmetic of matrices looks for the processor's caches, by a directory and then by a program; it does without.
    let filter = match stage {
        Stage::Load => computing(stage).refuse(&[libc::SYS_getdents64, libc::SYS_pipe2]),
        Stage::Serve => computing(stage).refuse(&[libc::SYS_open, libc::SYS_openat]),
    };
    let read_only = |argument| Condition::Bits { argument, mask: OPEN_FOR_WRITING, value: libc::O_RDONLY };
    filter.allow_if(libc::SYS_open, &[read_only(1)]).allow_if(libc::SYS_openat, &[read_only(2)]).apply()
}

/// As [`confine`], for an engine that computes on GPUs. Libraries must be loaded and devices opened before.
///
/// The driver is spoken to by ioctl on its device files, of which it opens more as it works. So in both stages files that
/// exist can be opened, also for writing, and controlled: which ones, Landlock decides (the devices, and for reading the
/// model and what the driver says of itself). Nothing is created, and memory is made executable no more than in [`confine`].
/// What NVIDIA's libraries try in vain (sockets, programs, nodes) is answered with an error in place of an end.
///
/// # Errors
/// As [`confine`].
pub fn confine_with_gpus(stage: Stage) -> Result<(), SeccompError> {
    computing(stage).allow_gpu_libraries().apply()
}

/// What both kinds of engine need beside their files.
fn computing(stage: Stage) -> Filter {
    let filter = Filter::common().allow(&[libc::SYS_sysinfo]);
    match stage {
        Stage::Load => filter.allow(LOAD_ONLY).allow_more_filters(),
        Stage::Serve => {
            let printing = Condition::AtMost { argument: 0, value: libc::STDERR_FILENO.cast_unsigned() };
            filter
                .refuse_if(libc::SYS_write, &[printing])
                .refuse_if(libc::SYS_writev, &[printing])
                // Programs compiled for development look whether a descriptor is open before they close it.
                .allow_if(libc::SYS_fcntl, &[Condition::Equals { argument: 1, value: libc::F_GETFD.cast_unsigned() }])
        }
    }
}

const OPEN_FOR_WRITING: i32 = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;

const LOAD_ONLY: &[i64] = &[
    // files, for reading
    libc::SYS_fadvise64,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_pread64,
    libc::SYS_statx,
    libc::SYS_fcntl,
    // the client
    libc::SYS_accept4,
];
