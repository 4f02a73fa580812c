// SPDX-License-Identifier: Apache-2.0
//! By AWS-LC.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, digest as hash};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_FIXED, UnparsedPublicKey,
};

use crate::{Hash, Scheme};

pub(crate) fn verifies(scheme: Scheme, point: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let algorithm = match scheme {
        Scheme::P256Der => &ECDSA_P256_SHA256_ASN1,
        Scheme::P256Fixed => &ECDSA_P256_SHA256_FIXED,
        Scheme::P384Der => &ECDSA_P384_SHA384_ASN1,
        Scheme::P384Fixed => &ECDSA_P384_SHA384_FIXED,
    };
    UnparsedPublicKey::new(algorithm, point).verify(message, signature).is_ok()
}

pub(crate) fn digest(function: Hash, bytes: &[u8]) -> Vec<u8> {
    let algorithm = match function {
        Hash::Sha1 => &SHA1_FOR_LEGACY_USE_ONLY,
        Hash::Sha256 => &SHA256,
        Hash::Sha384 => &SHA384,
    };
    hash(algorithm, bytes).as_ref().to_vec()
}
