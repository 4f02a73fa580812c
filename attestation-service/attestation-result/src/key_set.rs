// SPDX-License-Identifier: Apache-2.0
//! The published keys of a service: a JWK set (RFC 7517) that its identity signed.

use attested_channel::ed25519_spki_sha256;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};
use types::{Hex32, Sha256Digest};

use crate::key::key_id;

/// Keys that verify results of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySet {
    /// The keys, 1 to [`MAX_KEYS`].
    pub keys: Vec<Jwk>,
    /// Whose they are.
    pub chrysalis: KeyBinding,
}

/// An Ed25519 key (RFC 8037).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwk {
    /// `OKP`.
    pub kty: String,
    /// `Ed25519`.
    pub crv: String,
    /// `EdDSA`.
    pub alg: String,
    /// `sig`.
    #[serde(rename = "use")]
    pub usage: String,
    /// The key's thumbprint (RFC 7638).
    pub kid: String,
    /// The key, base64url.
    pub x: String,
}

/// The identity's signature over the keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyBinding {
    /// [`KeySet::SCHEMA`].
    pub schema: String,
    /// The service's key, whose pin guests know.
    pub service_key: Hex32,
    /// Ed25519 over [`KeySet::signed_bytes`].
    #[serde(with = "hex::serde")]
    pub signature: [u8; 64],
}

/// Why a key set was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Not a key set of this form.
    #[error("the key set is malformed: {0}")]
    Form(String),
    /// No signature of the service that it names.
    #[error("the key set is not signed by the service's key that it names")]
    Signature,
    /// Another service's.
    #[error("the key set is of the service {found}, not of {expected}")]
    Pin {
        /// The wanted pin.
        expected: Sha256Digest,
        /// The pin of the key that signed it.
        found: Sha256Digest,
    },
}

impl KeySet {
    /// Label of the signature.
    pub const SCHEMA: &str = "chrysalis/ear-keys/v1";

    /// The set of one key, signed by `sign` with the service's key.
    pub fn of(key: &Hex32, service_key: Hex32, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Self {
        let signature = sign(&Self::signed_bytes(&[*key]));
        Self {
            keys: vec![Jwk::of(key)],
            chrysalis: KeyBinding { schema: Self::SCHEMA.to_owned(), service_key, signature },
        }
    }

    /// What the service signs: the label, then the 32 bytes of each key.
    #[must_use]
    pub fn signed_bytes(keys: &[Hex32]) -> Vec<u8> {
        let mut bytes = Self::SCHEMA.as_bytes().to_vec();
        keys.iter().for_each(|key| bytes.extend_from_slice(key.as_bytes()));
        bytes
    }

    /// Reads a key set of at most [`MAX_KEY_SET`] bytes and verifies its signature; gives its keys. Whose they are is proven
    /// only with the service's `pin`.
    ///
    /// # Errors
    /// [`KeySetError`].
    pub fn verified(bytes: &[u8], pin: Option<&Sha256Digest>) -> Result<Vec<Hex32>, KeySetError> {
        let form = |detail: &str| KeySetError::Form(detail.to_owned());
        if bytes.len() > MAX_KEY_SET {
            return Err(form("it is too large"));
        }
        let set: Self = serde_json::from_slice(bytes).map_err(|error| form(&error.to_string()))?;
        if set.chrysalis.schema != Self::SCHEMA || !(1..=MAX_KEYS).contains(&set.keys.len()) {
            return Err(form("the schema must be chrysalis/ear-keys/v1, with 1 to 8 keys"));
        }
        let keys = set.keys.iter().map(|jwk| jwk.key().ok_or_else(|| form("a key is no Ed25519 key for signatures")));
        let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
        let service_key = set.chrysalis.service_key;
        let signature = Signature::from_bytes(&set.chrysalis.signature);
        let signed = VerifyingKey::from_bytes(service_key.as_bytes())
            .is_ok_and(|key| key.verify_strict(&Self::signed_bytes(&keys), &signature).is_ok());
        if !signed {
            return Err(KeySetError::Signature);
        }
        let found = ed25519_spki_sha256(&service_key);
        match pin {
            Some(expected) if *expected != found => Err(KeySetError::Pin { expected: *expected, found }),
            _ => Ok(keys),
        }
    }
}

impl Jwk {
    /// The key as a JWK.
    #[must_use]
    pub fn of(key: &Hex32) -> Self {
        Self {
            kty: "OKP".to_owned(),
            crv: "Ed25519".to_owned(),
            alg: "EdDSA".to_owned(),
            usage: "sig".to_owned(),
            kid: key_id(key),
            x: URL_SAFE_NO_PAD.encode(key.as_bytes()),
        }
    }

    fn key(&self) -> Option<Hex32> {
        let bytes: [u8; 32] = URL_SAFE_NO_PAD.decode(&self.x).ok()?.try_into().ok()?;
        let key = Hex32::new(bytes);
        (*self == Self::of(&key)).then_some(key)
    }
}

/// Most keys of a set.
pub const MAX_KEYS: usize = 8;
/// Most bytes of a set.
pub const MAX_KEY_SET: usize = 8 * 1024;
