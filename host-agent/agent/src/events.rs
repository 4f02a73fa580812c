// SPDX-License-Identifier: Apache-2.0
//! What a launch tells: one line per event, for people or as JSON.

use std::net::SocketAddrV4;

use guest_link::StatusLine;
use serde::{Deserialize, Serialize};
use types::{EventName, HaltCode, NoteCode};

/// One event of a guest's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// QEMU runs.
    Started {
        /// Its process.
        qemu_pid: u32,
        /// Whether the hardware is simulated.
        simulated: bool,
        /// Whatever the simulator said of what it measured.
        #[serde(skip_serializing_if = "Option::is_none")]
        measured: Option<serde_json::Value>,
    },
    /// A boot phase ended.
    Phase {
        /// Which.
        phase: EventName,
        /// Milliseconds since PID 1 started.
        milliseconds: u64,
        /// Milliseconds since QEMU began to run the guest.
        since_start: u64,
    },
    /// Processor time of a phase.
    ProcessorTime {
        /// Which.
        phase: EventName,
        /// Microseconds.
        microseconds: u64,
    },
    /// Something that the provider shall know of a boot that goes on.
    Note {
        /// In which phase.
        phase: EventName,
        /// Numeric note, see `docs/status-codes.md`.
        note: u16,
        /// Its name; `unknown` for a number of another version.
        name: String,
        /// What it says.
        meaning: String,
    },
    /// Resident memory of the guest's processes.
    Memory {
        /// KiB.
        kib: u64,
    },
    /// The guest serves.
    Serving {
        /// Where clients reach it.
        address: SocketAddrV4,
    },
    /// The guest serves, but has not answered for a while.
    Silent,
    /// It answers again.
    Answers,
    /// The guest halted itself.
    Halted {
        /// In which phase.
        phase: EventName,
        /// Numeric code, see `docs/status-codes.md`.
        code: u32,
        /// Its name; `unknown` for a number of another version.
        name: String,
        /// What happened.
        meaning: String,
    },
    /// The guest is gone.
    Ended {
        /// Why, in words.
        reason: String,
    },
}

impl Event {
    pub(crate) fn of_status(line: StatusLine, since_start: u64) -> Self {
        match line {
            StatusLine::PhaseDone { phase, milliseconds } => Self::Phase { phase, milliseconds, since_start },
            StatusLine::Halted { phase, code } => {
                let known = HaltCode::of_number(u64::from(code));
                let name = known.map_or("unknown", |code| code.name()).to_owned();
                let meaning =
                    known.map_or("see the documentation of the image's release", |code| code.meaning()).to_owned();
                Self::Halted { phase, code, name, meaning }
            }
            StatusLine::Memory { kib } => Self::Memory { kib },
            StatusLine::ProcessorTime { phase, microseconds } => Self::ProcessorTime { phase, microseconds },
            StatusLine::Note { phase, note } => {
                let known = NoteCode::of_number(u64::from(note));
                let name = known.map_or("unknown", NoteCode::name).to_owned();
                let meaning =
                    known.map_or("see the documentation of the image's release", NoteCode::meaning).to_owned();
                Self::Note { phase, note, name, meaning }
            }
        }
    }

    /// Prints the event on standard output.
    pub(crate) fn print(&self, json: bool) {
        if json {
            match serde_json::to_string(self) {
                Ok(line) => println!("{line}"),
                Err(error) => eprintln!("host-agent: cannot print an event: {error}"),
            }
        } else {
            println!("{self}");
        }
    }
}

impl core::fmt::Display for Event {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Started { qemu_pid, simulated, .. } => {
                let note = if *simulated { " (hardware simulated)" } else { "" };
                write!(f, "started: QEMU is process {qemu_pid}{note}")
            }
            Self::Phase { phase, milliseconds, since_start } => {
                write!(f, "phase {phase}: done {milliseconds} ms after PID 1, {since_start} ms after start")
            }
            Self::ProcessorTime { phase, microseconds } => {
                write!(f, "phase {phase}: {microseconds} us of processor time")
            }
            Self::Note { phase, note, name, meaning } => {
                write!(f, "phase {phase}: {name} ({note}): {meaning}")
            }
            Self::Memory { kib } => write!(f, "memory: {kib} KiB resident"),
            Self::Serving { address } => write!(f, "serving at {address}"),
            Self::Silent => write!(f, "silent: it serves, and does not answer"),
            Self::Answers => write!(f, "answers again"),
            Self::Halted { phase, code, name, meaning } => {
                write!(f, "halted in phase {phase}: {name} ({code}): {meaning}")
            }
            Self::Ended { reason } => write!(f, "ended: {reason}"),
        }
    }
}
