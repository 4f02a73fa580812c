// SPDX-License-Identifier: Apache-2.0
//! What the guest's processes say to each other, the host's one word, and what it says before a client speaks.

use std::fmt::Debug;

use attester_protocol::{ControlAnswer, ControlRequest, Request, Response, ServingAnswer, ServingRequest, frame};
use drain_protocol::Heard;
use engine_protocol::{Command, Decoder, Event};
use gpu_protocol::{GpuAnswer, GpuRequest};
use proxy_protocol::Source;
use serde::{Serialize, de::DeserializeOwned};

/// Who speaks (`c` and `C`: init and the attester on the control socket, `s` and `S`: serve and the attester, `e` and `E`: serve and
/// the engine, `g` and `G`: init and the collector of GPU evidence), then the bytes of a connection; `d` and what the host says;
/// `p` and what a proxy says before a client's bytes.
///
/// A connection's bytes mean the same however they are cut, and a message that was read can be written and read again.
pub fn frames(bytes: &[u8]) -> bool {
    let Some((who, stream)) = bytes.split_first() else { return false };
    match who {
        b'c' => blocking::<Request<ControlRequest>>(stream),
        b'C' => blocking::<Response<ControlAnswer>>(stream),
        b's' => blocking::<Request<ServingRequest>>(stream),
        b'S' => blocking::<Response<ServingAnswer>>(stream),
        b'g' => blocking::<GpuRequest>(stream),
        b'G' => blocking::<GpuAnswer>(stream),
        b'e' => decoded::<Command>(stream, written_again),
        b'E' => decoded::<Event>(stream, |event| !is_finite(event) || written_again(event)),
        b'd' => drain(stream),
        b'p' => header(stream),
        _ => false,
    }
}

/// Frames of the attester's protocol, read from a stream: whole ones up to the first that is none.
fn blocking<T: Serialize + DeserializeOwned + PartialEq + Debug>(stream: &[u8]) -> bool {
    let mut rest = stream;
    let mut read = 0;
    loop {
        let before = rest;
        match frame::read::<T>(&mut rest) {
            Ok(Some(message)) => {
                read += 1;
                let body = &before[4..before.len() - rest.len()];
                assert_eq!(
                    frame::decode::<T>(body).ok().as_ref(),
                    Some(&message),
                    "read from a stream, and as it lies"
                );
                let again = frame::encode(&message).expect("what was read can be written");
                assert!(
                    frame::body_length(*again.first_chunk().expect("a length")).is_ok_and(|len| len + 4 == again.len())
                );
                assert_eq!(frame::decode::<T>(&again[4..]).ok().as_ref(), Some(&message), "written and read again");
            }
            Ok(None) => return read > 0,
            Err(_) => return false,
        }
    }
}

/// Frames of the engine's protocol, by a decoder that takes pieces of any length.
fn decoded<T: Serialize + DeserializeOwned + PartialEq + Debug>(stream: &[u8], check: impl Fn(&T) -> bool) -> bool {
    let whole = pieces::<T>(std::iter::once(stream));
    let cut = 1 + stream.len() % 13;
    assert_eq!(whole, pieces::<T>(stream.chunks(cut)), "cut at every {cut} bytes");
    let (messages, good) = whole;
    assert!(messages.iter().all(check), "a message that cannot be written and read again");
    good && !messages.is_empty()
}

/// All messages up to the first fault, and whether there was none and nothing is left.
fn pieces<'a, T: DeserializeOwned>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<T>, bool) {
    let mut decoder = Decoder::<T>::new();
    let mut messages = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(_) => return (messages, false),
            }
        }
    }
    (messages, decoder.is_empty())
}

fn written_again<T: Serialize + DeserializeOwned + PartialEq>(message: &T) -> bool {
    let mut decoder = Decoder::<T>::new();
    engine_protocol::encode(message).is_ok_and(|frame| {
        decoder.push(&frame);
        decoder.next_message().is_ok_and(|read| read.as_ref() == Some(message))
    })
}

/// JSON has no other numbers; a reader that is given `1e39` for single precision takes it as infinite, and `serve` refuses that.
fn is_finite(event: &Event) -> bool {
    match event {
        Event::Vector { values, .. } => values.iter().all(|value| value.is_finite()),
        Event::Token { logprobs, .. } => {
            let mut tokens = logprobs.iter().flat_map(|token| token.top.iter().chain([&token.token]));
            tokens.all(|token| token.logprob.is_finite())
        }
        _ => true,
    }
}

/// One form, and nothing that follows a beginning of another makes it a request.
fn drain(bytes: &[u8]) -> bool {
    let heard = drain_protocol::hear(bytes);
    assert_eq!(heard == Heard::Drain, bytes == drain_protocol::REQUEST);
    for end in 0..bytes.len() {
        let part = drain_protocol::hear(&bytes[..end]);
        assert!(part != Heard::Other || heard == Heard::Other, "what was refused was taken later");
    }
    heard == Heard::Drain
}

/// As `serve` reads it: never a byte behind the header, no refused beginning of a good one, the same address written again.
fn header(bytes: &[u8]) -> bool {
    let mut length = 0;
    let source = loop {
        match proxy_protocol::hear(&bytes[..length]) {
            Ok(proxy_protocol::Heard::Whole(source)) => break source,
            Ok(proxy_protocol::Heard::Part(wanted)) => {
                assert!(length < wanted && wanted <= proxy_protocol::MAX_BYTES, "what it wants has an end");
                if length == bytes.len() {
                    return false;
                }
                length = wanted.min(bytes.len());
            }
            Err(refused) => {
                let whole = proxy_protocol::hear(bytes);
                assert!(whole == Err(refused), "what was refused was taken later");
                return false;
            }
        }
    };
    for end in 0..length {
        assert!(matches!(proxy_protocol::hear(&bytes[..end]), Ok(proxy_protocol::Heard::Part(_))), "taken too early");
    }
    let again = match source {
        Source::Local => proxy_protocol::LOCAL.to_vec(),
        Source::Client(client) => proxy_protocol::header(client, client),
    };
    let written = proxy_protocol::hear(&again);
    let same = |client: std::net::SocketAddr| (client.ip().to_canonical(), client.port());
    assert!(match (source, written) {
        (Source::Client(a), Ok(proxy_protocol::Heard::Whole(Source::Client(b)))) => same(a) == same(b),
        (Source::Local, Ok(proxy_protocol::Heard::Whole(Source::Local))) => true,
        _ => false,
    });
    true
}
