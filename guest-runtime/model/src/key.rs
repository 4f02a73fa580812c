// SPDX-License-Identifier: Apache-2.0
//! The key of a pack.

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use subtle::ConstantTimeEq;
use thiserror::Error;
use types::Hex32;
use zeroize::{Zeroize, Zeroizing};

/// A 256-bit key, wiped from memory when dropped. Each object is encrypted under keys derived from it.
pub struct Key(Zeroizing<[u8; KEY_BYTES]>);

/// Why a key was refused or could not be made.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum KeyError {
    /// Neither 32 raw bytes nor 64 hexadecimal digits.
    #[error("a key is 32 raw bytes, or 64 hexadecimal digits with at most one line break after them")]
    Form,
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
}

impl Key {
    /// Takes a key; the caller's copy stays the caller's to wipe.
    #[must_use]
    pub fn new(bytes: &[u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(*bytes))
    }

    /// A fresh key from the system's random bytes.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn random() -> Result<Self, KeyError> {
        let mut key = Self(Zeroizing::new([0; KEY_BYTES]));
        getrandom::fill(key.0.as_mut()).map_err(|_| KeyError::Random)?;
        Ok(key)
    }

    /// Reads the content of a key file: 32 raw bytes, or 64 hexadecimal digits and perhaps a line break.
    ///
    /// # Errors
    /// [`KeyError::Form`].
    pub fn from_file_content(content: &[u8]) -> Result<Self, KeyError> {
        if let Ok(raw) = <&[u8; KEY_BYTES]>::try_from(content) {
            return Ok(Self::new(raw));
        }
        let digits = content.strip_suffix(b"\n").unwrap_or(content);
        let mut key = Self(Zeroizing::new([0; KEY_BYTES]));
        hex::decode_to_slice(digits, key.0.as_mut()).map_err(|_| KeyError::Form)?;
        Ok(key)
    }

    /// The key as 64 hexadecimal digits, wiped when dropped.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.0.as_ref()))
    }

    /// What a pack publishes about its key: HKDF-SHA256 without salt, info `chrysalis/pack/commit/v1`. AES-GCM by itself
    /// does not bind a ciphertext to one key; this does.
    pub(crate) fn commitment(&self) -> Result<Hex32, KeyError> {
        let prk = Salt::new(HKDF_SHA256, &[]).extract(self.0.as_ref());
        let mut commitment = [0; KEY_BYTES];
        let okm = prk.expand(&[COMMITMENT_INFO], CommitmentLength).map_err(|_| KeyError::Form)?;
        okm.fill(&mut commitment).map_err(|_| KeyError::Form)?;
        Ok(Hex32::new(commitment))
    }

    /// Whether `commitment` is this key's, compared in constant time.
    pub(crate) fn has_commitment(&self, commitment: &Hex32) -> bool {
        let Ok(mut own) = self.commitment().map(|own| *own.as_bytes()) else {
            return false;
        };
        let is_equal = own.ct_eq(commitment.as_bytes()).into();
        own.zeroize();
        is_equal
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(secret)")
    }
}

struct CommitmentLength;

impl KeyType for CommitmentLength {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

const KEY_BYTES: usize = 32;
const COMMITMENT_INFO: &[u8] = b"chrysalis/pack/commit/v1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_and_hexadecimal_files_are_read_and_others_refused() {
        let key = Key::new(&[0xab; 32]);
        let hex = key.to_hex();
        for content in [&[0xab; 32][..], hex.as_bytes(), format!("{}\n", *hex).as_bytes()] {
            assert_eq!(Key::from_file_content(content).unwrap().bytes(), key.bytes());
        }
        let long = format!("{}\n\n", *hex);
        for content in [&b""[..], &[0xab; 31], &[0xab; 33], &hex.as_bytes()[1..], long.as_bytes(), &[b'x'; 64]] {
            assert_eq!(Key::from_file_content(content).unwrap_err(), KeyError::Form);
        }
    }

    #[test]
    fn the_commitment_is_hkdf_and_tells_keys_apart() {
        // HKDF-SHA256 of bytes 0..32 by another implementation (Python's hmac and hashlib).
        let key = Key::new(&std::array::from_fn(|i| u8::try_from(i).unwrap()));
        let expected = "0aa20bf712234e9aebea56f049ed79c4f92ddbbe40b92dc0f9e6dccb2fa5ebf2";
        assert_eq!(key.commitment().unwrap().to_string(), expected);
        assert!(key.has_commitment(&expected.parse().unwrap()));
        assert!(!Key::new(&[0; 32]).has_commitment(&expected.parse().unwrap()));
    }

    #[test]
    fn a_key_is_never_printed() {
        assert_eq!(format!("{:?}", Key::new(&[7; 32])), "Key(secret)");
    }
}
