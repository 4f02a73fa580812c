// SPDX-License-Identifier: Apache-2.0
//! Keys of models on their way from the owner to the service: sealed to a key of the service, inside a signed command, so
//! that nobody in between handles them in the clear (RFC 9180 base mode, as for releases).

use ed25519_dalek::{Signature, VerifyingKey};
use hpke::{Kem as _, Serializable as _};
use key_release_protocol::{CryptoRng, Kem, ModelKey, SealError, open_key, seal_key};
use serde::{Deserialize, Serialize};
use types::{Base64, Document, Hex32, ModelId, Sha256Digest};
use zeroize::Zeroizing;

/// The keys of a service beside the one that its guests pin (`chrysalis/service-keys/v1`): `GET /v1/service`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceKeys {
    /// `chrysalis/service-keys/v1`.
    pub schema: String,
    /// The service's Ed25519 key; SHA-256 of its SPKI is the pin.
    pub service_key: Hex32,
    /// X25519 key that owners seal keys of models to.
    pub import_key: Hex32,
    /// Ed25519 by `service_key` over "chrysalis/service-keys/v1" ‖ `import_key`.
    pub signature: Base64<64>,
}

/// What a sealed key is for: info = "chrysalis/key-import/v1" ‖ pin of the service ‖ model identity ‖ version u32
/// big-endian ‖ the model's whole name.
#[derive(Debug, Clone, Copy)]
pub struct ImportContext<'a> {
    /// Pin of the service.
    pub service: &'a Sha256Digest,
    /// The model.
    pub model: &'a ModelId,
    /// Version of its key.
    pub version: u32,
}

/// The service's half: always the same for the same secret.
pub struct ImportKeyPair {
    private: <Kem as hpke::Kem>::PrivateKey,
    public: Hex32,
}

impl Document for ServiceKeys {
    const SCHEMA: &'static str = "chrysalis/service-keys/v1";
    const MAX_BYTES: usize = 1024;

    fn schema(&self) -> &str {
        &self.schema
    }
}

impl ServiceKeys {
    /// What the service signs.
    #[must_use]
    pub fn signed_bytes(import_key: &Hex32) -> Vec<u8> {
        [Self::SCHEMA.as_bytes(), import_key.as_bytes()].concat()
    }

    /// Whether the key behind `pin` signed them. `pin_of` hashes an Ed25519 key as guests do.
    #[must_use]
    pub fn are_of(&self, pin: &Sha256Digest, pin_of: impl Fn(&Hex32) -> Sha256Digest) -> bool {
        pin_of(&self.service_key) == *pin
            && Signature::from_slice(self.signature.as_slice()).is_ok_and(|signature| {
                VerifyingKey::from_bytes(self.service_key.as_bytes())
                    .is_ok_and(|key| key.verify_strict(&Self::signed_bytes(&self.import_key), &signature).is_ok())
            })
    }
}

impl ImportContext<'_> {
    fn info(&self) -> Vec<u8> {
        let Self { service, model, version } = self;
        let name = model.to_string();
        let label = b"chrysalis/key-import/v1".as_slice();
        [label, service.as_bytes(), model.identity().as_bytes(), &version.to_be_bytes(), name.as_bytes()].concat()
    }

    /// Seals a model's key to the service's `import_key`.
    ///
    /// # Errors
    /// [`SealError::PublicKey`].
    pub fn seal(
        &self,
        key: &ModelKey,
        import_key: &Hex32,
        random: &mut impl CryptoRng,
    ) -> Result<(Hex32, [u8; 48]), SealError> {
        seal_key(key, import_key, &self.info(), random)
    }
}

impl ImportKeyPair {
    /// Makes the pair that a secret of 32 bytes determines.
    #[must_use]
    pub fn derive(secret: &Zeroizing<[u8; 32]>) -> Self {
        let (private, public) = Kem::derive_keypair(secret.as_slice());
        Self { private, public: Hex32::new(public.to_bytes().into()) }
    }

    /// The public half.
    #[must_use]
    pub const fn public(&self) -> &Hex32 {
        &self.public
    }

    /// Opens a sealed key.
    ///
    /// # Errors
    /// [`SealError::Open`].
    pub fn open(&self, enc: &Hex32, sealed: &[u8; 48], context: &ImportContext<'_>) -> Result<ModelKey, SealError> {
        open_key(&self.private, enc, sealed, &context.info())
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};
    use hpke::rand_core::UnwrapErr;
    use types::Blake3Digest;

    use super::*;

    #[test]
    fn a_key_opens_for_its_service_model_and_version_only() {
        let mut random = UnwrapErr(getrandom::SysRng);
        let pair = ImportKeyPair::derive(&Zeroizing::new([1; 32]));
        let (pin, other) = (Sha256Digest::of(b"pin"), Sha256Digest::of(b"other"));
        let model = ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap();
        let renamed = ModelId::new("m", "2", *model.identity()).unwrap();
        let context = ImportContext { service: &pin, model: &model, version: 3 };
        let key = ModelKey::new([7; 32]);
        let (enc, mut sealed) = context.seal(&key, pair.public(), &mut random).unwrap();
        assert_eq!(pair.open(&enc, &sealed, &context), Ok(key));
        for wrong in [
            ImportContext { service: &other, ..context },
            ImportContext { model: &renamed, ..context },
            ImportContext { version: 4, ..context },
        ] {
            assert_eq!(pair.open(&enc, &sealed, &wrong), Err(SealError::Open));
        }
        let another = ImportKeyPair::derive(&Zeroizing::new([2; 32]));
        assert_eq!(another.open(&enc, &sealed, &context), Err(SealError::Open));
        assert_eq!(ImportKeyPair::derive(&Zeroizing::new([1; 32])).public(), pair.public());
        sealed[0] ^= 1;
        assert_eq!(pair.open(&enc, &sealed, &context), Err(SealError::Open));
    }

    #[test]
    fn keys_of_a_service_are_signed_by_the_pinned_one() {
        let signer = SigningKey::from_bytes(&[3; 32]);
        let service_key = Hex32::new(signer.verifying_key().to_bytes());
        let pin_of = |key: &Hex32| Sha256Digest::of(key.as_bytes());
        let import_key = Hex32::new([9; 32]);
        let signed = |bytes: &[u8]| Base64::new(signer.sign(bytes).to_bytes().to_vec()).unwrap();
        let keys = ServiceKeys {
            schema: ServiceKeys::SCHEMA.to_owned(),
            service_key,
            import_key,
            signature: signed(&ServiceKeys::signed_bytes(&import_key)),
        };
        let pin = pin_of(&service_key);
        assert!(keys.are_of(&pin, pin_of));
        assert!(!keys.are_of(&Sha256Digest::of(b"x"), pin_of));
        assert!(!ServiceKeys { import_key: Hex32::new([8; 32]), ..keys.clone() }.are_of(&pin, pin_of));
        assert!(!ServiceKeys { signature: signed(import_key.as_bytes()), ..keys.clone() }.are_of(&pin, pin_of));
        assert!(!ServiceKeys { service_key: import_key, ..keys }.are_of(&pin, pin_of));
    }
}
