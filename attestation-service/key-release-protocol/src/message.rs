// SPDX-License-Identifier: Apache-2.0
//! What goes over the wire (`docs/protocol.md`, "Attestation service").

use release::log::EntryProof;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use types::{Base64, CanonicalError, Document, Hex32, ModelId, Tenants, canonical};

use crate::{Token, Work};

/// Answer to `POST /v1/challenges`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChallengeAnswer {
    /// Seconds since 1970 at which the token ends.
    pub expires: u64,
    /// The token.
    pub token: Token,
    /// What the request must bring beside evidence; nothing, as long as the service is not busy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub work: Option<Work>,
}

/// `POST /v1/key-release` (`chrysalis/key-release-request/v1`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyReleaseRequest {
    /// `chrysalis/key-release-request/v1`.
    pub schema: String,
    /// The token whose challenge the evidence answers.
    pub token: Token,
    /// The model whose key is asked for.
    pub model: ModelId,
    /// The canonical evidence document.
    pub evidence: Base64<MAX_EVIDENCE>,
    /// What solves the work that the challenge asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub work: Option<u64>,
}

/// Answer to a key release: `chrysalis/key-release/v1` for a key alone; `chrysalis/key-release/v2` where the document of
/// the model's tenants is sealed with it, so that guests which know nothing of tenants refuse it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyReleaseAnswer {
    /// What [`KeyReleaseAnswer::schema_of`] says.
    pub schema: String,
    /// The model whose key this is.
    pub model: ModelId,
    /// Version of the key.
    pub key_version: u32,
    /// HPKE's encapsulated key.
    pub enc: Hex32,
    /// What is sealed.
    pub ciphertext: Sealed,
    /// Proof that the release was authorised on the audit log before the key was sealed.
    pub audit: EntryProof,
}

/// A sealed key: 32 bytes, the document of tenants where there is one, and a tag of 16 bytes. Written in hexadecimal.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(Vec<u8>);

impl Sealed {
    /// Wraps bytes; `None` where they are too few or too many.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (Self::LEAST..=Self::MOST).contains(&bytes.len()).then_some(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// Whether a document of tenants is sealed with the key.
    #[must_use]
    pub fn has_tenants(&self) -> bool {
        self.0.len() > Self::LEAST
    }

    /// Fewest bytes: a key and the tag.
    pub const LEAST: usize = 48;
    /// Most bytes.
    pub const MOST: usize = Self::LEAST + Tenants::MAX_BYTES;
}

impl core::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

impl Serialize for Sealed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Sealed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // Upper case is refused with the form, which is written in lower case.
        let bytes = if text.len() > 2 * Self::MOST { None } else { hex::decode(&text).ok() };
        bytes.and_then(Self::new).ok_or_else(|| de::Error::custom("not the hexadecimal digits of a sealed key"))
    }
}

impl KeyReleaseRequest {
    /// Token and work as they stand at the end of the canonical form, in constant time: the rest of `body` is not
    /// looked at, so that this establishes nothing about it. `None` where it does not end so.
    #[must_use]
    pub fn end_of(body: &[u8]) -> Option<(Token, Option<u64>)> {
        let end = core::str::from_utf8(body.get(body.len().saturating_sub(END)..)?).ok()?;
        let (_, end) = end.rsplit_once("\"token\":")?;
        let end = format!("{{\"token\":{end}");
        let End { token, work } = canonical::from_bytes(end.as_bytes(), end.len()).ok()?;
        Some((token, work))
    }
}

/// The last fields of a request.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    token: Token,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    work: Option<u64>,
}

impl Document for KeyReleaseRequest {
    const SCHEMA: &'static str = "chrysalis/key-release-request/v1";
    const MAX_BYTES: usize = 3 << 20;

    fn schema(&self) -> &str {
        &self.schema
    }
}

impl Document for KeyReleaseAnswer {
    /// Of an answer with a key alone.
    const SCHEMA: &'static str = "chrysalis/key-release/v1";
    /// Two digits for each sealed byte, and the rest.
    const MAX_BYTES: usize = 2 * Sealed::MOST + 64 * 1024;

    fn schema(&self) -> &str {
        &self.schema
    }

    fn from_canonical(bytes: &[u8]) -> Result<Self, CanonicalError> {
        let answer: Self = canonical::from_bytes(bytes, Self::MAX_BYTES)?;
        let expected = Self::schema_of(&answer.ciphertext);
        if answer.schema == expected { Ok(answer) } else { Err(CanonicalError::Schema { expected }) }
    }
}

impl KeyReleaseAnswer {
    /// The schema of an answer in which this is sealed.
    #[must_use]
    pub fn schema_of(sealed: &Sealed) -> &'static str {
        if sealed.has_tenants() { Self::WITH_TENANTS } else { Self::SCHEMA }
    }

    /// Of an answer with a key and the document of its model's tenants.
    pub const WITH_TENANTS: &'static str = "chrysalis/key-release/v2";
}

/// Most bytes of an evidence document.
pub const MAX_EVIDENCE: usize = 2 << 20;
/// `"token":"…","work":…}` with the largest number; before it stands the schema, of which a part is read, too.
const END: usize = 9 + 2 * Token::LEN + 9 + 16 + 1;

#[cfg(test)]
mod tests {
    use types::Blake3Digest;

    use super::*;

    #[test]
    fn token_and_work_stand_at_the_end() {
        let token = Token::from_bytes([0xab; Token::LEN]);
        for work in [None, Some(0), Some((1 << 53) - 1)] {
            let request = KeyReleaseRequest {
                schema: KeyReleaseRequest::SCHEMA.into(),
                token,
                model: ModelId::new("model", "1", Blake3Digest::of(b"m")).unwrap(),
                evidence: Base64::new(vec![1; 1000]).unwrap(),
                work,
            };
            let body = request.to_canonical().unwrap();
            assert_eq!(KeyReleaseRequest::end_of(&body), Some((token, work)));
            for cut in [0, 1, 50, body.len() - 1] {
                assert_eq!(KeyReleaseRequest::end_of(&body[..cut]), None, "{cut}");
            }
            assert_eq!(KeyReleaseRequest::end_of(&[body.as_slice(), b" x"].concat()), None);
        }
        assert_eq!(KeyReleaseRequest::end_of(&[0xff; 300]), None);
        let other = format!("{{\"token\":\"{}\",\"x\":1}}", "ab".repeat(Token::LEN));
        assert_eq!(KeyReleaseRequest::end_of(other.as_bytes()), None);
    }

    /// A guest that knows one version alone refuses the other by its name, before it opens anything.
    #[test]
    fn what_is_sealed_decides_the_schema() {
        let audit = EntryProof {
            index: 0,
            leaf: types::Sha256Digest::of(b"leaf"),
            tree_size: 1,
            path: vec![],
            checkpoint: "note".to_owned(),
        };
        let answer = |schema: &str, length: usize| KeyReleaseAnswer {
            schema: schema.to_owned(),
            model: ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap(),
            key_version: 1,
            enc: Hex32::new([1; 32]),
            ciphertext: Sealed::new(vec![0xab; length]).unwrap(),
            audit: audit.clone(),
        };
        let (one, two) = (KeyReleaseAnswer::SCHEMA, KeyReleaseAnswer::WITH_TENANTS);
        for (schema, length, good) in
            [(one, 48, true), (two, 48, false), (one, 49, false), (two, 49, true), (two, Sealed::MOST, true)]
        {
            let answer = answer(schema, length);
            let bytes = answer.to_canonical().unwrap();
            let read = KeyReleaseAnswer::from_canonical(&bytes);
            assert_eq!(read.is_ok(), good, "{schema} {length}");
            assert!(read.is_err() || read == Ok(answer));
        }
        assert!(Sealed::new(vec![0; 47]).is_none() && Sealed::new(vec![0; Sealed::MOST + 1]).is_none());
        let good = String::from_utf8(answer(one, 48).to_canonical().unwrap()).unwrap();
        let digits = "ab".repeat(48);
        for bad in [digits.to_uppercase(), digits[2..].to_owned(), digits[1..].to_owned(), format!("zz{digits}")] {
            assert!(KeyReleaseAnswer::from_canonical(good.replace(&digits, &bad).as_bytes()).is_err(), "{bad}");
        }
    }
}
