// SPDX-License-Identifier: Apache-2.0
//! The engine's own seccomp filters: lists of what it may ask of the kernel, everything else kills it.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};
use std::collections::BTreeMap;
use thiserror::Error;

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
/// can be opened at all, and standard output and error take nothing: an abort in C++ cannot print a prompt.
///
/// # Errors
/// The kernel refused the filter; then the process must not go on.
pub fn confine(stage: Stage) -> Result<(), SandboxError> {
    let allowed = filter(allowed(stage)?, SeccompAction::KillProcess, SeccompAction::Allow)?;
    // The second filter answers politely where the C library has another way or can live with a failure. The kernel
    // takes the stricter answer of both, and a kill is stricter than an error.
    let refused = filter(refused(stage)?, SeccompAction::Allow, SeccompAction::Errno(ENOSYS))?;
    apply_filter_all_threads(&refused)?;
    apply_filter_all_threads(&allowed)?;
    Ok(())
}

/// Why the process could not be confined.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// A filter could not be built.
    #[error("seccomp filter could not be built")]
    Build(#[from] seccompiler::BackendError),
    /// The kernel refused it (it needs `CONFIG_SECCOMP_FILTER`).
    #[error("seccomp filter was refused by the kernel")]
    Apply(#[from] seccompiler::Error),
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn filter(rules: Rules, otherwise: SeccompAction, action: SeccompAction) -> Result<BpfProgram, SandboxError> {
    Ok(SeccompFilter::new(rules, otherwise, action, TargetArch::x86_64)?.try_into()?)
}

fn allowed(stage: Stage) -> Result<Rules, SandboxError> {
    let mut rules: Rules = ALWAYS.iter().map(|call| (*call, Vec::new())).collect();
    let threads = libc::CLONE_THREAD | libc::CLONE_VM;
    rules.insert(libc::SYS_clone, vec![has_bits(0, threads, threads)?]);
    rules.insert(libc::SYS_mmap, vec![has_bits(2, libc::PROT_EXEC, 0)?]);
    rules.insert(libc::SYS_mprotect, vec![has_bits(2, libc::PROT_EXEC, 0)?]);
    rules.insert(libc::SYS_prctl, vec![equals(0, libc::PR_SET_NAME)?]);
    let read_only = vec![has_bits(2, OPEN_FOR_WRITING, libc::O_RDONLY)?];
    rules.insert(libc::SYS_openat, read_only);
    rules.insert(libc::SYS_open, vec![has_bits(1, OPEN_FOR_WRITING, libc::O_RDONLY)?]);
    if stage == Stage::Load {
        rules.extend(LOAD_ONLY.iter().map(|call| (*call, Vec::new())));
        rules.insert(libc::SYS_prctl, vec![equals(0, libc::PR_SET_NAME)?, equals(0, libc::PR_SET_NO_NEW_PRIVS)?]);
    }
    Ok(rules)
}

fn refused(stage: Stage) -> Result<Rules, SandboxError> {
    // Its flags lie in memory, where no filter sees them: without it, the C library uses `clone`.
    let mut rules = Rules::from([(libc::SYS_clone3, Vec::new())]);
    if stage == Stage::Serve {
        for call in [libc::SYS_write, libc::SYS_writev] {
            rules.insert(call, vec![at_most(0, libc::STDERR_FILENO)?]);
        }
        rules.extend([(libc::SYS_open, Vec::new()), (libc::SYS_openat, Vec::new())]);
    }
    Ok(rules)
}

/// `argument & mask == value`.
fn has_bits(argument: u8, mask: i32, value: i32) -> Result<SeccompRule, SandboxError> {
    rule(argument, SeccompCmpOp::MaskedEq(bits(mask)), bits(value))
}

fn equals(argument: u8, value: i32) -> Result<SeccompRule, SandboxError> {
    rule(argument, SeccompCmpOp::Eq, bits(value))
}

fn at_most(argument: u8, value: i32) -> Result<SeccompRule, SandboxError> {
    rule(argument, SeccompCmpOp::Le, bits(value))
}

/// All arguments compared here are C `int`s: the kernel looks at their lower half only.
fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, SandboxError> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

fn bits(value: i32) -> u64 {
    value.cast_unsigned().into()
}

const ENOSYS: u32 = libc::ENOSYS.cast_unsigned();
const OPEN_FOR_WRITING: i32 = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;

const ALWAYS: &[i64] = &[
    // memory (mapping and protection: without execution, see above)
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_sysinfo,
    // threads
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // time and randomness
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    // open sockets
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_write,
    libc::SYS_writev,
];

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
    // the next filter
    libc::SYS_seccomp,
];
