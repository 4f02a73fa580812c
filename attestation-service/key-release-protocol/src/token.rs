// SPDX-License-Identifier: Apache-2.0
//! Challenge tokens as both sides see them. Only the service can tell a genuine one.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use types::Sha256Digest;

/// A token: expiry u64 big-endian ‖ nonce\[16\] ‖ HMAC-SHA-256(key, label ‖ expiry ‖ nonce)\[32\]. The first byte of the
/// nonce is the bits of work that the service asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token([u8; Token::LEN]);

impl Token {
    /// Size in bytes.
    pub const LEN: usize = 56;

    /// Wraps the bytes of a token, its own or a peer's.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The challenge that evidence must answer: SHA-256("chrysalis/challenge/v1" ‖ token).
    #[must_use]
    pub fn challenge(&self) -> [u8; 32] {
        *Sha256Digest::of_parts(&[b"chrysalis/challenge/v1", &self.0]).as_bytes()
    }

    /// Names the token where its redemption is recorded.
    #[must_use]
    pub fn digest(&self) -> Sha256Digest {
        Sha256Digest::of(&self.0)
    }

    /// End of its validity, seconds since 1970.
    #[must_use]
    pub fn expires(&self) -> u64 {
        self.parts().0
    }

    /// Bits of work that its redemption costs, if the service made it.
    #[must_use]
    pub fn work_bits(&self) -> u8 {
        let [bits, ..] = self.parts().1;
        bits
    }

    /// Expiry, nonce and MAC.
    #[must_use]
    pub fn parts(&self) -> (u64, [u8; 16], [u8; 32]) {
        let mut bytes = self.0.iter().copied();
        let mut next = || bytes.next().unwrap_or_default();
        let expires = core::array::from_fn(|_| next());
        let nonce = core::array::from_fn(|_| next());
        (u64::from_be_bytes(expires), nonce, core::array::from_fn(|_| next()))
    }
}

impl core::fmt::Debug for Token {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Token({})", self.digest())
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        hex::serde::serialize(self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; Self::LEN];
        let lower = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match hex::decode_to_slice(&text, &mut bytes) {
            Ok(()) if lower => Ok(Self(bytes)),
            _ => Err(de::Error::custom("a token is written with 112 lower-case hexadecimal digits")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_strict() {
        let token = Token::from_bytes([0xab; 56]);
        let text = serde_json::to_string(&token).unwrap();
        assert_eq!(serde_json::from_str::<Token>(&text).unwrap(), token);
        assert!(serde_json::from_str::<Token>(&text.to_uppercase()).is_err());
        assert!(serde_json::from_str::<Token>("\"00\"").is_err());
    }
}
