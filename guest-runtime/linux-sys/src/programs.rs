// SPDX-License-Identifier: Apache-2.0
//! What programs need that do not confine themselves: files, sockets and programs, but nothing that changes the machine.

use super::seccomp::{Condition, Filter};

impl Filter {
    /// Nothing can be mounted, no module or other kernel loaded, no clock set, no process traced, no device node made, no
    /// namespace entered; sockets are Unix, IPv4 and vsock ones, and of new namespaces only that of the network can be made.
    /// With `shared_libraries`, memory can be mapped for execution.
    #[must_use]
    pub fn programs(shared_libraries: bool) -> Self {
        let filter = Self::common()
            .allow(FILES)
            .allow(DESCRIPTORS)
            .allow(SOCKETS)
            .allow(PROCESSES)
            .allow_if(libc::SYS_socket, &[family(libc::AF_UNIX), family(libc::AF_INET), family(libc::AF_VSOCK)])
            .allow_if(libc::SYS_clone, &[Condition::Bits { argument: 0, mask: NAMESPACES, value: 0 }])
            .allow_if(
                libc::SYS_unshare,
                &[Condition::Equals { argument: 0, value: libc::CLONE_NEWNET.cast_unsigned() }],
            )
            // An anonymous file is a program that no image holds.
            .refuse(&[libc::SYS_memfd_create]);
        if shared_libraries { filter.allow(&[libc::SYS_mmap, libc::SYS_mprotect]).refuse(TRIED) } else { filter }
    }
}

const fn family(value: i32) -> Condition {
    Condition::Equals { argument: 0, value: value.cast_unsigned() }
}

const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// What NVIDIA's libraries try when they start, and go on without: device nodes of their own, links to them, placement of memory.
const TRIED: &[i64] = &[
    libc::SYS_get_mempolicy,
    libc::SYS_iopl,
    libc::SYS_mbind,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_set_mempolicy,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
];

/// Which files, the file systems say, and Landlock to all but PID 1. No links, nodes or extended attributes are made.
const FILES: &[i64] = &[
    libc::SYS_access,
    libc::SYS_chdir,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_copy_file_range,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_lchown,
    libc::SYS_lseek,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_rmdir,
    libc::SYS_sendfile,
    libc::SYS_stat,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_umask,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

const DESCRIPTORS: &[i64] = &[
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_pipe,
    libc::SYS_pipe2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_readv,
    libc::SYS_select,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
];

const SOCKETS: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
];

/// Start, confine, end and account a program, and what the C library asks when one starts.
const PROCESSES: &[i64] = &[
    libc::SYS_arch_prctl,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_clock_getres,
    libc::SYS_execve,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpgrp,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_kill,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mlockall,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_nanosleep,
    libc::SYS_pidfd_open,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setaffinity,
    libc::SYS_seccomp,
    libc::SYS_set_tid_address,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setpgid,
    libc::SYS_setrlimit,
    libc::SYS_setsid,
    libc::SYS_setuid,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_time,
    libc::SYS_times,
    libc::SYS_uname,
    libc::SYS_vfork,
    libc::SYS_wait4,
    libc::SYS_waitid,
];
