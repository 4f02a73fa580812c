// SPDX-License-Identifier: Apache-2.0
//! Processes that a keeper left behind.
//!
//! The kernel ends a keeper's children with it (`--pdeathsig`), but for the moment between a child's birth and its asking
//! for that. So every child carries the run directory in its environment, and who takes the directory next ends them.

use std::fs;
use std::path::Path;

use rustix::process::Signal;

use crate::pid::Process;

/// The variable in the environment of a keeper's children.
pub(crate) const VARIABLE: &str = "CHRYSALIS_RUN_DIR";

/// Ends every process that was started for `run_dir`. The caller holds the directory, or knows that nobody does.
/// Gives how many there were.
pub(crate) fn end(run_dir: &Path) -> usize {
    let wanted = run_dir.as_os_str().as_encoded_bytes();
    each(|value| value == wanted)
}

/// Ends every process of a run directory below `base` that is not held any more.
pub(crate) fn end_below(base: &Path, held: impl Fn(&Path) -> bool) -> usize {
    use std::os::unix::ffi::OsStrExt as _;
    each(|value| {
        let path = Path::new(std::ffi::OsStr::from_bytes(value));
        path.starts_with(base) && !held(path)
    })
}

fn each(ours: impl Fn(&[u8]) -> bool) -> usize {
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    let mut ended = 0;
    for entry in processes.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Some(process) = Process::other(pid) else { continue };
        // Of another user, or gone: neither is ours to end.
        let Ok(environment) = fs::read(process.proc().join("environ")) else { continue };
        let variable = |text: &[u8]| text.strip_prefix(VARIABLE.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec);
        let value = environment.split(|byte| *byte == 0).find_map(variable);
        if value.is_some_and(|value| ours(&value)) && process.signal(Signal::KILL) {
            ended += 1;
        }
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_of_the_directory_are_ended() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        let start = |path: &Path| std::process::Command::new("sleep").arg("600").env(VARIABLE, path).spawn().unwrap();
        let (mut first, mut second) = (start(&one), start(&two));
        // A child shows its environment once it runs its program.
        while end(&one) == 0 {}
        assert!(!first.wait().unwrap().success());
        assert!(second.try_wait().unwrap().is_none());
        assert_eq!(end_below(directory.path(), |_| true), 0);
        while end_below(directory.path(), |path| path == one) == 0 {}
        assert!(!second.wait().unwrap().success());
    }
}
