// SPDX-License-Identifier: Apache-2.0
//! The keys of a boot.

use attested_channel::ed25519_spki_sha256;
use attester_protocol::TlsSide;
use ed25519_dalek::{Signer as _, SigningKey};
use types::{Hex32, Sha256Digest};
use zeroize::Zeroizing;

/// Instance key and first TLS key, both Ed25519, overwritten when dropped.
pub struct Keys {
    /// Signs receipts, as long as the guest runs.
    pub(crate) instance: SigningKey,
    /// The first of its kind: it is renewed while the guest serves.
    pub(crate) tls: TlsKey,
}

impl Keys {
    /// New keys from the kernel's generator, which init has seeded.
    ///
    /// # Errors
    /// The kernel gave no randomness.
    pub fn generate() -> Result<Self, getrandom::Error> {
        Ok(Self { instance: new_key()?, tls: TlsKey::generate()? })
    }

    /// The public key that verifies receipts.
    #[must_use]
    pub fn instance_key(&self) -> Hex32 {
        Hex32::new(self.instance.verifying_key().to_bytes())
    }

    /// The public half of the first TLS key.
    #[must_use]
    pub fn tls_key(&self) -> Hex32 {
        self.tls.public()
    }

    /// SHA-256 of the DER SPKI of the first TLS key.
    #[must_use]
    pub fn spki_sha256(&self) -> Sha256Digest {
        self.tls.spki_sha256()
    }
}

/// A TLS key. In a box, so that it is not copied where it is moved.
pub(crate) struct TlsKey(Box<SigningKey>);

impl TlsKey {
    pub(crate) fn generate() -> Result<Self, getrandom::Error> {
        Ok(Self(Box::new(new_key()?)))
    }

    /// The public half.
    pub(crate) fn public(&self) -> Hex32 {
        Hex32::new(self.0.verifying_key().to_bytes())
    }

    /// SHA-256 of the DER SPKI.
    pub(crate) fn spki_sha256(&self) -> Sha256Digest {
        ed25519_spki_sha256(&self.public())
    }

    /// For the self-signature of the certificate, and after [`is_certificate_verify`].
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

/// Whether `message` is the content that this side of a TLS 1.3 connection signs in `CertificateVerify` (RFC 8446 section
/// 4.4.3): 64 spaces, the context string, a zero, a transcript hash of 32 or 48 bytes.
pub(crate) fn is_certificate_verify(side: TlsSide, message: &[u8]) -> bool {
    let context = match side {
        TlsSide::Server => SERVER_CONTEXT,
        TlsSide::Client => CLIENT_CONTEXT,
    };
    let hash = message.strip_prefix(&[0x20; 64]).and_then(|rest| rest.strip_prefix(context));
    hash.is_some_and(|hash| matches!(hash.len(), 32 | 48))
}

fn new_key() -> Result<SigningKey, getrandom::Error> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice())?;
    Ok(SigningKey::from_bytes(&seed))
}

const SERVER_CONTEXT: &[u8] = b"TLS 1.3, server CertificateVerify\0";
const CLIENT_CONTEXT: &[u8] = b"TLS 1.3, client CertificateVerify\0";

#[cfg(test)]
mod tests {
    use super::*;

    fn content(context: &[u8], hash: usize) -> Vec<u8> {
        [&[0x20; 64], context, &vec![7; hash]].concat()
    }

    #[test]
    fn only_a_side_s_own_certificate_verify_is_signed() {
        for (side, own, others) in
            [(TlsSide::Server, SERVER_CONTEXT, CLIENT_CONTEXT), (TlsSide::Client, CLIENT_CONTEXT, SERVER_CONTEXT)]
        {
            assert!(is_certificate_verify(side, &content(own, 32)));
            assert!(is_certificate_verify(side, &content(own, 48)));
            for other in [
                content(own, 31),
                content(own, 64),
                content(others, 32),
                content(b"chrysalis/receipt/v2", 32),
                content(own, 32)[1..].to_vec(),
                [content(own, 32), vec![0]].concat(),
                Vec::new(),
            ] {
                assert!(!is_certificate_verify(side, &other), "{other:?}");
            }
        }
    }

    #[test]
    fn keys_differ_from_each_other_and_from_boot_to_boot() {
        let (a, b) = (Keys::generate().unwrap(), Keys::generate().unwrap());
        let all = [a.instance_key(), a.tls_key(), b.instance_key(), b.tls_key()];
        assert!((0..4).all(|i| all.iter().filter(|key| **key == all[i]).count() == 1));
    }
}
