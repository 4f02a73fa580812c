// SPDX-License-Identifier: Apache-2.0
//! The service's own key: guests pin it, TLS and signed times are made with it.

use std::sync::Arc;

use attestation_result::{KeySet, ResultKey};
use attested_channel::ed25519_spki_sha256;
use ed25519_dalek::{Signer as _, SigningKey, pkcs8::EncodePrivateKey as _};
use key_release::{ImportKeyPair, ServiceKeys};
use rustls::{
    crypto::aws_lc_rs::sign::any_eddsa_type,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    server::ResolvesServerCert,
    sign::{CertifiedKey, SingleCertAndKey},
};
use store::{KeyStoreError, Store};
use types::{Base64, Document as _, Hex32, Sha256Digest, evidence::AttestedTime};
use zeroize::Zeroizing;

/// The service's Ed25519 key. Zeroized when dropped.
pub struct Identity(SigningKey);

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The store.
    #[error(transparent)]
    Store(#[from] KeyStoreError),
    /// `init` did not finish, or the store is another program's.
    #[error("the store has no service key; make the store anew with `init`")]
    Missing,
    /// No randomness.
    #[error("the system gave no randomness")]
    Random,
    /// Certificate or TLS key.
    #[error("the TLS certificate could not be made: {0}")]
    Certificate(String),
}

impl Identity {
    /// Makes a key.
    ///
    /// # Errors
    /// [`IdentityError::Random`].
    pub fn generate() -> Result<Self, IdentityError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut_slice()).map_err(|_| IdentityError::Random)?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// Takes the key out of the store.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load(store: &Store) -> Result<Self, IdentityError> {
        let secret = store.secret(SECRET)?.ok_or(IdentityError::Missing)?;
        let mut seed = Zeroizing::new([0; 32]);
        if secret.len() != seed.len() {
            return Err(IdentityError::Missing);
        }
        seed.copy_from_slice(&secret);
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// Puts the key into the store, wrapped.
    ///
    /// # Errors
    /// [`IdentityError::Store`].
    pub fn save(&self, store: &Store) -> Result<(), IdentityError> {
        Ok(store.put_secret(SECRET, Zeroizing::new(self.0.to_bytes()).as_slice())?)
    }

    /// Name and value of the secret that [`Identity::load`] reads, for a store that is made with it.
    #[must_use]
    pub fn secret(&self) -> (&'static str, Zeroizing<[u8; 32]>) {
        (SECRET, Zeroizing::new(self.0.to_bytes()))
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> Hex32 {
        Hex32::new(self.0.verifying_key().to_bytes())
    }

    /// What guests pin: SHA-256 of the DER `SubjectPublicKeyInfo`.
    #[must_use]
    pub fn spki_sha256(&self) -> Sha256Digest {
        ed25519_spki_sha256(&self.public_key())
    }

    /// Signs the time `unix` (seconds since 1970) for a guest's nonce.
    #[must_use]
    pub fn sign_time(&self, nonce: Hex32, unix: u64) -> AttestedTime {
        let signature = self.0.sign(&AttestedTime::signed_bytes(&nonce, unix)).to_bytes();
        let signature = Base64::new(signature.to_vec()).unwrap_or_default();
        AttestedTime { unix, nonce, service_key: self.public_key(), signature }
    }

    /// The pair that owners seal keys of models to: of this identity, whatever store or replica it lies in.
    #[must_use]
    pub fn import_keys(&self) -> ImportKeyPair {
        let seed = Zeroizing::new(self.0.to_bytes());
        let secret = Sha256Digest::of_parts(&[b"chrysalis/service-import-key/v1", seed.as_slice()]);
        ImportKeyPair::derive(&Zeroizing::new(*secret.as_bytes()))
    }

    /// The keys beside the one that guests pin, signed by it.
    #[must_use]
    pub fn service_keys(&self) -> ServiceKeys {
        let import_key = *self.import_keys().public();
        let signature = self.0.sign(&ServiceKeys::signed_bytes(&import_key)).to_bytes();
        let signature = Base64::new(signature.to_vec()).unwrap_or_default();
        ServiceKeys { schema: ServiceKeys::SCHEMA.to_owned(), service_key: self.public_key(), import_key, signature }
    }

    /// The key that signs attestation results: derived from this one, and used for nothing else.
    #[must_use]
    pub fn result_key(&self) -> ResultKey {
        ResultKey::derive(&Zeroizing::new(self.0.to_bytes()))
    }

    /// The public half of [`Identity::result_key`], signed by this key.
    #[must_use]
    pub fn result_keys(&self) -> KeySet {
        KeySet::of(&self.result_key().public(), self.public_key(), |bytes| self.0.sign(bytes).to_bytes())
    }

    /// A self-signed certificate and its key for TLS. Guests look at the key alone.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`].
    pub fn resolver(&self) -> Result<Arc<dyn ResolvesServerCert>, IdentityError> {
        let failed = |e: &dyn core::fmt::Display| IdentityError::Certificate(e.to_string());
        let pkcs8 = self.0.to_pkcs8_der().map_err(|e| failed(&e))?;
        let der = PrivatePkcs8KeyDer::from(pkcs8.as_bytes());
        let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519).map_err(|e| failed(&e))?;
        let params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).map_err(|e| failed(&e))?;
        let certificate = params.self_signed(&key).map_err(|e| failed(&e))?;
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let signer = any_eddsa_type(&der).map_err(|e| failed(&e))?;
        Ok(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, signer))))
    }
}

const SECRET: &str = "service-identity";
const NAME: &str = "attestation-service.invalid";
