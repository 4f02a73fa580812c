// SPDX-License-Identifier: Apache-2.0
//! Seccomp filters: a process lists what it may ask of the kernel, everything else kills it.
//!
//! A filter sees numbers only. It cannot look into memory: which path is opened is Landlock's to decide
//! ([`crate::landlock`]).

use std::{collections::BTreeMap, io};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter, apply_filter_all_threads,
};

/// A filter under construction.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    allowed: BTreeMap<i64, Vec<Condition>>,
    refused: BTreeMap<i64, Vec<Condition>>,
}

/// What an argument must be. Only the lower 32 bits are compared: of the arguments compared in this project, the kernel
/// itself looks at those alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The bits of `mask` are those of `value`.
    Bits {
        /// Number of the argument, from 0.
        argument: u8,
        /// Which bits.
        mask: i32,
        /// Their value.
        value: i32,
    },
    /// The argument is `value`.
    Equals {
        /// Number of the argument, from 0.
        argument: u8,
        /// The value.
        value: u32,
    },
    /// The argument, without a sign, is at most `value`.
    AtMost {
        /// Number of the argument, from 0.
        argument: u8,
        /// The value.
        value: u32,
    },
}

impl Filter {
    /// What every process of the guest needs: memory that is never executable, threads but no processes, time and
    /// randomness.
    #[must_use]
    pub fn common() -> Self {
        let no_execution = Condition::Bits { argument: 2, mask: libc::PROT_EXEC, value: 0 };
        let thread = libc::CLONE_THREAD | libc::CLONE_VM;
        Self::default()
            .allow(COMMON)
            .allow_if(libc::SYS_mmap, &[no_execution])
            .allow_if(libc::SYS_mprotect, &[no_execution])
            .allow_if(libc::SYS_clone, &[Condition::Bits { argument: 0, mask: thread, value: thread }])
            .allow_if(libc::SYS_prctl, &[operation(libc::PR_SET_NAME)])
            // Its flags lie in memory, where no filter sees them: without it, the C library uses `clone`.
            .refuse(&[libc::SYS_clone3])
    }

    /// Allows calls whatever their arguments.
    #[must_use]
    pub fn allow(mut self, calls: &[i64]) -> Self {
        self.allowed.extend(calls.iter().map(|call| (*call, Vec::new())));
        self
    }

    /// Allows a call when any of the conditions holds; they replace what was said of the call before.
    #[must_use]
    pub fn allow_if(mut self, call: i64, any_of: &[Condition]) -> Self {
        self.allowed.insert(call, any_of.to_vec());
        self
    }

    /// Answers calls with `ENOSYS` in place of killing: where the C library has another way or lives with a failure.
    #[must_use]
    pub fn refuse(mut self, calls: &[i64]) -> Self {
        self.allowed.extend(calls.iter().map(|call| (*call, Vec::new())));
        self.refused.extend(calls.iter().map(|call| (*call, Vec::new())));
        self
    }

    /// As [`Self::refuse`], but only when any of the conditions holds.
    #[must_use]
    pub fn refuse_if(mut self, call: i64, any_of: &[Condition]) -> Self {
        self.allowed.entry(call).or_default();
        self.refused.insert(call, any_of.to_vec());
        self
    }

    /// Lets a later filter be applied on top: the kernel takes the stricter answer of all.
    #[must_use]
    pub fn allow_more_filters(self) -> Self {
        self.allow(&[libc::SYS_seccomp])
            .allow_if(libc::SYS_prctl, &[operation(libc::PR_SET_NAME), operation(libc::PR_SET_NO_NEW_PRIVS)])
    }

    /// Confines all threads of this process, and all that they start. Nothing takes a filter off again.
    ///
    /// # Errors
    /// [`SeccompError`]; then the process must not go on.
    pub fn apply(&self) -> Result<(), SeccompError> {
        let Compiled { refused, allowed } = self.compile()?;
        apply_filter_all_threads(&refused)?;
        apply_filter_all_threads(&allowed)?;
        Ok(())
    }

    /// Two filters, since one has only one answer: the kernel takes the stricter of both, and a kill is stricter than an
    /// error.
    pub(crate) fn compile(&self) -> Result<Compiled, SeccompError> {
        let Self { allowed, refused } = self;
        Ok(Compiled {
            allowed: program(allowed, SeccompAction::KillProcess, SeccompAction::Allow)?,
            refused: program(refused, SeccompAction::Allow, SeccompAction::Errno(ENOSYS))?,
        })
    }
}

/// A filter as the kernel takes it.
#[derive(Debug)]
pub(crate) struct Compiled {
    refused: BpfProgram,
    allowed: BpfProgram,
}

impl Compiled {
    /// Confines this thread and what it will start. Only system calls: for use between fork and exec.
    pub(crate) fn apply_after_fork(&self) -> io::Result<()> {
        let failed = |_| io::Error::from_raw_os_error(libc::EINVAL);
        apply_filter(&self.refused).map_err(failed)?;
        apply_filter(&self.allowed).map_err(failed)
    }
}

/// Why a process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// A filter could not be built.
    #[error("seccomp filter could not be built")]
    Build(#[from] seccompiler::BackendError),
    /// The kernel refused it (it needs `CONFIG_SECCOMP_FILTER`).
    #[error("seccomp filter was refused by the kernel")]
    Apply(#[from] seccompiler::Error),
}

fn program(
    rules: &BTreeMap<i64, Vec<Condition>>,
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<BpfProgram, SeccompError> {
    let mut built = BTreeMap::new();
    for (call, conditions) in rules {
        let rules = conditions.iter().map(|condition| condition.rule()).collect::<Result<Vec<_>, _>>()?;
        built.insert(*call, rules);
    }
    Ok(SeccompFilter::new(built, otherwise, action, TargetArch::x86_64)?.try_into()?)
}

impl Condition {
    fn rule(self) -> Result<SeccompRule, SeccompError> {
        let (argument, operator, value) = match self {
            Self::Bits { argument, mask, value } => {
                (argument, SeccompCmpOp::MaskedEq(mask.cast_unsigned().into()), value.cast_unsigned())
            }
            Self::Equals { argument, value } => (argument, SeccompCmpOp::Eq, value),
            Self::AtMost { argument, value } => (argument, SeccompCmpOp::Le, value),
        };
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value.into())?;
        Ok(SeccompRule::new(vec![condition])?)
    }
}

const fn operation(value: i32) -> Condition {
    Condition::Equals { argument: 0, value: value.cast_unsigned() }
}

const ENOSYS: u32 = libc::ENOSYS.cast_unsigned();

const COMMON: &[i64] = &[
    // memory (mapping and protection: without execution, see above)
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // threads
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
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
    // descriptors that are open
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_write,
    libc::SYS_writev,
];
