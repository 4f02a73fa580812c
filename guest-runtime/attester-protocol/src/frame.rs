// SPDX-License-Identifier: Apache-2.0
//! Frames: u32 length in big endian, then JSON of exactly that length.
//!
//! Readers and writers that do not block use [`encode`], [`body_length`] and [`decode`]; the others [`read`] and
//! [`write`]. The `_capped` forms serve protocols of the same form with a smaller cap.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// Most bytes of JSON in one frame.
pub const MAX_FRAME: usize = 1 << 20;

/// Why a frame was refused. Never holds any of its bytes.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// More bytes than the cap.
    #[error("a frame of {found} bytes is longer than {cap} bytes")]
    TooLong {
        /// The cap.
        cap: usize,
        /// Bytes announced or needed.
        found: usize,
    },
    /// The frame is not exactly one message of the expected type.
    #[error("the frame is no known message (line {line}, column {column} of its JSON)")]
    Malformed {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// The peer closed the connection where a frame was due.
    #[error("the connection was closed")]
    Closed,
    /// The socket failed.
    #[error("the socket failed")]
    Io(#[from] io::Error),
}

/// One message as a frame.
///
/// # Errors
/// [`FrameError::TooLong`], or [`FrameError::Malformed`] when the message has no JSON form.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    encode_capped(message, MAX_FRAME)
}

/// As [`encode`] with another cap.
///
/// # Errors
/// As [`encode`].
pub fn encode_capped<T: Serialize>(message: &T, cap: usize) -> Result<Vec<u8>, FrameError> {
    let json = serde_json::to_vec(message).map_err(|error| malformed(&error))?;
    let too_long = FrameError::TooLong { cap, found: json.len() };
    let Some(length) = u32::try_from(json.len()).ok().filter(|_| json.len() <= cap) else {
        return Err(too_long);
    };
    Ok([length.to_be_bytes().as_slice(), &json].concat())
}

/// The number of bytes that follow a frame's first four.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn body_length(prefix: [u8; 4]) -> Result<usize, FrameError> {
    body_length_capped(prefix, MAX_FRAME)
}

/// As [`body_length`] with another cap.
///
/// # Errors
/// As [`body_length`].
pub fn body_length_capped(prefix: [u8; 4], cap: usize) -> Result<usize, FrameError> {
    let found = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
    if found > cap { Err(FrameError::TooLong { cap, found }) } else { Ok(found) }
}

/// Reads the message of a frame's body (the bytes after the length).
///
/// # Errors
/// [`FrameError::Malformed`], also for bytes after the message.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(|error| malformed(&error))
}

/// Reads one message; `None` when the peer closed the connection between two frames.
///
/// # Errors
/// [`FrameError`]. The stream is out of step then: close it.
pub fn read<T: DeserializeOwned>(stream: &mut impl Read) -> Result<Option<T>, FrameError> {
    read_capped(stream, MAX_FRAME)
}

/// As [`read`] with another cap.
///
/// # Errors
/// As [`read`].
pub fn read_capped<T: DeserializeOwned>(stream: &mut impl Read, cap: usize) -> Result<Option<T>, FrameError> {
    let Some(prefix) = read_prefix(stream)? else {
        return Ok(None);
    };
    let length = body_length_capped(prefix, cap)?;
    // Grows with what really comes, not with what was announced.
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body)?;
    if body.len() != length {
        return Err(FrameError::Closed);
    }
    decode(&body).map(Some)
}

/// Writes one message and flushes.
///
/// # Errors
/// [`FrameError`].
pub fn write<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), FrameError> {
    write_capped(stream, message, MAX_FRAME)
}

/// As [`write`] with another cap.
///
/// # Errors
/// As [`write`].
pub fn write_capped<T: Serialize>(stream: &mut impl Write, message: &T, cap: usize) -> Result<(), FrameError> {
    stream.write_all(&encode_capped(message, cap)?)?;
    Ok(stream.flush()?)
}

fn read_prefix(stream: &mut impl Read) -> Result<Option<[u8; 4]>, FrameError> {
    let mut first = [0; 1];
    loop {
        match stream.read(&mut first) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let [a] = first;
    let mut rest = [0; 3];
    stream.read_exact(&mut rest).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::Closed,
        _ => error.into(),
    })?;
    let [b, c, d] = rest;
    Ok(Some([a, b, c, d]))
}

/// The position only: the text of a `serde_json` error quotes its input.
fn malformed(error: &serde_json::Error) -> FrameError {
    FrameError::Malformed { line: error.line(), column: error.column() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ControlRequest, Request, ServingRequest};

    fn framed(json: &str) -> Vec<u8> {
        [u32::try_from(json.len()).unwrap().to_be_bytes().as_slice(), json.as_bytes()].concat()
    }

    fn control(json: &str) -> Result<Option<Request<ControlRequest>>, FrameError> {
        read(&mut framed(json).as_slice())
    }

    #[test]
    fn a_length_over_the_cap_is_refused_before_its_bytes() {
        let prefix = (u32::try_from(MAX_FRAME).unwrap() + 1).to_be_bytes();
        let error = read::<u8>(&mut prefix.as_slice()).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { cap: MAX_FRAME, .. }));
        assert!(matches!(encode(&"x".repeat(MAX_FRAME)), Err(FrameError::TooLong { .. })));
        assert!(matches!(read_capped::<u8>(&mut framed("1  ").as_slice(), 2), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn truncation_anywhere_is_an_error_and_the_end_between_frames_is_not() {
        let bytes = framed(r#"{"id":1,"body":{"seal":{}}}"#);
        assert!(read::<Request<ControlRequest>>(&mut bytes.as_slice()).unwrap().is_some());
        assert!(read::<Request<ControlRequest>>(&mut [].as_slice()).unwrap().is_none());
        for end in 1..bytes.len() {
            let error = read::<Request<ControlRequest>>(&mut &bytes[..end]).unwrap_err();
            assert!(matches!(error, FrameError::Closed), "{end}: {error:?}");
        }
    }

    #[test]
    fn unknown_and_duplicate_fields_and_trailing_bytes_are_refused() {
        assert!(control(r#"{"id":1,"body":{"report":{}}}"#).is_ok());
        for json in [
            r#"{"id":1,"body":{"report":{}}} 1"#,
            r#"{"id":1,"body":{"report":{"x":1}}}"#,
            r#"{"id":1,"id":1,"body":{"report":{}}}"#,
            r#"{"id":1,"body":{"report":{}},"x":1}"#,
            r#"{"id":1,"body":{"prove":{}}}"#,
            r#"{"id":-1,"body":{"report":{}}}"#,
            r#"{"body":{"report":{}}}"#,
            "",
        ] {
            assert!(matches!(control(json), Err(FrameError::Malformed { .. })), "accepted {json}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read::<Request<ServingRequest>>(&mut bytes.as_slice());
            let _ = read::<Request<ControlRequest>>(&mut bytes.as_slice());
        }
    }
}
