// SPDX-License-Identifier: Apache-2.0
//! By RustCrypto.

use p256::ecdsa::signature::Verifier as _;
use sha2::Digest as _;

use crate::{Hash, Scheme};

pub(crate) fn verifies(scheme: Scheme, point: &[u8], message: &[u8], signature: &[u8]) -> bool {
    match scheme {
        Scheme::P256Der => p256(point, message, p256::ecdsa::Signature::from_der(signature).ok()),
        Scheme::P256Fixed => p256(point, message, p256::ecdsa::Signature::from_slice(signature).ok()),
        Scheme::P384Der => p384(point, message, p384::ecdsa::Signature::from_der(signature).ok()),
        Scheme::P384Fixed => p384(point, message, p384::ecdsa::Signature::from_slice(signature).ok()),
    }
}

pub(crate) fn digest(function: Hash, bytes: &[u8]) -> Vec<u8> {
    match function {
        Hash::Sha1 => sha1::Sha1::digest(bytes).to_vec(),
        Hash::Sha256 => sha2::Sha256::digest(bytes).to_vec(),
        Hash::Sha384 => sha2::Sha384::digest(bytes).to_vec(),
    }
}

fn p256(point: &[u8], message: &[u8], signature: Option<p256::ecdsa::Signature>) -> bool {
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok();
    key.zip(signature).is_some_and(|(key, signature)| key.verify(message, &signature).is_ok())
}

fn p384(point: &[u8], message: &[u8], signature: Option<p384::ecdsa::Signature>) -> bool {
    let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(point).ok();
    key.zip(signature).is_some_and(|(key, signature)| key.verify(message, &signature).is_ok())
}
