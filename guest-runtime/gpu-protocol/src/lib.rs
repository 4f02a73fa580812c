// SPDX-License-Identifier: Apache-2.0
//! What init and the collector of GPU evidence say to each other, over one socket pair.
//!
//! Frames are those of `attester-protocol`. One request is answered before the next is sent. Init asks for evidence, appraises it,
//! and only then lets the devices accept work, by a second process with the right to do so. The collector runs NVIDIA's libraries: nothing that it says is believed before the
//! devices' signatures were verified, but for the driver's statement, which is worth as much as the measured image.

mod evidence;

use std::io::{Read, Write};

use attester_protocol::{FrameError, frame};
use serde::{Deserialize, Serialize};
use types::{GpuDriver, GpuReport, Hex32};

pub use evidence::EvidenceError;

/// What init asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum GpuRequest {
    /// Reports of all devices for one nonce.
    Collect {
        /// The nonce that every device signs.
        nonce: Hex32,
        /// GPUs that there must be, 1 to 16.
        gpus: u8,
        /// NVSwitches that there must be, 0 to 16.
        switches: u8,
    },
    /// Lets the GPUs accept work: once init has accepted their evidence. Asked of a process of its own ([`SET_READY`]).
    SetReady {},
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum GpuAnswer {
    /// To `collect`.
    Collected(Box<Collected>),
    /// To `set-ready`: the driver says that GPUs accept work.
    Ready {},
    /// Nothing was done, or not all of it.
    Failed(GpuFailure),
}

/// Evidence of all devices, in the order in which the driver numbers them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collected {
    /// GPUs.
    pub gpus: Vec<GpuReport>,
    /// NVSwitches.
    pub switches: Vec<GpuReport>,
    /// What the driver says of itself.
    pub driver: GpuDriver,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{kind}: {detail}")]
#[serde(deny_unknown_fields)]
pub struct GpuFailure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// Which call, symbol or field, and what it gave: at most [`MAX_DETAIL`] bytes of printable ASCII.
    pub detail: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// A library or one of its symbols is missing, or a call about the whole system failed.
    #[error("the driver or its library failed")]
    Driver,
    /// The driver does not have the number of devices that was asked for.
    #[error("another number of devices")]
    Count,
    /// A device gave no evidence, or evidence that breaks a limit.
    #[error("a device gave no evidence")]
    Evidence,
    /// There are switches, and no library that reads their reports.
    #[error("no library for NVSwitches")]
    Fabric,
    /// A request for the other process, or a number out of range.
    #[error("a request out of order")]
    Order,
}

impl GpuFailure {
    /// A failure whose detail is cut and cleaned to its rule.
    #[must_use]
    pub fn new(kind: FailureKind, detail: &str) -> Self {
        let clean = detail.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' });
        Self { kind, detail: clean.take(MAX_DETAIL).collect() }
    }
}

/// Why a call had no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The socket or the frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The collector could not do it.
    #[error(transparent)]
    Failed(GpuFailure),
    /// The answer is to something else.
    #[error("the collector answered something else than was asked")]
    Unexpected,
}

/// Asks for the evidence of all devices.
///
/// # Errors
/// [`CallError`]. After any but [`CallError::Failed`] close the socket.
pub fn collect<S: Read + Write>(socket: &mut S, nonce: Hex32, gpus: u8, switches: u8) -> Result<Collected, CallError> {
    match ask(socket, GpuRequest::Collect { nonce, gpus, switches })? {
        GpuAnswer::Collected(collected) => Ok(*collected),
        _ => Err(CallError::Unexpected),
    }
}

/// Lets the GPUs accept work.
///
/// # Errors
/// As [`collect`].
pub fn set_ready<S: Read + Write>(socket: &mut S) -> Result<(), CallError> {
    match ask(socket, GpuRequest::SetReady {})? {
        GpuAnswer::Ready {} => Ok(()),
        _ => Err(CallError::Unexpected),
    }
}

fn ask<S: Read + Write>(socket: &mut S, request: GpuRequest) -> Result<GpuAnswer, CallError> {
    frame::write(socket, &request)?;
    match frame::read(socket)?.ok_or(FrameError::Closed)? {
        GpuAnswer::Failed(failure) => Err(CallError::Failed(failure)),
        answer => Ok(answer),
    }
}

/// Descriptor of the collector's end of the socket pair.
pub const COLLECTOR_FD: i32 = 3;
/// The argument of the process that lets GPUs work; without it, the program collects.
pub const SET_READY: &str = "--set-ready";
/// Most devices of one kind.
pub const MAX_DEVICES: u8 = 16;
/// Most bytes of a failure's detail.
pub const MAX_DETAIL: usize = 200;

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixStream, thread};

    use proptest::prelude::*;

    use super::*;

    /// A collector that answers with these bytes, whatever it is asked.
    fn answering(bytes: Vec<u8>) -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            frame::read::<GpuRequest>(&mut theirs).unwrap().unwrap();
            theirs.write_all(&bytes).unwrap();
        });
        ours
    }

    fn framed(json: &str) -> Vec<u8> {
        [u32::try_from(json.len()).unwrap().to_be_bytes().as_slice(), json.as_bytes()].concat()
    }

    #[test]
    fn answers_fit_their_question_or_are_refused() {
        assert!(set_ready(&mut answering(framed(r#"{"ready":{}}"#))).is_ok());
        let ready = collect(&mut answering(framed(r#"{"ready":{}}"#)), Hex32::default(), 1, 0);
        assert!(matches!(ready, Err(CallError::Unexpected)));
        let failed = set_ready(&mut answering(framed(r#"{"failed":{"kind":"count","detail":"2 GPUs"}}"#)));
        let Err(CallError::Failed(failure)) = failed else { panic!("{failed:?}") };
        assert_eq!(failure, GpuFailure::new(FailureKind::Count, "2 GPUs"));
        for bad in [r#"{"ready":{"x":1}}"#, r#"{"ready":{}} "x""#, r#"{"failed":{"kind":"other","detail":""}}"#] {
            let answer = set_ready(&mut answering(framed(bad)));
            assert!(matches!(answer, Err(CallError::Frame(FrameError::Malformed { .. }))), "{bad}");
        }
        let short = set_ready(&mut answering(vec![0, 0, 0, 9, b'{']));
        assert!(matches!(short, Err(CallError::Frame(FrameError::Closed))));
    }

    #[test]
    fn details_are_short_and_printable() {
        let failure = GpuFailure::new(FailureKind::Driver, &format!("a\n\u{e9}\0{}", "x".repeat(999)));
        assert!(failure.detail.starts_with("a???x"));
        assert_eq!(failure.detail.len(), MAX_DETAIL);
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = frame::read::<GpuAnswer>(&mut bytes.as_slice());
            let _ = frame::decode::<GpuRequest>(&bytes);
        }
    }
}
