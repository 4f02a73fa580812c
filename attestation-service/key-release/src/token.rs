// SPDX-License-Identifier: Apache-2.0
//! Challenge tokens: made without state, checked by their maker, redeemed once.

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use types::Sha256Digest;
use zeroize::Zeroize;

/// The key that authenticates tokens, made anew at every start of the service, so that a restart voids all.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

/// A token: expiry u64 big-endian ‖ nonce\[16\] ‖ HMAC-SHA-256(key, label ‖ expiry ‖ nonce)\[32\].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token([u8; Token::LEN]);

/// Why a token was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not made by this service since its start.
    #[error("the token was not made by this service since its start")]
    Mac,
    /// Too old.
    #[error("the token expired at {expires}, it is {now} (seconds since 1970)")]
    Expired {
        /// End of its validity.
        expires: u64,
        /// The service's time.
        now: u64,
    },
}

impl TokenKey {
    /// Takes 32 random bytes.
    #[must_use]
    pub const fn new(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// Makes a token from 16 random bytes that ends at `expires` (seconds since 1970).
    #[must_use]
    pub fn mint(&self, expires: u64, nonce: [u8; 16]) -> Token {
        let mut bytes = [0; Token::LEN];
        let parts = expires.to_be_bytes().into_iter().chain(nonce).chain(self.mac(expires, &nonce));
        bytes.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
        Token(bytes)
    }

    /// Checks who made the token, and its age. That it is redeemed only once is for the caller's store.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn check(&self, token: &Token, now: u64) -> Result<(), TokenError> {
        let (expires, nonce, mac) = token.parts();
        if !bool::from(self.mac(expires, &nonce).ct_eq(&mac)) {
            return Err(TokenError::Mac);
        }
        if now >= expires { Err(TokenError::Expired { expires, now }) } else { Ok(()) }
    }

    fn mac(&self, expires: u64, nonce: &[u8; 16]) -> [u8; 32] {
        // A key of any length is taken (RFC 2104 section 2), so the alternative never happens.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { return [0; 32] };
        mac.update(b"chrysalis/challenge-token/v1");
        mac.update(&expires.to_be_bytes());
        mac.update(nonce);
        mac.finalize().into_bytes().into()
    }
}

impl Drop for TokenKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Token {
    /// Size in bytes.
    pub const LEN: usize = 56;

    /// Wraps the bytes of a token from a peer.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
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

    fn parts(&self) -> (u64, [u8; 16], [u8; 32]) {
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
    fn every_bit_is_authenticated_and_time_ends_it() {
        let key = TokenKey::new([7; 32]);
        let token = key.mint(1000, [9; 16]);
        assert_eq!(token.expires(), 1000);
        assert_eq!(key.check(&token, 999), Ok(()));
        assert_eq!(key.check(&token, 1000), Err(TokenError::Expired { expires: 1000, now: 1000 }));
        assert_eq!(TokenKey::new([8; 32]).check(&token, 0), Err(TokenError::Mac));
        for bit in 0..Token::LEN * 8 {
            let mut changed = token;
            changed.0[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.check(&changed, 0), Err(TokenError::Mac), "bit {bit}");
            assert_ne!(changed.challenge(), token.challenge());
        }
    }

    #[test]
    fn text_form_is_strict() {
        let token = TokenKey::new([7; 32]).mint(1000, [0xab; 16]);
        let text = serde_json::to_string(&token).unwrap();
        assert_eq!(serde_json::from_str::<Token>(&text).unwrap(), token);
        assert!(serde_json::from_str::<Token>(&text.to_uppercase()).is_err());
        assert!(serde_json::from_str::<Token>("\"00\"").is_err());
    }
}
