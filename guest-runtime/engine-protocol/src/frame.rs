// SPDX-License-Identifier: Apache-2.0
//! Length-prefixed JSON frames.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use thiserror::Error;

/// One message as a frame: u32 length in big endian, then JSON.
///
/// # Errors
/// The message is longer than [`MAX_FRAME`] bytes as JSON.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, EncodeError> {
    let mut frame = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut frame, message).map_err(|_| EncodeError::NotJson)?;
    let length = frame.len().saturating_sub(LENGTH_BYTES);
    let prefix = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME).ok_or(EncodeError::TooLong { length })?;
    for (to, from) in frame.iter_mut().zip(prefix.to_be_bytes()) {
        *to = from;
    }
    Ok(frame)
}

/// Takes bytes as they come from a stream and gives back whole messages of type `T`.
///
/// It holds at most one frame and what came with it. After an error the stream is out of step: close it.
#[derive(Debug)]
pub struct Decoder<T> {
    buffer: Vec<u8>,
    message: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Decoder<T> {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self { buffer: Vec::new(), message: PhantomData }
    }

    /// Adds bytes that came from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, or `None` until more bytes come. Call it until it gives `None` before you push again: this
    /// is what bounds the memory.
    ///
    /// # Errors
    /// The length is over [`MAX_FRAME`], or the frame is not exactly one message of the expected type.
    pub fn next_message(&mut self) -> Result<Option<T>, FrameError> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(FrameError::TooLong { length });
        }
        let Some(json) = rest.get(..length) else {
            return Ok(None);
        };
        let message = serde_json::from_slice(json).map_err(|error| FrameError::malformed(&error))?;
        let end = length.saturating_add(LENGTH_BYTES);
        self.buffer.drain(..end);
        Ok(Some(message))
    }

    /// Whether the stream may end here: no part of a frame is left over.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

impl<T: DeserializeOwned> Default for Decoder<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a message could not be sent.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum EncodeError {
    /// Its JSON is longer than [`MAX_FRAME`].
    #[error("message of {length} bytes is longer than a frame of {MAX_FRAME} bytes")]
    TooLong {
        /// Bytes of JSON.
        length: usize,
    },
    /// It has no JSON form.
    #[error("message has no JSON form")]
    NotJson,
}

/// Why a stream of frames was refused. Never holds any of its bytes.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The announced length is over [`MAX_FRAME`].
    #[error("frame of {length} bytes is longer than {MAX_FRAME} bytes")]
    TooLong {
        /// Bytes announced.
        length: usize,
    },
    /// The frame is not exactly one message of the expected type.
    #[error("frame is no known message: rule broken at line {line}, column {column} of its JSON")]
    Malformed {
        /// Line in the frame's JSON, from 1.
        line: usize,
        /// Column in the frame's JSON, from 1.
        column: usize,
    },
}

impl FrameError {
    /// The position only: the text of a `serde_json` error quotes its input.
    fn malformed(error: &serde_json::Error) -> Self {
        Self::Malformed { line: error.line(), column: error.column() }
    }
}

/// Longest JSON of one frame, in bytes. Escaping may make a text six times longer (`\u0000`), so this leaves room for
/// [`crate::MAX_TEXT_BYTES`] of ordinary text, not for its worst case.
pub const MAX_FRAME: usize = 4 << 20;

const LENGTH_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Command, Event, Failure, Form, Generate, Message, Prompt, Role, Sampling, Tenant, TokenLogprob, TokenLogprobs,
    };
    use proptest::prelude::*;

    fn request(content: &str) -> Command {
        Command::Generate(Generate {
            id: 7,
            tenant: Tenant([7; 32]),
            prompt: Prompt::Chat(vec![Message { role: Role::User, content: content.to_owned() }]),
            choices: 1,
            max_tokens: Some(5),
            most_tokens: None,
            logit_bias: vec![],
            sampling: Sampling { temperature: 0.0, top_p: 1.0, frequency_penalty: 0.0, presence_penalty: 0.0, seed: 1 },
            stop: vec![],
            logprobs: None,
            form: Form::JsonSchema(content.to_owned()),
        })
    }

    fn framed(json: &str) -> Vec<u8> {
        let mut frame = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
        frame.extend_from_slice(json.as_bytes());
        frame
    }

    fn decode(json: &str) -> Result<Option<Command>, FrameError> {
        let mut decoder = Decoder::new();
        decoder.push(&framed(json));
        decoder.next_message()
    }

    #[test]
    fn a_length_over_the_cap_is_refused_before_its_bytes_come() {
        let mut decoder = Decoder::<Command>::new();
        decoder.push(&(u32::try_from(MAX_FRAME).unwrap() + 1).to_be_bytes());
        assert_eq!(decoder.next_message(), Err(FrameError::TooLong { length: MAX_FRAME + 1 }));
        let long = request(&"x".repeat(MAX_FRAME));
        assert!(matches!(encode(&long), Err(EncodeError::TooLong { .. })));
    }

    #[test]
    fn unknown_fields_unknown_messages_and_trailing_bytes_are_refused() {
        assert_eq!(decode(r#"{"cancel":{"id":1}}"#), Ok(Some(Command::Cancel { id: 1 })));
        for json in [
            r#"{"cancel":{"id":1,"why":2}}"#,
            r#"{"cancel":{"id":1,"id":2}}"#,
            r#"{"cancel":{"id":1}} "x""#,
            r#"{"cancel":{"id":-1}}"#,
            r#"{"cancel":{}}"#,
            r#"{"cancel":{"id":1},"generate":{}}"#,
            r#"{"restart":{"id":1}}"#,
            r#""cancel""#,
            "",
        ] {
            assert!(matches!(decode(json), Err(FrameError::Malformed { .. })), "accepted {json}");
        }
    }

    #[test]
    fn deeply_nested_json_is_an_error_not_a_crash() {
        let bomb = "[".repeat(MAX_FRAME / 2);
        assert!(matches!(decode(&bomb), Err(FrameError::Malformed { .. })));
    }

    #[test]
    fn errors_and_debug_output_hold_no_text_of_a_user() {
        let error =
            decode(r#"{"generate":{"id":1,"prompt":{"chat":[{"role":"secret-role","content":"x"}]}}}"#).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"));
        let shown = format!("{:?}", request("my secret"));
        assert!(!shown.contains("secret"), "{shown}");
        let token = TokenLogprob { bytes: b"secret".into(), logprob: 0.0 };
        let logprobs = vec![TokenLogprobs { token: token.clone(), top: vec![token] }];
        let event = Event::Token { id: 1, choice: 0, text: "secret".into(), logprobs: logprobs.clone() };
        assert_eq!(format!("{event:?} {logprobs:?}"), "Token(1, 0) [TokenLogprobs(1 likeliest)]");
    }

    proptest! {
        #[test]
        fn messages_survive_any_split_of_the_stream(texts in prop::collection::vec(".{0,40}", 1..5), cut in 1_usize..64) {
            let sent: Vec<_> = texts.iter().map(|text| request(text)).collect();
            let stream: Vec<u8> = sent.iter().flat_map(|message| encode(message).unwrap()).collect();
            let mut decoder = Decoder::<Command>::new();
            let mut received = vec![];
            for piece in stream.chunks(cut) {
                decoder.push(piece);
                while let Some(message) = decoder.next_message().unwrap() {
                    received.push(message);
                }
            }
            prop_assert!(decoder.is_empty());
            prop_assert_eq!(received, sent);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::<Event>::new();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_message() {}
        }
    }

    #[test]
    fn the_wire_form_is_fixed() {
        let failed = Event::Failed { id: 3, code: Failure::ContextOverflow, prompt_tokens: Some(900) };
        let frame = encode(&failed).unwrap();
        assert_eq!(&frame[..4], &[0, 0, 0, 65]);
        assert_eq!(
            std::str::from_utf8(&frame[4..]).unwrap(),
            r#"{"failed":{"id":3,"code":"context_overflow","prompt_tokens":900}}"#
        );
    }
}
