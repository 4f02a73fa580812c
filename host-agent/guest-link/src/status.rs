// SPDX-License-Identifier: Apache-2.0
//! Status lines of a guest: digits and spaces, so that nothing secret can be said by mistake.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::mpsc;
use types::EventName;

use crate::listener::{LinkError, LinkListener, LinkStream};

/// One status line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusLine {
    /// A boot phase ended.
    PhaseDone {
        /// Which.
        phase: EventName,
        /// Milliseconds since PID 1 started.
        milliseconds: u64,
    },
    /// Boot halted.
    Halted {
        /// In which phase.
        phase: EventName,
        /// Numeric code, see `docs/status-codes.md`. A type that every document on the host can hold.
        code: u32,
    },
    /// Resident memory of all processes of the guest when serving began.
    Memory {
        /// KiB.
        kib: u64,
    },
    /// Processor time of a boot phase.
    ProcessorTime {
        /// Which.
        phase: EventName,
        /// Microseconds of all processors.
        microseconds: u64,
    },
    /// Something that the provider shall know of a boot that goes on.
    Note {
        /// In which phase.
        phase: EventName,
        /// Numeric note, see `docs/status-codes.md`.
        note: u16,
    },
}

/// A line that is not a status line. Its text is not kept: it is the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a status line must be 2 or 3 decimal numbers of a known kind, at most 64 bytes")]
pub struct MalformedStatus;

impl StatusLine {
    /// Reads one line without its newline.
    ///
    /// # Errors
    /// [`MalformedStatus`].
    pub fn parse(line: &[u8]) -> Result<Self, MalformedStatus> {
        let text = std::str::from_utf8(line).map_err(|_| MalformedStatus)?;
        let numbers: Vec<u64> = text.split(' ').map(number).collect::<Result<_, _>>()?;
        match *numbers.as_slice() {
            [1, phase, milliseconds] => Ok(Self::PhaseDone { phase: phase_of(phase)?, milliseconds }),
            [2, phase, code] => {
                let code = u32::try_from(code).map_err(|_| MalformedStatus)?;
                Ok(Self::Halted { phase: phase_of(phase)?, code })
            }
            [3, kib] => Ok(Self::Memory { kib }),
            [4, phase, microseconds] => Ok(Self::ProcessorTime { phase: phase_of(phase)?, microseconds }),
            [5, phase, note] => {
                let note = u16::try_from(note).map_err(|_| MalformedStatus)?;
                Ok(Self::Note { phase: phase_of(phase)?, note })
            }
            _ => Err(MalformedStatus),
        }
    }
}

/// Receives the status lines of every connection of `listener` into `lines`, until the receiver is gone. Of each kind and
/// phase the first line counts: a guest has one boot, and what it repeats is dropped. A malformed line ends its
/// connection; with too many lines the listener is closed for good.
///
/// # Errors
/// [`LinkError::Accept`].
pub async fn receive_status(mut listener: LinkListener, lines: mpsc::Sender<StatusLine>) -> Result<(), LinkError> {
    let mut heard = Heard::default();
    while heard.count < MAX_LINES {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?,
            () = lines.closed() => return Ok(()),
        };
        read_lines(stream, &lines, &mut heard).await;
    }
    Ok(())
}

/// What a guest has said.
#[derive(Debug, Default)]
struct Heard {
    /// Well-formed lines, repeated ones among them.
    count: usize,
    said: Vec<(core::mem::Discriminant<StatusLine>, Option<EventName>)>,
    notes: Vec<u16>,
}

impl Heard {
    /// Whether a line is new.
    fn take(&mut self, line: &StatusLine) -> bool {
        self.count = self.count.saturating_add(1);
        let phase = match line {
            // Each once; a guest has few, and a list that it fills is closed.
            StatusLine::Note { note, .. } => {
                let new = self.notes.len() < MAX_NOTES && !self.notes.contains(note);
                if new {
                    self.notes.push(*note);
                }
                return new;
            }
            StatusLine::PhaseDone { phase, .. } | StatusLine::ProcessorTime { phase, .. } => Some(*phase),
            // It halts once.
            StatusLine::Halted { .. } | StatusLine::Memory { .. } => None,
        };
        let what = (core::mem::discriminant(line), phase);
        let new = !self.said.contains(&what);
        if new {
            self.said.push(what);
        }
        new
    }
}

async fn read_lines(stream: LinkStream, lines: &mpsc::Sender<StatusLine>, heard: &mut Heard) {
    let mut reader = BufReader::new(stream.take(MAX_TOTAL));
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut reader).take(MAX_LINE);
        match limited.read_until(b'\n', &mut line).await {
            Ok(read) if read > 0 && line.pop() == Some(b'\n') => {}
            _ => return,
        }
        let Ok(status) = StatusLine::parse(&line) else { return };
        if heard.take(&status) && lines.send(status).await.is_err() {
            return;
        }
        if heard.count >= MAX_LINES {
            return;
        }
    }
}

fn number(text: &str) -> Result<u64, MalformedStatus> {
    let ok = (1..=MAX_DIGITS).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if ok { text.parse().map_err(|_| MalformedStatus) } else { Err(MalformedStatus) }
}

fn phase_of(number: u64) -> Result<EventName, MalformedStatus> {
    EventName::ALL.into_iter().find(|name| u64::from(name.number()) == number).ok_or(MalformedStatus)
}

/// Most digits of a number: what has more, JSON does not carry exactly (RFC 8785 section 3.2.2.3).
const MAX_DIGITS: usize = 15;
/// Most bytes of one line with its newline.
const MAX_LINE: u64 = 65;
/// Most lines of a guest: a boot has two for each phase and three more.
const MAX_LINES: usize = 256;
/// Most notes that are listened to.
const MAX_NOTES: usize = 16;
/// Most bytes of one connection.
const MAX_TOTAL: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::*;
    use crate::{STATUS_PORT, VsockHost};

    #[test]
    fn lines_are_exact() {
        assert_eq!(
            StatusLine::parse(b"1 3 250"),
            Ok(StatusLine::PhaseDone { phase: EventName::Configuration, milliseconds: 250 })
        );
        assert_eq!(StatusLine::parse(b"2 8 4003"), Ok(StatusLine::Halted { phase: EventName::Keys, code: 4003 }));
        assert_eq!(StatusLine::parse(b"5 7 2"), Ok(StatusLine::Note { phase: EventName::Gpu, note: 2 }));
        for bad in [
            &b""[..],
            b"1",
            b"1 3",
            b"1  3 4",
            b"1 99 4",
            b"9 1 1",
            b"1 3 -4",
            b"1 3 +4",
            b"1 3 4 5",
            b"\xff",
            b"3 1234567890123456",
            b"2 8 4294967296",
            b"5 7 65536",
            b"5 99 1",
            b"5 1",
            b"2 8 9007199254740992",
        ] {
            assert_eq!(StatusLine::parse(bad), Err(MalformedStatus), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_malformed_or_endless_line_ends_its_connection_only() {
        let directory = tempfile::tempdir().unwrap();
        let host = VsockHost::VhostUser { uds_path: directory.path().join("v") };
        let listener = LinkListener::bind(&host, STATUS_PORT).unwrap();
        let (sender, mut receiver) = mpsc::channel(8);
        let receiving = tokio::spawn(receive_status(listener, sender));
        let path = host.unix_path(STATUS_PORT).unwrap();
        for text in ["1 1 5\nsecret words\n1 2 6\n".to_owned(), "1".repeat(200), "3 77\n".to_owned()] {
            let mut guest = UnixStream::connect(&path).await.unwrap();
            let _ = guest.write_all(text.as_bytes()).await;
        }
        assert_eq!(receiver.recv().await, Some(StatusLine::PhaseDone { phase: EventName::Mounts, milliseconds: 5 }));
        assert_eq!(receiver.recv().await, Some(StatusLine::Memory { kib: 77 }));
        drop(receiver);
        receiving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn repeated_lines_are_dropped_and_their_number_is_limited() {
        let directory = tempfile::tempdir().unwrap();
        let host = VsockHost::VhostUser { uds_path: directory.path().join("v") };
        let listener = LinkListener::bind(&host, STATUS_PORT).unwrap();
        let (sender, mut receiver) = mpsc::channel(64);
        let receiving = tokio::spawn(receive_status(listener, sender));
        let path = host.unix_path(STATUS_PORT).unwrap();
        // Over several connections; what follows the first of each kind says nothing.
        let mut number = 0;
        while let Ok(mut guest) = UnixStream::connect(&path).await {
            let lines =
                format!("1 1 {number}\n5 7 {number}\n5 7 0\n4 1 {number}\n2 1 {number}\n3 {number}\n").into_bytes();
            let _ = guest.write_all(&lines).await;
            number += 1;
            assert!(number < 10_000, "it listens for ever");
            tokio::task::yield_now().await;
        }
        receiving.await.unwrap().unwrap();
        let (phase, milliseconds) = (EventName::Mounts, 0);
        assert_eq!(receiver.recv().await, Some(StatusLine::PhaseDone { phase, milliseconds }));
        let note = |note| Some(StatusLine::Note { phase: EventName::Gpu, note });
        assert_eq!(receiver.recv().await, note(0));
        assert_eq!(receiver.recv().await, Some(StatusLine::ProcessorTime { phase, microseconds: 0 }));
        assert_eq!(receiver.recv().await, Some(StatusLine::Halted { phase, code: 0 }));
        assert_eq!(receiver.recv().await, Some(StatusLine::Memory { kib: 0 }));
        for number in 1..16 {
            assert_eq!(receiver.recv().await, note(number), "each once, and no more than sixteen");
        }
        assert_eq!(receiver.recv().await, None);
        assert!(!path.exists());
    }
}
