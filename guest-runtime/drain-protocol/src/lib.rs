// SPDX-License-Identifier: Apache-2.0
//! How the host tells a guest that it shall finish (`docs/protocol.md`, "Drain").
//!
//! The host can end a guest at any time, so the message needs no proof: all it can do is to have the guest end its
//! connections in an order that costs no client an answer. There is one form of it, and no other one that takes it back.

/// Vsock port of the guest on which it listens for [`REQUEST`].
pub const PORT: u32 = 7003;

/// All that the host can say.
pub const REQUEST: [u8; 8] = *b"drain 1\n";

/// The guest's answer to [`REQUEST`], also when it was told before. Whatever else is said gets none.
pub const ANSWER: [u8; 9] = *b"draining\n";

/// What the bytes of a connection are so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The beginning of [`REQUEST`].
    Part,
    /// [`REQUEST`].
    Drain,
    /// Something else: nothing that could follow makes it a request.
    Other,
}

/// Judges all bytes that a connection brought, from its first on. Bytes beyond a request make it [`Heard::Other`] where
/// they came together with it; who has heard [`Heard::Drain`] reads on no further.
#[must_use]
pub fn hear(bytes: &[u8]) -> Heard {
    if bytes == REQUEST.as_slice() {
        Heard::Drain
    } else if REQUEST.starts_with(bytes) {
        Heard::Part
    } else {
        Heard::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_form() {
        for length in 0..REQUEST.len() {
            assert_eq!(hear(&REQUEST[..length]), Heard::Part, "{length}");
        }
        assert_eq!(hear(&REQUEST), Heard::Drain);
        // Any other byte at any place, and anything behind it.
        for place in 0..REQUEST.len() {
            for byte in (0..=u8::MAX).filter(|byte| *byte != REQUEST[place]) {
                let mut bytes = REQUEST;
                bytes[place] = byte;
                assert_eq!(hear(&bytes), Heard::Other, "{place} {byte}");
                assert_eq!(hear(&bytes[..=place]), Heard::Other, "{place} {byte}");
            }
        }
        for byte in 0..=u8::MAX {
            assert_eq!(hear(&[REQUEST.as_slice(), &[byte]].concat()), Heard::Other, "{byte}");
        }
    }
}
