// SPDX-License-Identifier: Apache-2.0
//! The guest's TLS certificate: self-signed, with one extension that names the evidence and carries a quote.
//!
//! The certificate proves nothing by itself: whoever accepts a guest verifies a fresh proof for the connection
//! and compares the key here with the key that the proof's quote binds.

use der::{Decode as _, Encode as _, asn1::Utf8StringRef, oid::ObjectIdentifier};
use serde::{Deserialize, Serialize};
use types::{Base64, CanonicalError, Sha256Digest, canonical};
use x509_cert::{Certificate, ext::Extension};

/// What stands in the extension: the evidence's address, and a quote without freshness over the guest's keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateEvidence {
    /// SHA-256 of the canonical evidence document.
    pub evidence: Sha256Digest,
    /// The quote of that document (freshness kind none).
    pub quote: Base64<{ types::evidence::MAX_QUOTE }>,
}

impl CertificateEvidence {
    /// The bytes of the extension's `extnValue`: a DER `UTF8String` (the JSON choice of a conceptual message wrapper,
    /// TCG DICE Attestation Architecture 1.2 section 6.1.2) that holds the canonical JSON.
    ///
    /// # Errors
    /// [`CertificateError`] when the quote makes the JSON longer than [`MAX_EXTENSION`] bytes.
    pub fn to_extension_value(&self) -> Result<Vec<u8>, CertificateError> {
        let json = canonical::to_bytes(self)?;
        if json.len() > MAX_EXTENSION {
            return Err(CertificateError::TooLarge { what: "extension", max: MAX_EXTENSION, found: json.len() });
        }
        let text = Utf8StringRef::new(&json).map_err(|_| CertificateError::ExtensionValue)?;
        text.to_der().map_err(|_| CertificateError::ExtensionValue)
    }

    /// Reads the bytes of an extension's `extnValue`.
    ///
    /// # Errors
    /// [`CertificateError`] names the rule.
    pub fn from_extension_value(value: &[u8]) -> Result<Self, CertificateError> {
        let text = Utf8StringRef::from_der(value).map_err(|_| CertificateError::ExtensionValue)?;
        Ok(canonical::from_bytes(text.as_str().as_bytes(), MAX_EXTENSION)?)
    }
}

/// A certificate of the right form. Neither its quote nor its signature has been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestCertificate {
    /// SHA-256 of the DER `SubjectPublicKeyInfo`.
    pub spki_sha256: Sha256Digest,
    /// What the extension says.
    pub evidence: CertificateEvidence,
}

impl GuestCertificate {
    /// Reads a certificate from exactly its DER bytes. Dates, names and the self-signature are not looked at:
    /// they could say anything.
    ///
    /// # Errors
    /// [`CertificateError`] names the rule.
    pub fn from_der(bytes: &[u8]) -> Result<Self, CertificateError> {
        if bytes.len() > MAX_CERTIFICATE {
            return Err(CertificateError::TooLarge { what: "certificate", max: MAX_CERTIFICATE, found: bytes.len() });
        }
        let certificate = Certificate::from_der(bytes).map_err(|_| CertificateError::Malformed)?;
        let tbs = certificate.tbs_certificate();
        let spki = tbs.subject_public_key_info().to_der().map_err(|_| CertificateError::Malformed)?;
        let extension = the_extension(tbs.extensions().map_or(&[], Vec::as_slice))?;
        let evidence = CertificateEvidence::from_extension_value(extension.extn_value.as_bytes())?;
        Ok(Self { spki_sha256: Sha256Digest::of(&spki), evidence })
    }
}

/// Why a certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Certificate or extension has too many bytes.
    #[error("the {what} has {found} bytes, at most {max} are allowed")]
    TooLarge {
        /// Which of them.
        what: &'static str,
        /// The cap.
        max: usize,
        /// What was found.
        found: usize,
    },
    /// Not exactly one DER certificate.
    #[error("the certificate is not exactly one DER encoded X.509 certificate")]
    Malformed,
    /// Another number of evidence extensions than one.
    #[error("the certificate must have exactly one extension {OID}, found {found}")]
    Extensions {
        /// How many were found.
        found: usize,
    },
    /// The extension is marked critical.
    #[error("the extension {OID} must not be critical")]
    Critical,
    /// The extension's value is not a DER `UTF8String`.
    #[error("the value of extension {OID} is not a DER UTF8String")]
    ExtensionValue,
    /// The extension's JSON breaks a rule.
    #[error("extension {OID}: {0}")]
    Json(#[from] CanonicalError),
}

impl CertificateError {
    /// The stable code of a refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Extensions { found: 0 } => "certificate_evidence_missing",
            Self::TooLarge { .. } => "certificate_too_large",
            _ => "certificate_malformed",
        }
    }
}

fn the_extension(extensions: &[Extension]) -> Result<&Extension, CertificateError> {
    let mut ours = extensions.iter().filter(|extension| extension.extn_id == OID);
    let first = ours.next().ok_or(CertificateError::Extensions { found: 0 })?;
    let others = ours.count();
    if others != 0 {
        return Err(CertificateError::Extensions { found: others.saturating_add(1) });
    }
    if first.critical { Err(CertificateError::Critical) } else { Ok(first) }
}

/// `tcg-dice-conceptual-message-wrapper` (TCG DICE Attestation Architecture 1.2 section 6.1.2).
pub const OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.9");
/// The arcs of [`OID`].
pub const OID_ARCS: [u64; 6] = [2, 23, 133, 5, 4, 9];
/// Most bytes of the extension's JSON.
pub const MAX_EXTENSION: usize = 16 * 1024;
/// Most bytes of the certificate.
pub const MAX_CERTIFICATE: usize = 20 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence() -> CertificateEvidence {
        CertificateEvidence { evidence: Sha256Digest::of(b"e"), quote: Base64::new(vec![7; 6000]).unwrap() }
    }

    fn certificate(values: &[Vec<u8>], critical: bool) -> (Vec<u8>, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["guest".to_owned()]).unwrap();
        params.custom_extensions = values
            .iter()
            .map(|value| {
                let mut extension = rcgen::CustomExtension::from_oid_content(&OID_ARCS, value.clone());
                extension.set_criticality(critical);
                extension
            })
            .collect();
        (params.self_signed(&key).unwrap().der().to_vec(), key)
    }

    #[test]
    fn what_was_put_in_comes_out() {
        let (der, key) = certificate(&[evidence().to_extension_value().unwrap()], false);
        let read = GuestCertificate::from_der(&der).unwrap();
        assert_eq!(read.evidence, evidence());
        assert_eq!(read.spki_sha256, Sha256Digest::of(&rcgen::PublicKeyData::subject_public_key_info(&key)));
    }

    #[test]
    fn other_forms_are_refused() {
        let value = evidence().to_extension_value().unwrap();
        let refuse = |values: &[Vec<u8>], critical| GuestCertificate::from_der(&certificate(values, critical).0);
        assert_eq!(refuse(&[], false), Err(CertificateError::Extensions { found: 0 }));
        assert!(refuse(&[value.clone(), value.clone()], false).is_err());
        assert_eq!(refuse(std::slice::from_ref(&value), true), Err(CertificateError::Critical));
        assert_eq!(refuse(&[b"{}".to_vec()], false), Err(CertificateError::ExtensionValue));
        let mut trailing = value.clone();
        trailing.push(0);
        assert_eq!(refuse(&[trailing], false), Err(CertificateError::ExtensionValue));
        let spaced = Utf8StringRef::new("{ }").unwrap().to_der().unwrap();
        assert!(matches!(refuse(&[spaced], false), Err(CertificateError::Json(_))));
        let (mut der, _) = certificate(&[value], false);
        der.push(0);
        assert_eq!(GuestCertificate::from_der(&der), Err(CertificateError::Malformed));
        assert!(matches!(
            GuestCertificate::from_der(&vec![0; MAX_CERTIFICATE + 1]),
            Err(CertificateError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_quote_that_does_not_fit_is_refused_when_writing() {
        let large = CertificateEvidence { evidence: Sha256Digest::ZERO, quote: Base64::new(vec![0; 13_000]).unwrap() };
        assert!(matches!(large.to_extension_value(), Err(CertificateError::TooLarge { what: "extension", .. })));
    }
}
