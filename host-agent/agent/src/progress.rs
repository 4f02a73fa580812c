// SPDX-License-Identifier: Apache-2.0
//! How far a guest is: what its keeper writes down for others on the host.

use std::net::SocketAddrV4;
use std::path::Path;

use serde::{Deserialize, Serialize};
use types::EventName;

use crate::events::Event;
use crate::files;

/// `progress.json` of a run directory: one attempt to run a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Progress {
    /// The keeper.
    pub(crate) pid: u32,
    /// Which attempt, as the daemon counts them.
    pub(crate) attempt: u32,
    /// QEMU's process.
    pub(crate) qemu_pid: Option<u32>,
    /// Phases that ended.
    pub(crate) phases: Vec<Phase>,
    /// Numbers of what the guest noted, each once. In a file of their own: daemons of earlier versions, which go on while
    /// the program is upgraded, read no file with a field that they do not know.
    #[serde(skip)]
    pub(crate) notes: Vec<u16>,
    /// Resident memory of the guest's processes when it began to serve.
    pub(crate) memory_kib: Option<u64>,
    /// Where it serves.
    pub(crate) serving: Option<SocketAddrV4>,
    /// It serves and does not answer.
    #[serde(default)]
    pub(crate) silent: bool,
    /// It halted itself.
    pub(crate) halted: Option<Halt>,
    /// How it ended.
    pub(crate) ended: Option<String>,
}

/// A phase that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Phase {
    pub(crate) phase: EventName,
    /// Since QEMU began to run the guest.
    pub(crate) milliseconds: u64,
}

/// A guest's own halt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Halt {
    pub(crate) phase: EventName,
    /// A file with a number beyond this type is not read at all.
    pub(crate) code: u32,
}

/// `notes.json` of a run directory: what the guest noted in one attempt.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Noted {
    attempt: u32,
    notes: Vec<u16>,
}

impl Progress {
    /// Of a keeper that has just taken its directory.
    pub(crate) fn new(attempt: u32) -> Self {
        Self { pid: std::process::id(), attempt, ..Self::default() }
    }

    pub(crate) fn note(&mut self, event: &Event) {
        match event {
            Event::Started { qemu_pid, .. } => self.qemu_pid = Some(*qemu_pid),
            // A guest can repeat a phase as often as it likes; one of each is kept.
            Event::Phase { phase, since_start, .. } if !self.phases.iter().any(|known| known.phase == *phase) => {
                self.phases.push(Phase { phase: *phase, milliseconds: *since_start });
            }
            Event::Note { note, .. } if !self.notes.contains(note) => self.notes.push(*note),
            Event::Memory { kib } => self.memory_kib = Some(*kib),
            Event::Serving { address } => self.serving = Some(*address),
            Event::Silent => self.silent = true,
            Event::Answers => self.silent = false,
            Event::Halted { phase, code, .. } => self.halted = Some(Halt { phase: *phase, code: *code }),
            Event::Ended { reason } => self.ended = Some(reason.clone()),
            Event::Phase { .. } | Event::ProcessorTime { .. } | Event::Note { .. } => {}
        }
    }

    pub(crate) fn load(run_dir: &Path) -> Option<Self> {
        let progress: Self = serde_json::from_slice(&files::read_shared(&run_dir.join(FILE), MAX).ok()?).ok()?;
        let noted = files::read_shared(&run_dir.join(NOTES), MAX).ok();
        let noted: Option<Noted> = noted.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        // Those of an earlier attempt are not this one's.
        let notes = noted.filter(|noted| noted.attempt == progress.attempt).map(|noted| noted.notes);
        Some(Self { notes: notes.unwrap_or_default(), ..progress })
    }

    pub(crate) fn store(&self, run_dir: &Path) -> anyhow::Result<()> {
        if !self.notes.is_empty() {
            let noted = Noted { attempt: self.attempt, notes: self.notes.clone() };
            files::write_atomically(&run_dir.join(NOTES), &serde_json::to_vec(&noted)?)?;
        }
        files::write_atomically(&run_dir.join(FILE), &serde_json::to_vec(self)?)
    }
}

const FILE: &str = "progress.json";
const NOTES: &str = "notes.json";
const MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// What daemons knew before guests had notes.
    const KNOWN: [&str; 9] =
        ["pid", "attempt", "qemu_pid", "phases", "memory_kib", "serving", "silent", "halted", "ended"];

    #[test]
    fn notes_are_kept_apart_from_what_earlier_daemons_read() {
        let directory = tempfile::tempdir().unwrap();
        let progress = Progress { notes: vec![3, 1], ..Progress::new(2) };
        progress.store(directory.path()).unwrap();
        let written: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&std::fs::read(directory.path().join(FILE)).unwrap()).unwrap();
        assert!(written.keys().all(|field| KNOWN.contains(&field.as_str())), "{written:?}");
        assert_eq!(Progress::load(directory.path()).unwrap(), progress);
        // Another attempt has noted nothing yet.
        Progress::new(3).store(directory.path()).unwrap();
        assert_eq!(Progress::load(directory.path()).unwrap().notes, Vec::<u16>::new());
    }
}
