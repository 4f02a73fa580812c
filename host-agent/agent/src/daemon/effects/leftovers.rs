// SPDX-License-Identifier: Apache-2.0
//! Giving back and removing what nobody uses any more: GPUs, processes, copies of releases, run directories.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use types::{Refusal, Sha256Digest};
use vfio::PciAddress;

use super::super::compose;
use super::super::paths::{Paths, RunPlan};
use super::Effects;
use crate::claim::Claim;
use crate::limits::Groups;
use crate::record::{LaunchRecord, PID_FILE};
use crate::{files, orphans};

impl Effects {
    /// Gives the host back the GPUs that no generation is to have. What cannot be given back yet is tried again.
    pub(crate) fn release_gpus(&mut self) {
        if self.releasing.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let Some(hands) = self.hands.clone() else { return };
        if self.release_due.is_none_or(|due| Instant::now() < due) {
            return;
        }
        // Once in a while anyway: what was in use when it was given up is free later.
        self.release_due = Some(Instant::now() + RELEASE_AGAIN);
        let paths = self.paths.clone();
        let release = move || hands.release(|| gpus_of(&paths));
        self.releasing = Some(tokio::spawn(async move {
            let released = compose::blocking(release).await;
            for reason in released.as_ref().err().into_iter().flatten() {
                tracing::warn!(code = %reason.code, "a GPU is not given back yet: {reason}");
            }
            released
        }));
    }

    /// The last release of a daemon whose guests are all gone.
    pub(crate) async fn release_the_last(&mut self) {
        if let Some(task) = self.releasing.take() {
            drop(task.await);
        }
        self.release_due = self.hands.is_some().then(Instant::now);
        self.release_gpus();
        if let Some(task) = self.releasing.take() {
            drop(task.await);
        }
    }

    /// Ends processes whose keeper is gone, and removes copies of releases that nothing uses. Seldom needed.
    pub(crate) fn tidy(&self, wanted: BTreeSet<Sha256Digest>) {
        let ended =
            orphans::end_below(&self.paths.guests(), |run_dir| Claim::holder(&run_dir.join(PID_FILE)).is_some());
        if ended > 0 {
            tracing::warn!(ended, "ended processes that a keeper had left behind");
        }
        if !self.tasks.is_empty() {
            return;
        }
        // Compared by name: a path can be written in several ways.
        let mut used: BTreeSet<OsString> = wanted.iter().map(|digest| digest.to_string().into()).collect();
        for guest in self.paths.guest_names() {
            for number in self.paths.generations(&guest) {
                let run_dir = self.paths.run_dir(&guest, number);
                used.extend(RunPlan::load(&run_dir).map(|plan| plan.release.to_string().into()));
                let image = LaunchRecord::load(&run_dir).ok().map(|record| record.image);
                used.extend(image.and_then(|image| Some(image.file_name()?.to_owned())));
            }
        }
        let entries = std::fs::read_dir(self.paths.releases()).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| !used.contains(&entry.file_name())) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// The GPUs of all generations that have a run directory, running or not.
fn gpus_of(paths: &Paths) -> Vec<PciAddress> {
    let mut gpus = Vec::new();
    for guest in paths.guest_names() {
        for number in paths.generations(&guest) {
            let record = LaunchRecord::load(&paths.run_dir(&guest, number));
            let Ok(record) = record else { continue };
            // One address that cannot be read leaves the others theirs.
            let named = record.gpus.iter().chain(&record.nvswitches);
            gpus.extend(named.filter_map(|address| address.parse::<PciAddress>().ok()));
        }
    }
    gpus
}

pub(super) fn remove_run_dir(run_dir: &Path, groups: Option<&Groups>) -> Result<(), Vec<Refusal>> {
    let end_group = || {
        if let Some(groups) = groups {
            groups.remove(run_dir);
        }
    };
    if run_dir.symlink_metadata().is_err() {
        // It went, and then the daemon, say, before the group did.
        end_group();
        return Ok(());
    }
    let failed = |error: String| {
        let fix = "check the rights of the directory";
        vec![Refusal::new("run_directory_not_removed", "agent.state_dir", error, fix)]
    };
    if !files::is_own_directory(run_dir) {
        // Another user's, or a link of its: nothing of it is opened.
        end_group();
        let removed = std::fs::remove_file(run_dir).or_else(|_| std::fs::remove_dir_all(run_dir));
        return removed.map_err(|error| failed(format!("{}: {error}", run_dir.display())));
    }
    // What the user put in place of the lock's file does not keep the directory.
    let lock = run_dir.join(PID_FILE);
    if lock.symlink_metadata().is_ok_and(|found| !found.is_file()) {
        let _ = std::fs::remove_file(&lock);
    }
    // Held, so that no keeper comes up in it meanwhile.
    let _claim = Claim::take(&lock).map_err(|error| failed(format!("{error:#}")))?;
    orphans::end(run_dir);
    end_group();
    match std::fs::remove_dir_all(run_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed(format!("{}: {error}", run_dir.display())))
        }
        _ => Ok(()),
    }
}

const RELEASE_AGAIN: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use model_cache::Cache;
    use types::Blake3Digest;

    use super::*;

    #[test]
    fn copies_of_releases_in_use_stay_whatever_link_leads_to_them() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let paths = Paths::new(&link);
        let [wanted, running, unused] = [b"wanted", b"runs  ", b"unused"].map(|text| Sha256Digest::of(text));
        for digest in [&wanted, &running, &unused] {
            std::fs::create_dir_all(paths.releases().join(digest.to_string())).unwrap();
        }
        let run_dir = paths.run_dir(&"a".parse().unwrap(), 1);
        std::fs::create_dir_all(&run_dir).unwrap();
        let plan = RunPlan {
            spec: Sha256Digest::ZERO,
            release: running,
            model: "m".to_owned(),
            pack: Blake3Digest::ZERO,
            unpublished_shape: false,
            boot_deadline_s: 5,
            silence_deadline_s: 0,
        };
        plan.store(&run_dir).unwrap();
        let cache = Cache::open(&directory.path().join("cache"), 0).unwrap();
        Effects::new(paths.clone(), cache, None).tidy(std::iter::once(wanted).collect());
        let there = |digest: &Sha256Digest| paths.releases().join(digest.to_string()).is_dir();
        assert!(there(&wanted) && there(&running) && !there(&unused));
    }

    #[test]
    fn nothing_that_stands_for_the_lock_keeps_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        std::fs::write(&victim, "root's").unwrap();
        let run_dir = directory.path().join("g1");
        let lock = run_dir.join(PID_FILE);
        for kind in ["pipe", "link"] {
            std::fs::create_dir(&run_dir).unwrap();
            match kind {
                "pipe" => nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::S_IRWXU).unwrap(),
                _ => std::os::unix::fs::symlink(&victim, &lock).unwrap(),
            }
            remove_run_dir(&run_dir, None).unwrap();
            assert!(!run_dir.exists(), "{kind}");
        }
        assert_eq!(std::fs::read(&victim).unwrap(), b"root's");
    }
}
