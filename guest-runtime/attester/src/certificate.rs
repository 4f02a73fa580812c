// SPDX-License-Identifier: Apache-2.0
//! The guest's self-signed TLS certificate.

use attested_channel::{CertificateEvidence, certificate};
use attester_protocol::Failure;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, PublicKeyData, SignatureAlgorithm};
use types::{Base64, Sha256Digest};

use crate::keys::TlsKey;

/// DER of a certificate over the TLS key that names the evidence and carries its quote. Its dates say nothing: the
/// guest's age is no secret of it, and whoever accepts a guest asks for a fresh proof.
pub(crate) fn build(key: &TlsKey, evidence: Sha256Digest, quote: Vec<u8>) -> Result<Vec<u8>, Failure> {
    let quote = Base64::new(quote).ok_or(Failure::TooLarge)?;
    let value = CertificateEvidence { evidence, quote }.to_extension_value().map_err(|_| Failure::TooLarge)?;
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Chrysalis guest");
    params.custom_extensions = vec![CustomExtension::from_oid_content(&certificate::OID_ARCS, value)];
    let signed =
        params.self_signed(&Signing { public: *key.public().as_bytes(), key }).map_err(|_| Failure::Internal)?;
    Ok(signed.der().to_vec())
}

struct Signing<'a> {
    public: [u8; 32],
    key: &'a TlsKey,
}

impl PublicKeyData for Signing<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Signing<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign(message).to_vec())
    }
}

#[cfg(test)]
mod tests {
    use attested_channel::GuestCertificate;

    use super::*;

    #[test]
    fn the_certificate_is_over_the_tls_key_and_carries_the_quote() {
        let key = TlsKey::generate().unwrap();
        let der = build(&key, Sha256Digest::of(b"evidence"), vec![3; 5000]).unwrap();
        let read = GuestCertificate::from_der(&der).unwrap();
        assert_eq!(read.spki_sha256, key.spki_sha256());
        assert_eq!(read.evidence.evidence, Sha256Digest::of(b"evidence"));
        assert_eq!(read.evidence.quote.as_slice(), vec![3; 5000]);
        assert_eq!(build(&key, Sha256Digest::ZERO, vec![0; 13_000]), Err(Failure::TooLarge));
    }
}
