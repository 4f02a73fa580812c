// SPDX-License-Identifier: Apache-2.0
//! Challenge tokens: made without state, checked by their maker, redeemed once.

use hmac::{Hmac, KeyInit as _, Mac as _};
use key_release_protocol::Token;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroize;

/// The key that authenticates tokens, made anew at every start of the service, so that a restart voids all.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

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

    /// The key of one of several services that share `secret`; `maker` names the service from its start to its end.
    #[must_use]
    pub fn derived(secret: &[u8; 32], maker: &[u8; 8]) -> Self {
        // A key of any length is taken (RFC 2104 section 2), so the alternative never happens.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return Self([0; 32]) };
        mac.update(b"chrysalis/challenge-key/v1");
        mac.update(maker);
        Self(mac.finalize().into_bytes().into())
    }

    /// Makes a token from 15 random bytes (the first of `nonce` is not used) that ends at `expires` (seconds since 1970).
    #[must_use]
    pub fn mint(&self, expires: u64, nonce: [u8; 16]) -> Token {
        self.mint_asking(expires, 0, nonce)
    }

    /// As [`TokenKey::mint`], a token whose redemption costs `bits` bits of work.
    #[must_use]
    pub fn mint_asking(&self, expires: u64, bits: u8, mut nonce: [u8; 16]) -> Token {
        let [first, ..] = &mut nonce;
        *first = bits;
        let mut bytes = [0; Token::LEN];
        let parts = expires.to_be_bytes().into_iter().chain(nonce).chain(self.mac(expires, &nonce));
        bytes.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
        Token::from_bytes(bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_maker_has_a_key_of_its_own() {
        let token = TokenKey::derived(&[1; 32], b"maker  1").mint(1000, [9; 16]);
        assert_eq!(TokenKey::derived(&[1; 32], b"maker  1").check(&token, 0), Ok(()));
        assert_eq!(TokenKey::derived(&[1; 32], b"maker  2").check(&token, 0), Err(TokenError::Mac));
        assert_eq!(TokenKey::derived(&[2; 32], b"maker  1").check(&token, 0), Err(TokenError::Mac));
        assert_eq!(TokenKey::new([1; 32]).check(&token, 0), Err(TokenError::Mac));
    }

    #[test]
    fn every_bit_is_authenticated_and_time_ends_it() {
        let key = TokenKey::new([7; 32]);
        let token = key.mint(1000, [9; 16]);
        assert_eq!((token.expires(), token.work_bits()), (1000, 0));
        assert_eq!(key.mint_asking(1000, 14, [9; 16]).work_bits(), 14);
        assert_eq!(key.check(&token, 999), Ok(()));
        assert_eq!(key.check(&token, 1000), Err(TokenError::Expired { expires: 1000, now: 1000 }));
        assert_eq!(TokenKey::new([8; 32]).check(&token, 0), Err(TokenError::Mac));
        for bit in 0..Token::LEN * 8 {
            let mut bytes = *token.as_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let changed = Token::from_bytes(bytes);
            assert_eq!(key.check(&changed, 0), Err(TokenError::Mac), "bit {bit}");
            assert_ne!(changed.challenge(), token.challenge());
        }
    }
}
