// SPDX-License-Identifier: Apache-2.0
//! Sealing of a model key, and of the document of its tenants where it has one, to a key made for one release (RFC 9180
//! base mode).

use hpke::{
    Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _, aead::AesGcm256, kdf::HkdfSha256,
    rand_core::CryptoRng, single_shot_open, single_shot_seal_with_rng,
};
use types::{Document as _, Hex32, ModelId, Sha256Digest, Tenants};
use zeroize::Zeroizing;

use crate::Sealed;

/// A model key.
pub type ModelKey = Zeroizing<[u8; 32]>;

/// What was sealed for a guest.
#[derive(Clone, PartialEq, Eq)]
pub struct Opened {
    /// The model's key.
    pub key: ModelKey,
    /// The document of the model's tenants, in bytes that nobody has looked at; `None` where the model has none, and
    /// whoever proves the guest to himself may ask it.
    pub tenants: Option<Zeroizing<Vec<u8>>>,
}

/// What a sealed key is bound to: info = label ‖ challenge ‖ model identity ‖ key version u32 big-endian ‖ evidence
/// digest ‖ audit leaf. Both sides compute it from what they know themselves. The label is "chrysalis/key-release/v1" for
/// a key alone, "chrysalis/key-release/v2" for a key with the document of its model's tenants behind it.
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
    /// The document of tenants is empty or too large.
    #[error("the document of tenants must have 1 to {} bytes", Tenants::MAX_BYTES)]
    Tenants,
    /// The sealed key is not for this guest, release, model, version or audit entry.
    #[error("the sealed key does not open for this release")]
    Open,
}

impl core::fmt::Debug for Opened {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Opened(has tenants: {})", self.tenants.is_some())
    }
}

impl SealContext<'_> {
    fn info(&self, has_tenants: bool) -> Vec<u8> {
        let Self { challenge, model, key_version, evidence, audit_leaf } = self;
        let label = if has_tenants { b"chrysalis/key-release/v2" } else { b"chrysalis/key-release/v1" };
        [
            label.as_slice(),
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

    /// Opens what [`seal`] sealed.
    ///
    /// # Errors
    /// [`SealError::Open`].
    pub fn open(self, enc: &Hex32, sealed: &Sealed, context: &SealContext<'_>) -> Result<Opened, SealError> {
        let info = context.info(sealed.has_tenants());
        let plain = open_bytes(&self.private, enc, sealed.as_slice(), &info)?;
        let (key, tenants) = plain.split_at_checked(KEY).ok_or(SealError::Open)?;
        let key = Zeroizing::new(key.try_into().map_err(|_| SealError::Open)?);
        Ok(Opened { key, tenants: (!tenants.is_empty()).then(|| Zeroizing::new(tenants.to_vec())) })
    }
}

/// Seals a model key, and the document of the model's tenants where there is one.
///
/// # Errors
/// [`SealError::PublicKey`]; [`SealError::Tenants`] for a document that is empty or too large.
pub fn seal(
    key: &ModelKey,
    tenants: Option<&[u8]>,
    to: &Hex32,
    context: &SealContext<'_>,
    random: &mut impl CryptoRng,
) -> Result<(Hex32, Sealed), SealError> {
    let document = tenants.unwrap_or_default();
    if document.len() > Tenants::MAX_BYTES || (tenants.is_some() && document.is_empty()) {
        return Err(SealError::Tenants);
    }
    // With its size from the start no copy of the key is left behind by growing.
    let mut plain = Zeroizing::new(Vec::with_capacity(KEY.saturating_add(document.len())));
    plain.extend_from_slice(key.as_slice());
    plain.extend_from_slice(document);
    let (enc, sealed) = seal_bytes(&plain, to, &context.info(tenants.is_some()), random)?;
    Ok((enc, Sealed::new(sealed).ok_or(SealError::Tenants)?))
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
    let (enc, sealed) = seal_bytes(key.as_slice(), to, info, random)?;
    Ok((enc, sealed.try_into().map_err(|_| SealError::PublicKey)?))
}

fn seal_bytes(
    plain: &[u8],
    to: &Hex32,
    info: &[u8],
    random: &mut impl CryptoRng,
) -> Result<(Hex32, Vec<u8>), SealError> {
    let to = <Kem as hpke::Kem>::PublicKey::from_bytes(to.as_bytes()).map_err(|_| SealError::PublicKey)?;
    let (enc, sealed) =
        single_shot_seal_with_rng::<AesGcm256, HkdfSha256, Kem>(&OpModeS::Base, &to, info, plain, &[], random)
            .map_err(|_| SealError::PublicKey)?;
    Ok((Hex32::new(enc.to_bytes().into()), sealed))
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
    let plain = open_bytes(private, enc, ciphertext, info)?;
    Ok(Zeroizing::new(plain.as_slice().try_into().map_err(|_| SealError::Open)?))
}

fn open_bytes(
    private: &<Kem as hpke::Kem>::PrivateKey,
    enc: &Hex32,
    ciphertext: &[u8],
    info: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let enc = <Kem as hpke::Kem>::EncappedKey::from_bytes(enc.as_bytes()).map_err(|_| SealError::Open)?;
    let plain = single_shot_open::<AesGcm256, HkdfSha256, Kem>(&OpModeR::Base, private, &enc, info, ciphertext, &[]);
    plain.map(Zeroizing::new).map_err(|_| SealError::Open)
}

const KEY: usize = 32;
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
        for tenants in [None, Some(&b"tenants"[..])] {
            let mut attempt = |used: SealContext<'_>, flip: bool| {
                let pair = ReleaseKeyPair::generate(&mut random);
                let (enc, sealed) = seal(&key, tenants, pair.public(), &context, &mut random).unwrap();
                let mut bytes = sealed.as_slice().to_vec();
                bytes[0] ^= u8::from(flip);
                pair.open(&enc, &Sealed::new(bytes).unwrap(), &used)
            };
            let whole = Opened { key: key.clone(), tenants: tenants.map(|bytes| Zeroizing::new(bytes.to_vec())) };
            assert_eq!(attempt(context, false), Ok(whole));
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
        }
        // The zero point has no usable shared secret (RFC 9180 section 7.1.4).
        assert_eq!(seal(&key, None, &Hex32::default(), &context, &mut random), Err(SealError::PublicKey));
    }

    /// Nobody who cuts the document off, or seals without it under its label, gets a guest to serve everybody.
    #[test]
    fn a_key_with_tenants_is_another_thing_than_a_key() {
        let mut random = UnwrapErr(getrandom::SysRng);
        let model = ModelId::new("m", "1", Blake3Digest::of(b"m")).unwrap();
        let digest = Sha256Digest::of(b"x");
        let context =
            SealContext { challenge: &[1; 32], model: &model, key_version: 1, evidence: &digest, audit_leaf: &digest };
        let key = ModelKey::new([42; 32]);
        for (of_tenants, plain) in [(false, &[7; 33][..]), (true, &key[..])] {
            let pair = ReleaseKeyPair::generate(&mut random);
            let (enc, sealed) = seal_bytes(plain, pair.public(), &context.info(of_tenants), &mut random).unwrap();
            assert_eq!(pair.open(&enc, &Sealed::new(sealed).unwrap(), &context), Err(SealError::Open));
        }
        let pair = ReleaseKeyPair::generate(&mut random);
        let (enc, sealed) = seal(&key, Some(b"x"), pair.public(), &context, &mut random).unwrap();
        let cut = Sealed::new(sealed.as_slice()[..48].to_vec()).unwrap();
        assert_eq!(pair.open(&enc, &cut, &context), Err(SealError::Open));
        let large = vec![b'x'; Tenants::MAX_BYTES + 1];
        let pair = ReleaseKeyPair::generate(&mut random);
        for (document, sealed) in [(&large[1..], true), (&large, false), (&[], false)] {
            let found = seal(&key, Some(document), pair.public(), &context, &mut random);
            assert_eq!(found.is_ok(), sealed, "{}", document.len());
        }
    }
}
