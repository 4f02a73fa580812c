// SPDX-License-Identifier: Apache-2.0
//! What goes over the wire (`docs/protocol.md`, "Attestation service").

use release::log::EntryProof;
use serde::{Deserialize, Serialize};
use types::{Base64, Document, Hex32, ModelId, canonical};

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

/// Answer to a key release (`chrysalis/key-release/v1`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyReleaseAnswer {
    /// `chrysalis/key-release/v1`.
    pub schema: String,
    /// The model whose key this is.
    pub model: ModelId,
    /// Version of the key.
    pub key_version: u32,
    /// HPKE's encapsulated key.
    pub enc: Hex32,
    /// The sealed key: 32 bytes and the tag.
    #[serde(with = "hex::serde")]
    pub ciphertext: [u8; 48],
    /// Proof that the release was authorised on the audit log before the key was sealed.
    pub audit: EntryProof,
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
    const SCHEMA: &'static str = "chrysalis/key-release/v1";
    const MAX_BYTES: usize = 64 * 1024;

    fn schema(&self) -> &str {
        &self.schema
    }
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
}
