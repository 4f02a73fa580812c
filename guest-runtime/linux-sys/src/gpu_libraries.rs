// SPDX-License-Identifier: Apache-2.0
//! What NVIDIA's libraries ask of the kernel, for the filters of the processes that load them.

use crate::seccomp::{Condition, Filter};

impl Filter {
    /// Also files and devices that exist, for reading and writing (which ones, Landlock decides), and their control by ioctl.
    ///
    /// What the libraries try and can do without is answered with an error in place of an end: starting `nvidia-modprobe`,
    /// making device nodes, sockets of daemons. Libraries must have been loaded before: nothing can be mapped for execution.
    /// Established by running the locked libraries without a device; with one they may need more.
    #[must_use]
    pub fn allow_gpu_libraries(self) -> Self {
        let creates_nothing = |argument| Condition::Bits { argument, mask: libc::O_CREAT | libc::O_TRUNC, value: 0 };
        self.allow(FILES_AND_DEVICES)
            .allow_if(libc::SYS_openat, &[creates_nothing(2)])
            .allow_if(libc::SYS_open, &[creates_nothing(1)])
            .refuse(TRIED)
            .allow(&[libc::SYS_clone])
            .refuse_if(libc::SYS_clone, &[Condition::Bits { argument: 0, mask: libc::CLONE_THREAD, value: 0 }])
    }
}

const FILES_AND_DEVICES: &[i64] = &[
    libc::SYS_access,
    libc::SYS_clock_getres,
    libc::SYS_dup,
    libc::SYS_eventfd2,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_getcpu,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getppid,
    libc::SYS_getrlimit,
    libc::SYS_getuid,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_lstat,
    libc::SYS_mincore,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_prlimit64,
    libc::SYS_pselect6,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_sched_setaffinity,
    libc::SYS_select,
    libc::SYS_shutdown,
    libc::SYS_stat,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

const TRIED: &[i64] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_connect,
    libc::SYS_execve,
    libc::SYS_fork,
    libc::SYS_ftruncate,
    libc::SYS_iopl,
    libc::SYS_kill,
    libc::SYS_memfd_create,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_pipe,
    libc::SYS_pipe2,
    libc::SYS_pwrite64,
    libc::SYS_set_mempolicy,
    libc::SYS_get_mempolicy,
    libc::SYS_mbind,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_vfork,
    libc::SYS_wait4,
];
