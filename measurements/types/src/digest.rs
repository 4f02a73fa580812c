// SPDX-License-Identifier: Apache-2.0
//! Digests as distinct types, written as lower-case hexadecimal.

use core::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::Digest as _;

/// Why a digest's text form was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The text has another length than twice the digest's size.
    #[error("a digest of {expected} bytes is written with {} hexadecimal digits, found {found}", expected * 2)]
    Length {
        /// Size of the digest in bytes.
        expected: usize,
        /// Length of the text in characters.
        found: usize,
    },
    /// A character is not one of `0-9a-f`.
    #[error("a digest is written in lower-case hexadecimal")]
    NotLowerHex,
}

macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Size in bytes.
            pub const LEN: usize = $len;
            /// All bytes zero.
            pub const ZERO: Self = Self([0; $len]);

            /// Wraps bytes that are already a digest.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The digest's bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Takes a digest from a slice of exactly [`Self::LEN`] bytes.
            ///
            /// # Errors
            /// [`DigestError::Length`] when the slice has another length.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, DigestError> {
                <[u8; $len]>::try_from(bytes)
                    .map(Self)
                    .map_err(|_| DigestError::Length { expected: $len, found: bytes.len() })
            }
        }

        impl core::str::FromStr for $name {
            type Err = DigestError;

            fn from_str(text: &str) -> Result<Self, DigestError> {
                decode_lower_hex(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), hex::encode(self.0))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&hex::encode(self.0))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

digest_type!(
    /// A SHA-256 digest.
    Sha256Digest,
    32
);
digest_type!(
    /// A SHA-384 digest, the size of every TDX measurement register.
    Sha384Digest,
    48
);
digest_type!(
    /// A BLAKE3 digest (256 bits).
    Blake3Digest,
    32
);

impl Sha256Digest {
    /// SHA-256 of `data`.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        Self(sha2::Sha256::digest(data).into())
    }

    /// SHA-256 of the concatenation of `parts`. Callers fix the parts' lengths.
    #[must_use]
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut hasher = sha2::Sha256::new();
        for part in parts {
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }
}

impl Sha384Digest {
    /// SHA-384 of `data`.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        Self(sha2::Sha384::digest(data).into())
    }

    /// SHA-384 of the concatenation of `parts`. Callers fix the parts' lengths.
    #[must_use]
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut hasher = sha2::Sha384::new();
        for part in parts {
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }

    /// The register's value after it was extended with `event`:
    /// SHA-384(old ‖ event) (Intel TDX module base specification, TDG.MR.RTMR.EXTEND).
    #[must_use]
    pub fn extend(&self, event: &Self) -> Self {
        Self::of_parts(&[&self.0, &event.0])
    }
}

impl Blake3Digest {
    /// BLAKE3 of `data`.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        Self(*blake3::hash(data).as_bytes())
    }
}

pub(crate) fn decode_lower_hex<const N: usize>(text: &str) -> Result<[u8; N], DigestError> {
    if text.len() != N * 2 {
        return Err(DigestError::Length { expected: N, found: text.len() });
    }
    if !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(DigestError::NotLowerHex);
    }
    let mut out = [0; N];
    hex::decode_to_slice(text, &mut out).map_err(|_| DigestError::NotLowerHex)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_case_and_wrong_lengths_are_refused() {
        let text = Sha256Digest::of(b"x").to_string();
        assert_eq!(text.parse::<Sha256Digest>(), Ok(Sha256Digest::of(b"x")));
        assert_eq!(text.to_uppercase().parse::<Sha256Digest>(), Err(DigestError::NotLowerHex));
        assert!(matches!(text[2..].parse::<Sha256Digest>(), Err(DigestError::Length { .. })));
    }

    #[test]
    fn extend_is_the_hash_of_old_and_event() {
        let event = Sha384Digest::of(b"event");
        let mut both = [0; 96];
        both[48..].copy_from_slice(event.as_bytes());
        assert_eq!(Sha384Digest::ZERO.extend(&event), Sha384Digest::of(&both));
    }
}
