// SPDX-License-Identifier: Apache-2.0
//! Closes kernel interfaces that a guest has no use for after boot.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use crate::{SysError, mounts};

/// Writes every setting of [`SETTINGS`] and reads it back. A setting that this kernel was built without is closed
/// already.
///
/// # Errors
/// [`SysError`] at the first setting that exists and does not hold its value.
pub fn lock_down() -> Result<(), SysError> {
    close(Path::new("/proc/sys"), SETTINGS)
}

/// No module is loaded from now on, by whomever.
///
/// # Errors
/// [`SysError`], also where the kernel was built without modules.
pub fn close_module_loading() -> Result<(), SysError> {
    let path = Path::new("/proc/sys/kernel/modules_disabled");
    fs::metadata(path).map_err(SysError::when("close module loading"))?;
    close(Path::new("/proc/sys"), &[("kernel/modules_disabled", "1")])
}

/// No driver takes a PCI device that appears from now on (`/sys/bus/pci/drivers_autoprobe`): what the machine had was counted,
/// and code of the host's tables may announce more at any time.
///
/// # Errors
/// [`SysError`].
pub fn close_device_probing() -> Result<(), SysError> {
    stop_probing(Path::new("/sys/bus/pci/drivers_autoprobe"))
}

fn stop_probing(file: &Path) -> Result<(), SysError> {
    let what = "leave new PCI devices without a driver";
    fs::write(file, "0").map_err(SysError::when(what))?;
    let holds = fs::read_to_string(file).map_err(SysError::when(what))?.trim_end() == "0";
    if holds { Ok(()) } else { Err(SysError { what, source: io::Error::other("the setting does not hold") }) }
}

/// Forbids root itself to read or change the running kernel (`kernel_lockdown.7`), as a kernel without modules does from its start:
/// raises the level to `confidentiality` and reads it back. The level never falls again.
///
/// # Errors
/// [`SysError`].
pub fn raise_lockdown() -> Result<(), SysError> {
    mounts::pseudo("securityfs", "/sys/kernel/security", None)?;
    raise(Path::new("/sys/kernel/security/lockdown"))
}

fn raise(file: &Path) -> Result<(), SysError> {
    let what = "raise the kernel's lockdown";
    let holds = || -> Result<bool, SysError> {
        Ok(fs::read_to_string(file).map_err(SysError::when(what))?.contains(CONFIDENTIALITY))
    };
    if !holds()? {
        fs::write(file, "confidentiality").map_err(SysError::when(what))?;
    }
    if holds()? { Ok(()) } else { Err(SysError { what, source: io::Error::other("the level does not hold") }) }
}

fn close(root: &Path, settings: &[(&str, &str)]) -> Result<(), SysError> {
    for (name, value) in settings {
        let path = root.join(name);
        match fs::OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes())) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(SysError { what: "close a kernel interface", source: error }),
        }
        let now = fs::read_to_string(&path).map_err(SysError::when("read a kernel setting back"))?;
        if now.trim_end() != *value {
            return Err(SysError {
                what: "close a kernel interface",
                source: io::Error::other("the setting does not hold its value"),
            });
        }
    }
    Ok(())
}

/// What is closed, and why.
pub const SETTINGS: &[(&str, &str)] = &[
    // No key combination or host signal triggers kernel functions.
    ("kernel/sysrq", "0"),
    // Kernel addresses and messages are not for processes.
    ("kernel/kptr_restrict", "2"),
    ("kernel/dmesg_restrict", "1"),
    // No memory of a process is ever written out.
    ("fs/suid_dumpable", "0"),
    ("kernel/core_pattern", "|/bin/false"),
    // No tracing, no bytecode, no new kernel, no new module.
    ("kernel/perf_event_paranoid", "3"),
    ("kernel/yama/ptrace_scope", "3"),
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("net/core/bpf_jit_enable", "0"),
    ("kernel/kexec_load_disabled", "1"),
    ("kernel/modules_disabled", "1"),
    ("kernel/io_uring_disabled", "2"),
    ("user/max_user_namespaces", "0"),
    ("vm/unprivileged_userfaultfd", "0"),
    // A broken kernel stops instead of going on.
    ("kernel/panic_on_oops", "1"),
    // The network is one address on one link: believe no hint of it.
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/all/accept_source_route", "0"),
    ("net/ipv4/conf/default/accept_source_route", "0"),
    ("net/ipv4/conf/all/rp_filter", "1"),
    ("net/ipv4/conf/default/rp_filter", "1"),
    // Sources of leaks between names: no links or pipes of others are followed.
    ("fs/protected_symlinks", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_fifos", "2"),
    ("fs/protected_regular", "2"),
];

/// The level in force stands in brackets.
const CONFIDENTIALITY: &str = "[confidentiality]";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_does_not_hold_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("lockdown");
        assert!(raise(&file).is_err());
        fs::write(&file, "none integrity [confidentiality]\n").unwrap();
        raise(&file).unwrap();
        // A plain file does not take a level as the kernel's does: what is read back decides.
        fs::write(&file, "[none] integrity confidentiality\n").unwrap();
        assert!(raise(&file).is_err());
    }

    #[test]
    fn probing_that_cannot_be_stopped_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("drivers_autoprobe");
        stop_probing(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "0");
        // It takes what is written and does not say it again.
        assert!(stop_probing(Path::new("/dev/null")).is_err());
        assert!(stop_probing(directory.path()).is_err());
    }

    #[test]
    fn existing_settings_are_written_and_missing_ones_are_closed_already() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("kernel")).unwrap();
        fs::write(root.path().join("kernel/sysrq"), "4").unwrap();
        close(root.path(), &[("kernel/sysrq", "0"), ("kernel/absent", "1")]).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("kernel/sysrq")).unwrap(), "0");
        assert!(!root.path().join("kernel/absent").exists());
    }

    #[test]
    fn a_setting_that_cannot_be_written_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("kernel/sysrq")).unwrap();
        assert!(close(root.path(), &[("kernel/sysrq", "0")]).is_err());
    }
}
