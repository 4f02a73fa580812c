// SPDX-License-Identifier: Apache-2.0
//! Status lines to the host: digits and spaces only, so that nothing secret can be said by mistake. The boot never
//! depends on whether the host listens.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    time::Duration,
};

use types::{EventName, NoteCode};

use crate::boot::Code;

/// One line (`docs/protocol.md`, "Status lines").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// A phase ended, milliseconds after PID 1 started.
    Ended(EventName, u64),
    /// The boot halted.
    Halted(EventName, Code),
    /// Resident memory of all processes in KiB when serving began.
    Resident(u64),
    /// Processor time of a phase in microseconds.
    Processor(EventName, u64),
    /// Something that the provider shall know.
    Note(EventName, NoteCode),
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ended(phase, milliseconds) => write!(f, "1 {} {milliseconds}", phase.number()),
            Self::Halted(phase, code) => write!(f, "2 {} {}", phase.number(), code.number()),
            Self::Resident(kib) => write!(f, "3 {kib}"),
            Self::Processor(phase, microseconds) => write!(f, "4 {} {microseconds}", phase.number()),
            Self::Note(phase, note) => write!(f, "5 {} {}", phase.number(), note.number()),
        }
    }
}

/// The connection for status lines, made when the first line is sent.
#[derive(Debug, Default)]
pub(crate) struct StatusLink(Option<UnixStream>);

impl StatusLink {
    /// Sends a line, or does nothing when the host does not listen.
    pub(crate) fn send(&mut self, line: Line) {
        if self.0.is_none() {
            self.0 = linux_sys::vsock::to_host(PORT, Some(PATIENCE)).ok();
        }
        let sent = self.0.as_mut().is_some_and(|stream| stream.write_all(format!("{line}\n").as_bytes()).is_ok());
        if !sent {
            self.0 = None;
        }
    }

    /// Waits, within limits, until the host has taken all lines.
    pub(crate) fn finish(&mut self) {
        if let Some(mut stream) = self.0.take() {
            // Both only delay the end of the guest.
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read(&mut [0; 1]);
        }
    }
}

const PORT: u32 = 7001;
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_short_and_numeric_whatever_they_say() {
        let phases = EventName::ALL.into_iter();
        let lines = phases
            .flat_map(|phase| [Line::Ended(phase, u64::MAX), Line::Processor(phase, u64::MAX)])
            .chain(Code::ALL.iter().map(|code| Line::Halted(EventName::Serve, *code)))
            .chain(NoteCode::ALL.map(|note| Line::Note(EventName::Serve, note)))
            .chain([Line::Resident(u64::MAX)]);
        for line in lines.map(|line| line.to_string()) {
            assert!(line.len() < 64 && line.bytes().all(|b| b.is_ascii_digit() || b == b' '), "{line}");
        }
        assert_eq!(Line::Ended(EventName::Gpu, 1500).to_string(), "1 7 1500");
        assert_eq!(Line::Halted(EventName::Configuration, Code::ConfigDigestMismatch).to_string(), "2 3 43");
        assert_eq!(Line::Note(EventName::Gpu, NoteCode::GpuNotCompared).to_string(), "5 7 2");
        assert_eq!(Line::Resident(7).to_string(), "3 7");
        assert_eq!(Line::Processor(EventName::Mounts, 9).to_string(), "4 1 9");
    }
}
