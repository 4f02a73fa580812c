// SPDX-License-Identifier: Apache-2.0
//! Tink's streaming AEAD, AES-GCM-HKDF (<https://developers.google.com/tink/streaming-aead/aes_gcm_hkdf_streaming>).
//!
//! A ciphertext is a header (its length in one byte, a salt, a nonce prefix) and segments of AES-GCM. All segments have
//! the same length but the last; the header counts to the first. The salt makes a key of its own for each ciphertext:
//! HKDF(key, salt, info = associated data). A segment's nonce is the prefix, its number and whether it is the last, so
//! that segments cannot be reordered, dropped or cut off.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf;

/// The parameters of a streaming key in Tink's words. The derived key is as long as `cipher` takes.
#[derive(Clone, Copy)]
pub(crate) struct Scheme {
    hash: fn() -> hkdf::Algorithm,
    cipher: &'static aead::Algorithm,
    segment: u32,
}

impl Scheme {
    /// AES-256-GCM and HKDF-SHA256, as every pack uses it, with segments of `segment` bytes of ciphertext.
    pub(crate) fn of_pack(segment: u32) -> Self {
        Self { hash: || hkdf::HKDF_SHA256, cipher: &aead::AES_256_GCM, segment }
    }

    /// Bytes of ciphertext in a full segment; the first one includes the header.
    pub(crate) fn segment_length(&self) -> usize {
        usize::try_from(self.segment).unwrap_or(usize::MAX)
    }

    pub(crate) fn header_length(&self) -> usize {
        HEADER_LENGTH_BYTES.saturating_add(self.cipher.key_len()).saturating_add(NONCE_PREFIX)
    }

    /// Bytes of plaintext in the first segment, or in any other.
    pub(crate) fn plaintext_segment(&self, is_first: bool) -> usize {
        let header = if is_first { self.header_length() } else { 0 };
        self.segment_length().saturating_sub(header).saturating_sub(TAG)
    }

    /// Length of the ciphertext of `plaintext` bytes. The last segment is empty only if it is the only one.
    pub(crate) fn ciphertext_length(&self, plaintext: u64) -> Option<u64> {
        let header = u64::try_from(self.header_length()).ok()?;
        let tag = u64::try_from(TAG).ok()?;
        let per_segment = u64::from(self.segment).checked_sub(tag).filter(|length| *length > 0)?;
        let segments = plaintext.checked_add(header)?.div_ceil(per_segment).max(1);
        plaintext.checked_add(header)?.checked_add(segments.checked_mul(tag)?)
    }

    /// Length of the plaintext of `ciphertext` bytes, if a ciphertext can have that length.
    pub(crate) fn plaintext_length(&self, ciphertext: u64) -> Option<u64> {
        let segments = ciphertext.div_ceil(u64::from(self.segment).max(1));
        let overhead =
            u64::try_from(self.header_length()).ok()?.checked_add(segments.checked_mul(u64::try_from(TAG).ok()?)?)?;
        let plaintext = ciphertext.checked_sub(overhead)?;
        (self.ciphertext_length(plaintext)? == ciphertext).then_some(plaintext)
    }

    /// Starts a ciphertext: gives its header, and what encrypts its segments. `salt` and `prefix` must be random.
    pub(crate) fn seal(
        &self,
        key: &[u8],
        associated: &[u8],
        random: &Random,
    ) -> Result<(Vec<u8>, Sealer), Unspecified> {
        let salt = random.salt.get(..self.cipher.key_len()).ok_or(Unspecified)?;
        let mut header = vec![u8::try_from(self.header_length()).map_err(|_| Unspecified)?];
        header.extend_from_slice(salt);
        header.extend_from_slice(&random.prefix);
        let sealer = Sealer { key: self.derive(key, associated, salt)?, prefix: random.prefix, next: Some(0) };
        Ok((header, sealer))
    }

    /// Reads a ciphertext's header; gives what decrypts its segments.
    pub(crate) fn open(&self, key: &[u8], associated: &[u8], header: &[u8]) -> Result<Opener, Unspecified> {
        let (length, rest) = header.split_first().ok_or(Unspecified)?;
        let (salt, prefix) = rest.split_at_checked(self.cipher.key_len()).ok_or(Unspecified)?;
        if usize::from(*length) != self.header_length() {
            return Err(Unspecified);
        }
        let prefix = prefix.try_into().map_err(|_| Unspecified)?;
        Ok(Opener { key: self.derive(key, associated, salt)?, prefix })
    }

    fn derive(&self, key: &[u8], associated: &[u8], salt: &[u8]) -> Result<LessSafeKey, Unspecified> {
        let prk = hkdf::Salt::new((self.hash)(), salt).extract(key);
        Ok(LessSafeKey::new(UnboundKey::from(prk.expand(&[associated], self.cipher)?)))
    }
}

/// The random part of a header.
pub(crate) struct Random {
    salt: [u8; MAX_SALT],
    prefix: [u8; NONCE_PREFIX],
}

impl Random {
    /// Fresh from the system.
    pub(crate) fn new() -> Result<Self, getrandom::Error> {
        let mut random = Self { salt: [0; MAX_SALT], prefix: [0; NONCE_PREFIX] };
        getrandom::fill(&mut random.salt)?;
        getrandom::fill(&mut random.prefix)?;
        Ok(random)
    }
}

/// Encrypts the segments of one ciphertext, in order.
pub(crate) struct Sealer {
    key: LessSafeKey,
    prefix: [u8; NONCE_PREFIX],
    /// Number of the next segment; none after the last.
    next: Option<u32>,
}

impl Sealer {
    /// Encrypts the next segment in place; its tag is appended.
    pub(crate) fn seal(&mut self, segment: &mut Vec<u8>, is_last: bool) -> Result<(), Unspecified> {
        let number = self.next.ok_or(Unspecified)?;
        self.next = if is_last { None } else { number.checked_add(1) };
        self.key.seal_in_place_append_tag(nonce(self.prefix, number, is_last), Aad::empty(), segment)
    }
}

/// Decrypts the segments of one ciphertext, in any order and on any thread.
pub(crate) struct Opener {
    key: LessSafeKey,
    prefix: [u8; NONCE_PREFIX],
}

impl Opener {
    /// Decrypts segment `number` in place; gives the plaintext, which is its start. Whoever opens a ciphertext opens
    /// each number up to the last, and says so of that one alone: then nothing was cut off.
    pub(crate) fn open<'s>(
        &self,
        number: u32,
        is_last: bool,
        segment: &'s mut [u8],
    ) -> Result<&'s mut [u8], Unspecified> {
        self.key.open_in_place(nonce(self.prefix, number, is_last), Aad::empty(), segment)
    }
}

fn nonce(prefix: [u8; NONCE_PREFIX], number: u32, is_last: bool) -> Nonce {
    let [p0, p1, p2, p3, p4, p5, p6] = prefix;
    let [n0, n1, n2, n3] = number.to_be_bytes();
    Nonce::assume_unique_for_key([p0, p1, p2, p3, p4, p5, p6, n0, n1, n2, n3, u8::from(is_last)])
}

const HEADER_LENGTH_BYTES: usize = 1;
const NONCE_PREFIX: usize = 7;
const MAX_SALT: usize = 32;
/// Length of an AES-GCM tag.
pub(crate) const TAG: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seal(scheme: Scheme, key: &[u8], associated: &[u8], plaintext: &[u8], random: &Random) -> Vec<u8> {
        let (mut out, mut segments) = scheme.seal(key, associated, random).unwrap();
        let (first, rest) = plaintext.split_at(plaintext.len().min(scheme.plaintext_segment(true)));
        let mut pieces = vec![first];
        pieces.extend(rest.chunks(scheme.plaintext_segment(false)));
        let last = pieces.len() - 1;
        for (number, piece) in pieces.into_iter().enumerate() {
            let mut segment = piece.to_vec();
            segments.seal(&mut segment, number == last).unwrap();
            out.extend(segment);
        }
        out
    }

    fn open(scheme: Scheme, key: &[u8], associated: &[u8], ciphertext: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let (header, _) = ciphertext.split_at_checked(scheme.header_length()).ok_or(Unspecified)?;
        let opener = scheme.open(key, associated, header)?;
        let count = ciphertext.chunks(scheme.segment_length()).count();
        let mut out = vec![];
        for (number, chunk) in ciphertext.chunks(scheme.segment_length()).enumerate() {
            let skip = if number == 0 { scheme.header_length() } else { 0 };
            let place = u32::try_from(number).unwrap();
            out.extend_from_slice(opener.open(place, number + 1 == count, &mut chunk[skip..].to_vec())?);
        }
        Ok(out)
    }

    /// The vector of Tink's cross-language tests (tink-java, `AesGcmHkdfStreamingTestUtil`).
    #[test]
    fn tinks_own_vector_decrypts_and_encrypts() {
        let scheme = Scheme { hash: || hkdf::HKDF_SHA1_FOR_LEGACY_USE_ONLY, cipher: &aead::AES_128_GCM, segment: 64 };
        let key = hex::decode("6eb56cdc726dfbe5d57f2fcdc6e9345b").unwrap();
        let ciphertext = hex::decode(concat!(
            "1893b3af5e14ab378d065addfc8484da642c0862877baea8",
            "db92d9c77406a406168478821c4298eab3e6d531277f4c1a051714faebcaefcbca7b7be05e9445ea",
            "a0bb2904153398a25084dd80ae0edcd1c3079fcea2cd3770630ee36f7539207b8ec9d754956d486b71cdf989f0ed6fba6779b63558be0a66e668df14e1603cd2",
            "af8944844078345286d0b292e772e7190775c51a0f83e40c0b75821027e7e538e111",
        ))
        .unwrap();
        let plaintext = b"This is a fairly long plaintext. It is of the exact length to create three output blocks. ";
        assert_eq!(open(scheme, &key, b"aad", &ciphertext).unwrap(), plaintext);
        let mut random = Random { salt: [0; 32], prefix: ciphertext[17..24].try_into().unwrap() };
        random.salt[..16].copy_from_slice(&ciphertext[1..17]);
        assert_eq!(seal(scheme, &key, b"aad", plaintext, &random), ciphertext);
    }

    /// Ciphertexts that Tink 1.16.1 for Python made with the parameters of a pack, except for the segments' length: the
    /// key is 00 01 02 …, byte i of the plaintext 7i + 3, the associated data `associated`.
    #[test]
    fn what_tink_encrypted_with_a_packs_parameters_decrypts() {
        let vectors = [
            (
                0,
                "280006bb67cd035e1b8f5e600cdad5d4f20a7d9ab130a07b4ba31ccc317033180e4e0f0796d597feb08db8c96d2ed199e493e3f9a60cd5e6",
            ),
            (
                73,
                "28126cc5c5de8280b8fa683b08ba88e24b6d8764e3761b5c8d6b38de1877cd302aa0c2c610355d8f878281d29232e71c6c5c97a2986343d8b50893387743c74da6bf0456b414d593860acdc941b70f223720c84aa1e0e38b966f71cc2774af338c4bf150cb44102c4b9dbd53c6378944cee74ccf5f69d65f63772fdcb8354b6c07e69086f5956d8fad5f5c5d68422085d5",
            ),
            (
                200,
                "28c3143adf43c5f32649dc63ac72f6dc708a91474dd1df1685e9de8a31610cf599c6ff4284d4e1525831b61931eb7b172fcc1906ecd9f6c66601aad8c627272fef208cd9f08eb83fcd4e13dcd7742f1b6a5c29e246d15cb5bce2a457c4d78437bbc8138ed35451b66696792f02a7210284f3b8aed5c62cdd3043f7962f12093642c1e6eb246b482d4bd6847cbb436d6bc588e8e0e77724806dc58abce429768da590223fd006adb0019f8a059d14b4d219bcefe127f0948e40de3de0795c4314ff3896065efc3ab318d3e8021ec891a10bc34a8e14b78f8c5035e1fdc82391fc1f89c690f07fe55788d9245a77c1bbe7f015fa5469c244a1c65645e4faf3d6f526d18bffdf3dab4640ca4eb70dcc796a29e7bb7f281178d8ae1c2e0bba3f43f7",
            ),
        ];
        let key: Vec<u8> = (0..32).collect();
        for (length, ciphertext) in vectors {
            let ciphertext = hex::decode(ciphertext).unwrap();
            let plaintext: Vec<u8> = (0..length).map(|i: u32| u8::try_from((i * 7 + 3) & 255).unwrap()).collect();
            let scheme = Scheme::of_pack(128);
            assert_eq!(open(scheme, &key, b"associated", &ciphertext).unwrap(), plaintext);
            assert!(open(scheme, &key, b"Associated", &ciphertext).is_err());
            assert_eq!(scheme.ciphertext_length(length.into()), Some(u64::try_from(ciphertext.len()).unwrap()));
        }
    }

    proptest! {
        #[test]
        fn lengths_are_what_encryption_makes(length in 0_usize..700, segment in 57_u32..200) {
            let scheme = Scheme::of_pack(segment);
            let ciphertext = seal(scheme, &[1; 32], b"", &vec![5; length], &Random::new().unwrap());
            let (plain, cipher) = (u64::try_from(length).unwrap(), u64::try_from(ciphertext.len()).unwrap());
            prop_assert_eq!(scheme.ciphertext_length(plain), Some(cipher));
            prop_assert_eq!(scheme.plaintext_length(cipher), Some(plain));
            prop_assert_eq!(open(scheme, &[1; 32], b"", &ciphertext).unwrap(), vec![5; length]);
        }

        #[test]
        fn any_change_is_refused(length in 0_usize..400, position in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let scheme = Scheme::of_pack(100);
            let ciphertext = seal(scheme, &[1; 32], b"x", &vec![5; length], &Random::new().unwrap());
            let mut flipped = ciphertext.clone();
            flipped[position.index(ciphertext.len())] ^= 1 << bit;
            prop_assert!(open(scheme, &[1; 32], b"x", &flipped).is_err());
            prop_assert!(open(scheme, &[1; 32], b"x", &ciphertext[..position.index(ciphertext.len())]).is_err());
            let mut longer = ciphertext;
            longer.push(0);
            prop_assert!(open(scheme, &[1; 32], b"x", &longer).is_err());
        }
    }

    #[test]
    fn segments_cannot_change_places() {
        let scheme = Scheme::of_pack(100);
        let ciphertext = seal(scheme, &[1; 32], b"", &[9; 400], &Random::new().unwrap());
        let mut swapped = ciphertext[..100].to_vec();
        swapped.extend_from_slice(&ciphertext[200..300]);
        swapped.extend_from_slice(&ciphertext[100..200]);
        swapped.extend_from_slice(&ciphertext[300..]);
        assert!(open(scheme, &[1; 32], b"", &swapped).is_err());
    }
}
