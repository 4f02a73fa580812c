// SPDX-License-Identifier: Apache-2.0
//! Whether this host has the memory for a guest: one that gets none takes others down with it.

use std::path::PathBuf;

use types::Refusal;

use crate::files;

/// What a guest's memory is taken from.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    /// Root of the files in which it is looked up.
    pub(crate) root: PathBuf,
    /// What will be free by then: that of the generation which yields.
    pub(crate) yields_mib: u64,
}

impl Memory {
    /// Refuses a guest that has no room. Says nothing about later.
    pub(crate) fn check(&self, needed_mib: u32) -> Result<(), Vec<Refusal>> {
        let text = files::read_capped(&self.root.join("proc/meminfo"), MAX).unwrap_or_default();
        // A kernel that does not say it is asked no further.
        let Some(available_mib) = available_mib(&String::from_utf8_lossy(&text)) else { return Ok(()) };
        let room = available_mib.saturating_add(self.yields_mib);
        if u64::from(needed_mib) <= room {
            return Ok(());
        }
        let yields = match self.yields_mib {
            0 => String::new(),
            mib => format!(" and {mib} MiB will be when the one before is stopped"),
        };
        let detail = format!("{needed_mib} MiB are needed, {available_mib} MiB are available{yields}");
        let fix = "stop other guests, give this one less, or exchange it with strategy = \"replace\"";
        Err(vec![Refusal::new("memory_short", "guests.memory_mib", detail, fix)])
    }
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}

const MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_yields_counts_as_free() {
        let directory = tempfile::tempdir().unwrap();
        let memory = |yields_mib| Memory { root: directory.path().to_owned(), yields_mib };
        memory(0).check(u32::MAX).unwrap();
        std::fs::create_dir(directory.path().join("proc")).unwrap();
        let text = "MemTotal:       2000000 kB\nMemFree:          10 kB\nMemAvailable:    614400 kB\n";
        std::fs::write(directory.path().join("proc/meminfo"), text).unwrap();
        memory(0).check(600).unwrap();
        // A guest of 1024 MiB on a host of 1624: its next generation fits once it is gone.
        let short = memory(0).check(1024).unwrap_err();
        assert_eq!((short[0].code.as_str(), short[0].field.as_str()), ("memory_short", "guests.memory_mib"));
        memory(1024).check(1024).unwrap();
        memory(1024).check(1624).unwrap();
        assert!(memory(1024).check(1625).unwrap_err()[0].detail.contains("1024 MiB will be"));
    }
}
