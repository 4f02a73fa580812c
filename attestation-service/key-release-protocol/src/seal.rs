// SPDX-License-Identifier: Apache-2.0
//! Sealing of a model key to a key made for one release (RFC 9180 base mode).

use hpke::{
    Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _, aead::AesGcm256, kdf::HkdfSha256,
    rand_core::CryptoRng, single_shot_open, single_shot_seal_with_rng,
};
use types::{Hex32, ModelId, Sha256Digest};
use zeroize::Zeroizing;

/// A model key.
pub type ModelKey = Zeroizing<[u8; 32]>;

/// What a sealed key is bound to: info = "chrysalis/key-release/v1" ‖ challenge ‖ model identity ‖ key version
/// u32 big-endian ‖ evidence digest ‖ audit leaf. Both sides compute it from what they know themselves.
#[derive(Debug, Clone, Copy)]
pub struct SealContext<'a> {
    /// The challenge of the release.
    pub challenge: &'a [u8; 32],
    /// The model.
    pub model: &'a ModelId,
    /// Version of its key.
    pub key_version: u32,
    /// Digest of the evidence document.
    pub evidence: &'a Sha256Digest,
    /// Leaf of the audit log.
    pub audit_leaf: &'a Sha256Digest,
}

/// The guest's key for one release. It has no other use, and using it destroys it.
pub struct ReleaseKeyPair {
    private: <Kem as hpke::Kem>::PrivateKey,
    public: Hex32,
}

/// Why sealing or opening failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The guest's public key is not a point that can be used.
    #[error("hpke_key is not a usable X25519 key")]
    PublicKey,
    /// The sealed key is not for this guest, release, model, version or audit entry.
    #[error("the sealed key does not open for this release")]
    Open,
}

impl SealContext<'_> {
    fn info(&self) -> Vec<u8> {
        let Self { challenge, model, key_version, evidence, audit_leaf } = self;
        [
            b"chrysalis/key-release/v1".as_slice(),
            challenge.as_slice(),
            model.identity().as_bytes(),
            &key_version.to_be_bytes(),
            evidence.as_bytes(),
            audit_leaf.as_bytes(),
        ]
        .concat()
    }
}

impl ReleaseKeyPair {
    /// Makes a key pair.
    pub fn generate(random: &mut impl CryptoRng) -> Self {
        let (private, public) = Kem::gen_keypair_with_rng(random);
        Self { private, public: Hex32::new(public.to_bytes().into()) }
    }

    /// The public key, for the evidence.
    #[must_use]
    pub const fn public(&self) -> &Hex32 {
        &self.public
    }

    /// Opens a sealed model key.
    ///
    /// # Errors
    /// [`SealError::Open`].
    pub fn open(self, enc: &Hex32, ciphertext: &[u8; 48], context: &SealContext<'_>) -> Result<ModelKey, SealError> {
        open_key(&self.private, enc, ciphertext, &context.info())
    }
}

/// Seals a model key.
///
/// # Errors
/// [`SealError::PublicKey`].
pub fn seal(
    key: &ModelKey,
    to: &Hex32,
    context: &SealContext<'_>,
    random: &mut impl CryptoRng,
) -> Result<(Hex32, [u8; 48]), SealError> {
    seal_key(key, to, &context.info(), random)
}

/// Seals a model key to an X25519 key, bound to `info` (empty associated data).
///
/// # Errors
/// [`SealError::PublicKey`].
pub fn seal_key(
    key: &ModelKey,
    to: &Hex32,
    info: &[u8],
    random: &mut impl CryptoRng,
) -> Result<(Hex32, [u8; 48]), SealError> {
    let to = <Kem as hpke::Kem>::PublicKey::from_bytes(to.as_bytes()).map_err(|_| SealError::PublicKey)?;
    let (enc, sealed) =
        single_shot_seal_with_rng::<AesGcm256, HkdfSha256, Kem>(&OpModeS::Base, &to, info, key.as_slice(), &[], random)
            .map_err(|_| SealError::PublicKey)?;
    let ciphertext = sealed.try_into().map_err(|_| SealError::PublicKey)?;
    Ok((Hex32::new(enc.to_bytes().into()), ciphertext))
}

/// Opens what [`seal_key`] sealed to the public half of `private` with the same `info`.
///
/// # Errors
/// [`SealError::Open`].
pub fn open_key(
    private: &<Kem as hpke::Kem>::PrivateKey,
    enc: &Hex32,
    ciphertext: &[u8; 48],
    info: &[u8],
) -> Result<ModelKey, SealError> {
    let enc = <Kem as hpke::Kem>::EncappedKey::from_bytes(enc.as_bytes()).map_err(|_| SealError::Open)?;
    let plain = single_shot_open::<AesGcm256, HkdfSha256, Kem>(&OpModeR::Base, private, &enc, info, ciphertext, &[]);
    let plain = Zeroizing::new(plain.map_err(|_| SealError::Open)?);
    let mut key = ModelKey::default();
    if plain.len() != key.len() {
        return Err(SealError::Open);
    }
    key.copy_from_slice(&plain);
    Ok(key)
}

/// The key encapsulation of every sealed model key.
pub type Kem = hpke::kem::X25519HkdfSha256;

#[cfg(test)]
mod tests {
    use hpke::rand_core::UnwrapErr;
    use types::Blake3Digest;

    use super::*;

    #[test]
    fn a_sealed_key_opens_only_in_its_own_context() {
        let mut random = UnwrapErr(getrandom::SysRng);
        let model = ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap();
        let other = ModelId::new("m", "1", Blake3Digest::of(b"n")).unwrap();
        let digests = [Sha256Digest::of(b"evidence"), Sha256Digest::of(b"leaf")];
        let context = SealContext {
            challenge: &[1; 32],
            model: &model,
            key_version: 3,
            evidence: &digests[0],
            audit_leaf: &digests[1],
        };
        let key = ModelKey::new([42; 32]);
        let mut attempt = |used: SealContext<'_>, flip: bool| {
            let pair = ReleaseKeyPair::generate(&mut random);
            let (enc, mut sealed) = seal(&key, pair.public(), &context, &mut random).unwrap();
            sealed[0] ^= u8::from(flip);
            pair.open(&enc, &sealed, &used)
        };
        assert_eq!(attempt(context, false).as_ref(), Ok(&key));
        assert_eq!(attempt(context, true), Err(SealError::Open));
        for used in [
            SealContext { challenge: &[2; 32], ..context },
            SealContext { model: &other, ..context },
            SealContext { key_version: 4, ..context },
            SealContext { evidence: &digests[1], ..context },
            SealContext { audit_leaf: &digests[0], ..context },
        ] {
            assert_eq!(attempt(used, false), Err(SealError::Open));
        }
        // The zero point has no usable shared secret (RFC 9180 section 7.1.4).
        assert_eq!(seal(&key, &Hex32::default(), &context, &mut random), Err(SealError::PublicKey));
    }
}
