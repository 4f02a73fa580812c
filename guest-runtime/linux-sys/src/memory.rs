// SPDX-License-Identifier: Apache-2.0
//! Memory that never leaves the process.

use nix::sys::{
    mman::{MlockAllFlags, mlockall},
    prctl,
    resource::{Resource, setrlimit},
    sysinfo::sysinfo,
};

use crate::{SysError, allocator};

/// Locks every page as it is first used, now and later, besides what [`prepare`] does.
///
/// # Errors
/// [`SysError`], for example when the limit on locked memory is too low.
pub fn lock() -> Result<(), SysError> {
    prepare()?;
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault).map_err(SysError::when("lock memory"))
}

/// For a program that will be confined, before it does anything else: no dumps, and an allocator that opens no files.
///
/// # Errors
/// [`SysError`].
pub fn prepare() -> Result<(), SysError> {
    allocator::share_one_heap();
    forbid_dumps()
}

/// Forbids dumps of the process (and of those it will start) and tracing by its own user.
///
/// # Errors
/// [`SysError`].
pub fn forbid_dumps() -> Result<(), SysError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(SysError::when("forbid dumps"))?;
    prctl::set_dumpable(false).map_err(SysError::when("forbid dumps"))
}

/// Bytes of memory that nobody uses, caches of files left out.
///
/// # Errors
/// [`SysError`].
pub fn free_bytes() -> Result<u64, SysError> {
    Ok(sysinfo().map_err(SysError::when("ask how much memory is free"))?.ram_unused())
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::getrlimit;

    use super::*;

    fn locked_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().trim_end().parse().unwrap()
    }

    /// Both things that it forbids were allowed before.
    #[test]
    fn memory_is_locked_as_it_is_used_and_never_dumped() {
        assert!(prctl::get_dumpable().unwrap() && locked_kib() == 0);
        match lock() {
            Err(error) if matches!(error.source.raw_os_error(), Some(libc::ENOMEM | libc::EPERM)) => {
                println!("SKIPPED: locking memory (the limit on locked memory is too low here)");
            }
            done => {
                done.unwrap();
                let before = locked_kib();
                let memory = std::hint::black_box(vec![1_u8; 8 << 20]);
                assert!(before > 0 && locked_kib() >= before + 8 * 1024, "{before} KiB, then {}", locked_kib());
                assert_eq!(memory.last(), Some(&1));
            }
        }
        assert!(!prctl::get_dumpable().unwrap());
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
    }
}
