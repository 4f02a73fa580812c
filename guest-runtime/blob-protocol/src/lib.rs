// SPDX-License-Identifier: Apache-2.0
//! How a guest asks its host for files that others have signed (`docs/protocol.md`, "Blobs").
//!
//! What comes is worth what its signature is worth: a host can leave out, exchange and make up anything. Both ends hold the
//! other one for hostile; nothing here reads what a file says.

use core::fmt;

/// Vsock port of the host on which it answers.
pub const PORT: u32 = 7004;

/// Requests on one connection, at most.
pub const MAX_REQUESTS: usize = 64;

/// Length of [`Request::head`]: magic, version, kind, length of the name.
pub const REQUEST_HEAD: usize = 7;

/// Length of [`Answer::head`]: magic, version, what it is, length.
pub const ANSWER_HEAD: usize = 10;

/// What a file is. Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 1: a reference manifest of a driver or of firmware, named as its publisher names it.
    Rim,
    /// 2: an OCSP answer, named by the SHA-256 of the certificate (DER) that it is about, hexadecimal.
    Ocsp,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Rim, Self::Ocsp];

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Rim => 1,
            Self::Ocsp => 2,
        }
    }

    /// The host's directory of such files.
    #[must_use]
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Rim => "rim",
            Self::Ocsp => "ocsp",
        }
    }

    /// Most bytes of such a file.
    #[must_use]
    pub const fn max_len(self) -> usize {
        match self {
            Self::Rim => 256 * 1024,
            Self::Ocsp => 16 * 1024,
        }
    }
}

/// A name: 1 to 96 letters, digits, `-`, `_` and `.`, the first one no `.`. So it is no path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// Takes a text that is a name.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let good = (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.');
        good.then(|| Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The other end does not keep to the form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not of the form of blob requests and answers")
    }
}

impl core::error::Error for Malformed {}

/// What a guest asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Of this kind.
    pub kind: Kind,
    /// By this name.
    pub name: Name,
}

impl Request {
    /// `CBLB` ‖ version 1 ‖ kind ‖ length of the name ‖ name.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        // A name has at most 96 bytes.
        bytes.extend([VERSION, self.kind.number(), u8::try_from(self.name.0.len()).unwrap_or(u8::MAX)]);
        bytes.extend(self.name.0.as_bytes());
        bytes
    }

    /// Kind, and how many bytes of name follow.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn head(bytes: [u8; REQUEST_HEAD]) -> Result<(Kind, usize), Malformed> {
        let [a, b, c, d, version, number, length] = bytes;
        let kind = Kind::ALL.into_iter().find(|kind| kind.number() == number).ok_or(Malformed)?;
        let length = usize::from(length);
        let good = [a, b, c, d] == MAGIC && version == VERSION && (1..=MAX_NAME).contains(&length);
        if good { Ok((kind, length)) } else { Err(Malformed) }
    }

    /// The request of a head's kind, once its name is here.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn named(kind: Kind, name: &[u8]) -> Result<Self, Malformed> {
        let text = core::str::from_utf8(name).map_err(|_| Malformed)?;
        Ok(Self { kind, name: Name::new(text).ok_or(Malformed)? })
    }
}

/// The beginning of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The host has no such file, or none that it gives.
    Absent,
    /// So many bytes follow.
    Present(usize),
}

impl Answer {
    /// `CBLB` ‖ version 1 ‖ 0 absent, 1 present ‖ length u32; what is absent has length 0. The file follows.
    ///
    /// # Errors
    /// [`Malformed`] for a length that no kind has.
    pub fn to_bytes(self) -> Result<[u8; ANSWER_HEAD], Malformed> {
        let (what, length) = match self {
            Self::Absent => (0, 0),
            Self::Present(length) => (1, u32::try_from(length).map_err(|_| Malformed)?),
        };
        let [a, b, c, d] = MAGIC;
        let [e, f, g, h] = length.to_be_bytes();
        Ok([a, b, c, d, VERSION, what, e, f, g, h])
    }

    /// Reads the head of an answer to a request for `kind`. A length of zero, or beyond the kind's, is no answer.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn head(kind: Kind, bytes: [u8; ANSWER_HEAD]) -> Result<Self, Malformed> {
        let [a, b, c, d, version, what, e, f, g, h] = bytes;
        if [a, b, c, d] != MAGIC || version != VERSION {
            return Err(Malformed);
        }
        let length = usize::try_from(u32::from_be_bytes([e, f, g, h])).map_err(|_| Malformed)?;
        match (what, length) {
            (0, 0) => Ok(Self::Absent),
            (1, 1..) if length <= kind.max_len() => Ok(Self::Present(length)),
            _ => Err(Malformed),
        }
    }
}

const MAGIC: [u8; 4] = *b"CBLB";
const VERSION: u8 = 1;
const MAX_NAME: usize = 96;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_path() {
        for good in ["NV_GPU_DRIVER_GH100_550.144.03", "a", "-", &"f".repeat(64), &"a".repeat(96)] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", ".a", "a/b", "/a", "a\\b", "a b", "a\0", "é", "a\n", &"a".repeat(97)] {
            assert_eq!(Name::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn requests_are_read_as_they_were_written_and_in_no_other_form() {
        for kind in Kind::ALL {
            let request = Request { kind, name: Name::new("NV_1.2").unwrap() };
            let bytes = request.to_bytes();
            let (head, name) = bytes.split_at(REQUEST_HEAD);
            let (read, length) = Request::head(head.try_into().unwrap()).unwrap();
            assert_eq!((read, length), (kind, name.len()));
            assert_eq!(Request::named(read, name), Ok(request));
            // Any other byte of magic and version, and kinds and lengths that are none.
            for place in 0..5 {
                for byte in (0..=u8::MAX).filter(|byte| *byte != bytes[place]) {
                    let mut changed: [u8; REQUEST_HEAD] = head.try_into().unwrap();
                    changed[place] = byte;
                    assert_eq!(Request::head(changed), Err(Malformed), "{place} {byte}");
                }
            }
        }
        for (kind, length) in [(0, 1), (3, 1), (255, 1), (1, 0), (1, 97), (1, 255)] {
            let [a, b, c, d] = MAGIC;
            assert_eq!(Request::head([a, b, c, d, VERSION, kind, length]), Err(Malformed), "{kind} {length}");
        }
        assert_eq!(Request::named(Kind::Rim, b"../etc"), Err(Malformed));
        assert_eq!(Request::named(Kind::Rim, b"\xff"), Err(Malformed));
    }

    #[test]
    fn answers_are_bounded_by_their_kind() {
        for kind in Kind::ALL {
            for answer in [Answer::Absent, Answer::Present(1), Answer::Present(kind.max_len())] {
                assert_eq!(Answer::head(kind, answer.to_bytes().unwrap()), Ok(answer));
            }
            let longer = Answer::Present(kind.max_len() + 1).to_bytes().unwrap();
            assert_eq!(Answer::head(kind, longer), Err(Malformed));
            assert_eq!(Answer::head(kind, Answer::Present(0).to_bytes().unwrap()), Err(Malformed));
        }
        let mut absent = Answer::Absent.to_bytes().unwrap();
        absent[9] = 1;
        assert_eq!(Answer::head(Kind::Rim, absent), Err(Malformed), "absent, and bytes follow");
        let good = Answer::Absent.to_bytes().unwrap();
        for place in 0..6 {
            for byte in (0..=u8::MAX).filter(|byte| *byte != good[place]) {
                let mut changed = good;
                changed[place] = byte;
                assert_eq!(Answer::head(Kind::Ocsp, changed), Err(Malformed), "{place} {byte}");
            }
        }
        #[cfg(target_pointer_width = "64")]
        assert_eq!(Answer::Present(1 << 32).to_bytes(), Err(Malformed));
    }
}
