// SPDX-License-Identifier: Apache-2.0
//! ECDSA signatures and hashes, as quotes, collateral, certificates and reports have them.
//!
//! Two libraries stand behind one set of functions: AWS-LC natively, RustCrypto where AWS-LC does not compile, which is
//! WebAssembly. What is accepted must not depend on that: public keys are uncompressed points (SEC 1, section 2.3.3) of the
//! exact length and nothing else, signatures are strict DER (RFC 3279, section 2.2.3) or two numbers of fixed length, and
//! tests hold the two libraries against each other.
//!
//! Only verification: nothing here is secret, and nothing is signed.

#[cfg(not(target_family = "wasm"))]
mod native;
#[cfg(any(test, target_family = "wasm"))]
mod portable;

#[cfg(not(target_family = "wasm"))]
use native as library;
#[cfg(target_family = "wasm")]
use portable as library;

/// Curve, hash and form of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// P-256 with SHA-256, r and s in DER.
    P256Der,
    /// P-256 with SHA-256, r and s of 32 bytes each.
    P256Fixed,
    /// P-384 with SHA-384, r and s in DER.
    P384Der,
    /// P-384 with SHA-384, r and s of 48 bytes each.
    P384Fixed,
}

/// A hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// For names of certificates in OCSP answers alone: no signature rests on it.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
}

impl Scheme {
    /// Whether the holder of the key at `point` (an uncompressed point) signed `message`.
    #[must_use]
    pub fn verifies(self, point: &[u8], message: &[u8], signature: &[u8]) -> bool {
        self.is_uncompressed(point) && library::verifies(self, point, message, signature)
    }

    /// AWS-LC takes other forms of keys, too; evidence has none of them.
    fn is_uncompressed(self, point: &[u8]) -> bool {
        let len = match self {
            Self::P256Der | Self::P256Fixed => 65,
            Self::P384Der | Self::P384Fixed => 97,
        };
        point.len() == len && point.first() == Some(&UNCOMPRESSED)
    }
}

impl Hash {
    /// The digest of `bytes`.
    #[must_use]
    pub fn digest(self, bytes: &[u8]) -> Vec<u8> {
        library::digest(self, bytes)
    }
}

const UNCOMPRESSED: u8 = 4;

#[cfg(test)]
mod tests;
