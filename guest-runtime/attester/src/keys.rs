// SPDX-License-Identifier: Apache-2.0
//! The two keys of a boot.

use attested_channel::ed25519_spki_sha256;
use ed25519_dalek::{Signer as _, SigningKey};
use types::{Hex32, Sha256Digest};
use zeroize::Zeroizing;

/// Instance key and TLS key, both Ed25519, made once and overwritten when dropped.
pub struct Keys {
    /// Signs receipts.
    pub(crate) instance: SigningKey,
    tls: SigningKey,
}

impl Keys {
    /// New keys from the kernel's generator, which init has seeded.
    ///
    /// # Errors
    /// The kernel gave no randomness.
    pub fn generate() -> Result<Self, getrandom::Error> {
        Ok(Self { instance: new_key()?, tls: new_key()? })
    }

    /// The public key that verifies receipts.
    #[must_use]
    pub fn instance_key(&self) -> Hex32 {
        Hex32::new(self.instance.verifying_key().to_bytes())
    }

    /// The public half of the TLS key.
    #[must_use]
    pub fn tls_key(&self) -> Hex32 {
        Hex32::new(self.tls.verifying_key().to_bytes())
    }

    /// SHA-256 of the DER SPKI of the TLS key.
    #[must_use]
    pub fn spki_sha256(&self) -> Sha256Digest {
        ed25519_spki_sha256(&self.tls_key())
    }

    /// Signs with the TLS key. For the self-signature of the certificate, and after [`is_certificate_verify`].
    pub(crate) fn sign_tls(&self, message: &[u8]) -> [u8; 64] {
        self.tls.sign(message).to_bytes()
    }
}

/// Whether `message` is the content that a TLS 1.3 *server* signs in `CertificateVerify` (RFC 8446 section 4.4.3): 64
/// spaces, the context string, a zero, a transcript hash of 32 or 48 bytes.
pub(crate) fn is_certificate_verify(message: &[u8]) -> bool {
    let hash = message.strip_prefix(&[0x20; 64]).and_then(|rest| rest.strip_prefix(SERVER_CONTEXT));
    hash.is_some_and(|hash| matches!(hash.len(), 32 | 48))
}

fn new_key() -> Result<SigningKey, getrandom::Error> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice())?;
    Ok(SigningKey::from_bytes(&seed))
}

const SERVER_CONTEXT: &[u8] = b"TLS 1.3, server CertificateVerify\0";

#[cfg(test)]
mod tests {
    use super::*;

    fn content(context: &[u8], hash: usize) -> Vec<u8> {
        [&[0x20; 64], context, &vec![7; hash]].concat()
    }

    #[test]
    fn only_a_servers_certificate_verify_is_signed() {
        assert!(is_certificate_verify(&content(SERVER_CONTEXT, 32)));
        assert!(is_certificate_verify(&content(SERVER_CONTEXT, 48)));
        for other in [
            content(SERVER_CONTEXT, 31),
            content(SERVER_CONTEXT, 64),
            content(b"TLS 1.3, client CertificateVerify\0", 32),
            content(b"chrysalis/receipt/v2", 32),
            content(SERVER_CONTEXT, 32)[1..].to_vec(),
            [content(SERVER_CONTEXT, 32), vec![0]].concat(),
            Vec::new(),
        ] {
            assert!(!is_certificate_verify(&other), "{other:?}");
        }
    }

    #[test]
    fn keys_differ_from_each_other_and_from_boot_to_boot() {
        let (a, b) = (Keys::generate().unwrap(), Keys::generate().unwrap());
        let all = [a.instance_key(), a.tls_key(), b.instance_key(), b.tls_key()];
        assert!((0..4).all(|i| all.iter().filter(|key| **key == all[i]).count() == 1));
    }
}
