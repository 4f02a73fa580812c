// SPDX-License-Identifier: Apache-2.0
//! What the guest's processes use.

use std::{fs, path::Path, time::Duration};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};

/// Processor time of this process so far, all threads, user and system.
#[must_use]
pub fn processor_time() -> Duration {
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| {
        let micros = usage.user_time().num_microseconds().saturating_add(usage.system_time().num_microseconds());
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    })
}

/// Resident memory of all processes in KiB. Pages that two processes share count twice.
#[must_use]
pub fn resident_kib() -> u64 {
    resident_under(Path::new("/proc"))
}

fn resident_under(proc: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(proc) else { return 0 };
    entries
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok())
        .filter_map(|status| resident_of(&status))
        .fold(0, u64::saturating_add)
}

fn resident_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_summed_over_processes() {
        let proc = tempfile::tempdir().unwrap();
        for (name, status) in
            [("1", "Name:\tx\nVmRSS:\t    1024 kB\n"), ("22", "VmRSS:\t 2 kB\n"), ("3", "Name:\tkthread\n")]
        {
            fs::create_dir(proc.path().join(name)).unwrap();
            fs::write(proc.path().join(name).join("status"), status).unwrap();
        }
        fs::create_dir(proc.path().join("self")).unwrap();
        fs::write(proc.path().join("self/status"), "VmRSS:\t 9999 kB\n").unwrap();
        assert_eq!(resident_under(proc.path()), 1026);
        assert!(resident_kib() > 0);
    }

    #[test]
    fn processor_time_grows() {
        let before = processor_time();
        let mut sum = 0_u64;
        while processor_time() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(processor_time() > before);
    }
}
