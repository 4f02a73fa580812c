// SPDX-License-Identifier: Apache-2.0
//! The evidence in a guest's TLS certificate.

use attested_channel::{CertificateEvidence, GuestCertificate};
use der::{Decode as _, Encode as _};
use types::Sha256Digest;
use x509_cert::Certificate;

/// `x` and the value of the extension, else a certificate. Its evidence has one spelling and stands in it exactly once, the key is
/// the certificate's own, and nothing may follow.
pub fn certificate(bytes: &[u8]) -> bool {
    if let Some((b'x', value)) = bytes.split_first() {
        return extension(value).is_some();
    }
    let Ok(read) = GuestCertificate::from_der(bytes) else { return false };
    let value = read.evidence.to_extension_value().expect("what was read can be written");
    let found = bytes.windows(value.len()).filter(|window| *window == value).count();
    assert!(found >= 1, "the evidence is not what stands in the certificate");
    assert_eq!(extension(&value).as_ref(), Some(&read.evidence), "the extension by itself");
    let parsed = Certificate::from_der(bytes).expect("it was accepted as one");
    let key = parsed.tbs_certificate().subject_public_key_info().to_der().expect("a key");
    assert_eq!(read.spki_sha256, Sha256Digest::of(&key), "another key");
    assert!(bytes.windows(key.len()).any(|window| window == key), "the key is not as it stands there");
    assert!(GuestCertificate::from_der(&[bytes, &[0]].concat()).is_err(), "bytes after a certificate");
    true
}

fn extension(value: &[u8]) -> Option<CertificateEvidence> {
    let evidence = CertificateEvidence::from_extension_value(value).ok()?;
    assert_eq!(evidence.to_extension_value().as_deref(), Ok(value), "an extension has one spelling");
    assert!(CertificateEvidence::from_extension_value(&[value, &[0]].concat()).is_err(), "bytes after an extension");
    Some(evidence)
}
