// SPDX-License-Identifier: Apache-2.0
//! The simulated quote device: a TD's requests over a Unix socket (`docs/protocol.md`, "Simulated quote device").

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use base64::Engine as _;
use serde_json::{Value, json};
use types::Sha384Digest;

use crate::SimulatedTd;

/// Serves `td` to everybody who connects, each in a thread of its own. Ends when the listener fails.
///
/// # Errors
/// Whatever `accept` says.
pub fn serve(td: &SimulatedTd, listener: &UnixListener) -> io::Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, _) = listener.accept()?;
        let place = Place::take(&open);
        if place.number > MOST_CONNECTIONS {
            continue;
        }
        let td = td.clone();
        thread::spawn(move || {
            let _place = place;
            // A connection that breaks concerns nobody else.
            let _ = converse(&td, stream);
        });
    }
}

/// Answers one connection's requests until it closes or a frame is malformed.
///
/// # Errors
/// The socket's, and `InvalidData` for a frame over 64 KiB.
pub fn converse(td: &SimulatedTd, mut stream: UnixStream) -> io::Result<()> {
    while let Some(frame) = read_frame(&mut stream)? {
        let request = serde_json::from_slice::<Request>(&frame);
        let malformed = request.is_err();
        let answer = match request {
            Ok(request) => answer(td, request),
            Err(error) => json!({ "error": format!("request: {error}") }),
        };
        write_frame(&mut stream, &answer)?;
        if malformed {
            break;
        }
    }
    Ok(())
}

#[derive(serde::Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
enum Request {
    Report {},
    Extend {
        register: u32,
        digest: Sha384Digest,
    },
    Quote {
        #[serde(with = "hex::serde")]
        report_data: [u8; 64],
    },
    EventLog {},
}

fn answer(td: &SimulatedTd, request: Request) -> Value {
    match request {
        Request::Report {} => json!({ "mr_config_id": td.mr_config_id() }),
        Request::Extend { register, digest } => match td.extend(register, &digest) {
            Ok(()) => json!({}),
            Err(error) => json!({ "error": error.to_string() }),
        },
        Request::Quote { report_data } => match td.quote(report_data) {
            Ok(quote) => json!({ "quote": base64::engine::general_purpose::STANDARD.encode(quote) }),
            Err(error) => json!({ "error": error.to_string() }),
        },
        Request::EventLog {} => match td.event_log() {
            Some(log) => json!({ "event_log": base64::engine::general_purpose::STANDARD.encode(log) }),
            None => json!({ "error": "this trust domain has no event log" }),
        },
    }
}

/// One of the places for connections, given back when dropped.
struct Place {
    open: Arc<AtomicUsize>,
    number: usize,
}

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Self {
        Self { number: open.fetch_add(1, Ordering::Relaxed) + 1, open: Arc::clone(open) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The next frame, or nothing when the peer closed between frames.
fn read_frame(stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match stream.read(&mut length)? {
        0 => return Ok(None),
        read => stream.read_exact(length.get_mut(read..).unwrap_or_default())?,
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is longer than 64 KiB"));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame)?;
    Ok(Some(frame))
}

fn write_frame(stream: &mut UnixStream, answer: &Value) -> io::Result<()> {
    let text = answer.to_string();
    let mut frame = (text.len() as u32).to_be_bytes().to_vec();
    frame.extend(text.bytes());
    stream.write_all(&frame)
}

const MOST_CONNECTIONS: usize = 64;
const MOST_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use types::Registers;

    use super::*;
    use crate::{QuoteVersion, SimulatedPlatform, TdReport};

    fn td() -> SimulatedTd {
        let platform = Arc::new(SimulatedPlatform::generate(1_800_000_000).unwrap());
        let zero = Sha384Digest::ZERO;
        let registers = Registers {
            mr_td: zero,
            rtmr_0: zero,
            rtmr_1: zero,
            rtmr_2: zero,
            rtmr_3: zero,
            mr_config_id: Sha384Digest::of(b"config"),
            mr_owner: zero,
            mr_owner_config: zero,
        };
        let report = TdReport { registers, attributes: [0; 8], xfam: [0; 8], report_data: [0; 64] };
        SimulatedTd::with(platform, report, QuoteVersion::V4, None, Duration::ZERO)
    }

    /// Starts a conversation; the other end closes when the returned stream is dropped.
    fn start(td: &SimulatedTd) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let td = td.clone();
        thread::spawn(move || converse(&td, theirs));
        ours
    }

    fn ask(stream: &mut UnixStream, text: &str) -> Value {
        let mut frame = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
        frame.extend(text.bytes());
        stream.write_all(&frame).unwrap();
        serde_json::from_slice(&read_frame(stream).unwrap().unwrap()).unwrap()
    }

    #[test]
    fn connections_share_one_td() {
        let td = td();
        let (mut one, mut two) = (start(&td), start(&td));
        assert_eq!(ask(&mut one, r#"{"op":"report"}"#), json!({ "mr_config_id": Sha384Digest::of(b"config") }));
        let digest = Sha384Digest::of(b"event");
        assert_eq!(ask(&mut one, &format!(r#"{{"op":"extend","register":3,"digest":"{digest}"}}"#)), json!({}));
        let quote = ask(&mut two, &format!(r#"{{"op":"quote","report_data":"{}"}}"#, "ab".repeat(64)));
        let quote = base64::engine::general_purpose::STANDARD.decode(quote["quote"].as_str().unwrap()).unwrap();
        let expected = Sha384Digest::ZERO.extend(&digest);
        assert_eq!(&quote[48 + 472..48 + 520], expected.as_bytes());
        assert_eq!(quote[48 + 520..48 + 584], [0xab; 64]);
    }

    #[test]
    fn the_log_is_there_where_one_was_written() {
        let mut without = start(&td());
        assert!(ask(&mut without, r#"{"op":"event-log"}"#).get("error").is_some());
        let mut with = start(&td().with_event_log(b"log".to_vec()));
        assert_eq!(ask(&mut with, r#"{"op":"event-log"}"#), json!({ "event_log": "bG9n" }));
    }

    #[test]
    fn only_the_guests_register_can_be_extended() {
        let td = td();
        let before = td.registers();
        let mut stream = start(&td);
        for register in [0, 1, 2, 4] {
            let digest = Sha384Digest::of(b"event");
            let answer = ask(&mut stream, &format!(r#"{{"op":"extend","register":{register},"digest":"{digest}"}}"#));
            assert!(answer.get("error").is_some(), "{register}");
        }
        assert_eq!(td.registers(), before);
    }

    #[test]
    fn malformed_requests_end_the_conversation() {
        for text in [
            "{}",
            "[]",
            r#"{"op":"report","x":1}"#,
            r#"{"op":"reset"}"#,
            r#"{"op":"quote","report_data":"ab"}"#,
            r#"{"op":"report"}{"op":"report"}"#,
        ] {
            let mut stream = start(&td());
            assert!(ask(&mut stream, text).get("error").is_some(), "{text}");
            assert!(read_frame(&mut stream).unwrap().is_none(), "{text}");
        }
        let mut stream = start(&td());
        stream.write_all(&(64 * 1024 + 1_u32).to_be_bytes()).unwrap();
        assert!(read_frame(&mut stream).unwrap().is_none());
    }
}
