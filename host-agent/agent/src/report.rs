// SPDX-License-Identifier: Apache-2.0
//! What a keeper tells: on its output, and in files of the run directory that others read.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::events::Event;
use crate::files;
use crate::progress::Progress;
use crate::record::STATE;

/// Tells the events of one attempt.
pub(crate) struct Reporter {
    json: bool,
    run_dir: PathBuf,
    progress: RefCell<Progress>,
    /// What is on the disk is not all.
    unwritten: Cell<bool>,
}

impl Reporter {
    /// Of a keeper that has just taken its directory.
    pub(crate) fn new(json: bool, attempt: u32, run_dir: &Path) -> Self {
        let progress = RefCell::new(Progress::new(attempt));
        let report = Self { json, run_dir: run_dir.to_owned(), progress, unwritten: Cell::new(false) };
        report.store();
        report
    }

    pub(crate) fn tell(&self, event: &Event) {
        event.print(self.json);
        self.progress.borrow_mut().note(event);
        self.store();
        // For people alone; the daemon reads progress.json.
        if let Ok(bytes) = serde_json::to_vec(event) {
            let _ = files::write_atomically(&self.run_dir.join(STATE), &bytes);
        }
    }

    /// Writes progress.json. A launch does not fail because it cannot be written; it is tried again when
    /// [`Reporter::due`] says so.
    pub(crate) fn store(&self) {
        match self.progress.borrow().store(&self.run_dir) {
            Ok(()) => self.unwritten.set(false),
            Err(error) => {
                // Once, and not every second.
                if !self.unwritten.replace(true) {
                    eprintln!("host-agent: nobody sees how far the guest is, tried again every second: {error:#}");
                }
            }
        }
    }

    /// Comes when something waits to be written; otherwise never.
    pub(crate) async fn due(&self) {
        if self.unwritten.get() {
            tokio::time::sleep(RETRY).await;
        } else {
            std::future::pending().await
        }
    }
}

const RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_could_not_be_written_is_due_until_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let obstacle = directory.path().join("progress.json.new");
        let report = Reporter::new(false, 7, directory.path());
        assert!(!report.unwritten.get());
        std::fs::create_dir(&obstacle).unwrap();
        report.tell(&Event::Memory { kib: 5 });
        report.due().await;
        report.store();
        assert!(report.unwritten.get());
        assert_eq!(Progress::load(directory.path()).unwrap().memory_kib, None);
        std::fs::remove_dir(&obstacle).unwrap();
        report.store();
        assert!(!report.unwritten.get());
        let written = Progress::load(directory.path()).unwrap();
        assert_eq!((written.attempt, written.memory_kib), (7, Some(5)));
    }
}
