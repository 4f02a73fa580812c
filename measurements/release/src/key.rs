// SPDX-License-Identifier: Apache-2.0
//! Release keys: ECDSA P-256 with SHA-256, which every sigstore verifier accepts for keys given by hand.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use p256::ecdsa::{
    Signature, SigningKey, VerifyingKey,
    signature::{Signer as _, Verifier as _},
};
use p256::pkcs8::{
    DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use types::Sha256Digest;
use zeroize::Zeroizing;

/// Why a key could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a P-256 private key in PKCS#8 PEM.
    #[error("not a P-256 private key in PKCS#8 PEM")]
    Private,
    /// Not a P-256 public key as DER `SubjectPublicKeyInfo` or its PEM.
    #[error("not a P-256 public key (SubjectPublicKeyInfo)")]
    Public,
    /// Not an Ed25519 private key in PKCS#8 PEM.
    #[error("not an Ed25519 private key in PKCS#8 PEM")]
    Ed25519,
    /// The random bytes are not a valid secret scalar; take others.
    #[error("the random bytes are not a valid secret; take others")]
    Seed,
}

/// The private key of a release signer. Zeroized when dropped; signatures are deterministic (RFC 6979).
pub struct ReleaseKey(SigningKey);

impl ReleaseKey {
    /// Makes a key from 32 random bytes.
    ///
    /// # Errors
    /// [`KeyError::Seed`], with negligible probability.
    pub fn from_random(random: &[u8; 32]) -> Result<Self, KeyError> {
        SigningKey::from_slice(random).map(Self).map_err(|_| KeyError::Seed)
    }

    /// Reads PKCS#8 PEM.
    ///
    /// # Errors
    /// [`KeyError::Private`].
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        SigningKey::from_pkcs8_pem(pem).map(Self).map_err(|_| KeyError::Private)
    }

    /// PKCS#8 PEM.
    ///
    /// # Errors
    /// [`KeyError::Private`] when encoding fails, which it does not for a valid key.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        self.0.to_pkcs8_pem(LineEnding::LF).map_err(|_| KeyError::Private)
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> ReleasePublicKey {
        ReleasePublicKey(*self.0.verifying_key())
    }

    /// DER signature over `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature: Signature = self.0.sign(message);
        signature.to_der().as_bytes().to_vec()
    }

    /// Signature over `message` as the two 32-byte numbers r and s, big-endian: the form of COSE (RFC 9053, section 2.1).
    #[must_use]
    pub fn sign_fixed(&self, message: &[u8]) -> [u8; 64] {
        let signature: Signature = self.0.sign(message);
        signature.to_bytes().into()
    }
}

/// The public key of a release signer. In documents: base64 of the DER `SubjectPublicKeyInfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReleasePublicKey(VerifyingKey);

impl ReleasePublicKey {
    /// Reads DER `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    /// [`KeyError::Public`].
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let key = Self(VerifyingKey::from_public_key_der(der).map_err(|_| KeyError::Public)?);
        // One encoding only: the key's hint is a hash of it.
        if key.to_der()? == der { Ok(key) } else { Err(KeyError::Public) }
    }

    /// Reads PEM (`PUBLIC KEY`).
    ///
    /// # Errors
    /// [`KeyError::Public`].
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        VerifyingKey::from_public_key_pem(pem).map(Self).map_err(|_| KeyError::Public)
    }

    /// DER `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    /// [`KeyError::Public`] when encoding fails, which it does not for a valid key.
    pub fn to_der(&self) -> Result<Vec<u8>, KeyError> {
        self.0.to_public_key_der().map(|der| der.as_bytes().to_vec()).map_err(|_| KeyError::Public)
    }

    /// PEM (`PUBLIC KEY`).
    ///
    /// # Errors
    /// As [`ReleasePublicKey::to_der`].
    pub fn to_pem(&self) -> Result<String, KeyError> {
        self.0.to_public_key_pem(LineEnding::LF).map_err(|_| KeyError::Public)
    }

    /// What bundles name the key by: base64 of SHA-256 of the DER form.
    ///
    /// # Errors
    /// As [`ReleasePublicKey::to_der`].
    pub fn hint(&self) -> Result<String, KeyError> {
        Ok(STANDARD.encode(Sha256Digest::of(&self.to_der()?).as_bytes()))
    }

    /// Whether `signature` (DER) over `message` is by this key.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_der(signature).is_ok_and(|signature| self.0.verify(message, &signature).is_ok())
    }
}

/// Reads the Ed25519 seed of a log or witness out of PKCS#8 PEM.
///
/// # Errors
/// [`KeyError::Ed25519`].
pub fn ed25519_seed_from_pem(pem: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let key = ed25519_dalek::SigningKey::from_pkcs8_pem(pem).map_err(|_| KeyError::Ed25519)?;
    Ok(Zeroizing::new(key.to_bytes()))
}

/// The Ed25519 seed of a log or witness as PKCS#8 PEM.
///
/// # Errors
/// [`KeyError::Ed25519`] when encoding fails, which it does not for any seed.
pub fn ed25519_seed_to_pem(seed: &[u8; 32]) -> Result<Zeroizing<String>, KeyError> {
    ed25519_dalek::SigningKey::from_bytes(seed).to_pkcs8_pem(LineEnding::LF).map_err(|_| KeyError::Ed25519)
}

impl Serialize for ReleasePublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let der = self.to_der().map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&STANDARD.encode(der))
    }
}

impl<'de> Deserialize<'de> for ReleasePublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let der = STANDARD.decode(text).map_err(|_| de::Error::custom("not base64"))?;
        Self::from_der(&der).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_encodings_and_signatures_bind_the_message() {
        let key = ReleaseKey::from_random(&[7; 32]).unwrap();
        let again = ReleaseKey::from_pem(&key.to_pem().unwrap()).unwrap();
        let public = ReleasePublicKey::from_pem(&again.public().to_pem().unwrap()).unwrap();
        assert_eq!(ReleasePublicKey::from_der(&public.to_der().unwrap()), Ok(public));
        let signature = key.sign(b"message");
        assert!(public.verifies(b"message", &signature));
        assert!(!public.verifies(b"Message", &signature));
        assert!(!ReleaseKey::from_random(&[8; 32]).unwrap().public().verifies(b"message", &signature));
        assert!(!public.verifies(b"message", &signature[1..]));
    }

    #[test]
    fn ed25519_seeds_survive_their_encoding_and_keys_of_other_kinds_are_refused() {
        let pem = ed25519_seed_to_pem(&[5; 32]).unwrap();
        assert_eq!(*ed25519_seed_from_pem(&pem).unwrap(), [5; 32]);
        assert!(ReleaseKey::from_pem(&pem).is_err());
        let release = ReleaseKey::from_random(&[5; 32]).unwrap().to_pem().unwrap();
        assert_eq!(ed25519_seed_from_pem(&release), Err(KeyError::Ed25519));
    }
}
