// SPDX-License-Identifier: Apache-2.0
//! One X.509 certificate (RFC 5280) with an ECDSA P-384 key, and the PEM text that chains come in.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use der::{Decode as _, Reader as _, SliceReader, oid::ObjectIdentifier};
use ecdsa_verify::Scheme;
use types::Sha256Digest;
use x509_cert::{
    Certificate, TbsCertificate,
    ext::{
        Extension,
        pkix::{BasicConstraints, KeyUsage},
    },
};

/// A parsed certificate and the bytes that its issuer signed.
#[derive(Debug, Clone)]
pub(crate) struct Cert {
    der: Vec<u8>,
    tbs: Vec<u8>,
    parsed: Certificate,
}

impl Cert {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, String> {
        if der.len() > MAX_CERTIFICATE_LEN {
            return Err(format!("has more than {MAX_CERTIFICATE_LEN} bytes"));
        }
        let parsed = Certificate::from_der(der).map_err(|error| format!("is no X.509 certificate: {error}"))?;
        let tbs = tbs_bytes(der).map_err(|error| format!("is no X.509 certificate: {error}"))?;
        Ok(Self { der: der.to_vec(), tbs, parsed })
    }

    pub(crate) fn tbs(&self) -> &TbsCertificate {
        self.parsed.tbs_certificate()
    }

    pub(crate) fn digest(&self) -> Sha256Digest {
        Sha256Digest::of(&self.der)
    }

    /// True when key and signature are of the one kind that is known here: ECDSA, P-384, SHA-384.
    pub(crate) fn uses_p384(&self) -> bool {
        let key = &self.tbs().subject_public_key_info().algorithm;
        let curve = key.parameters.as_ref().and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        key.oid == EC_PUBLIC_KEY
            && curve == Some(SECP384R1)
            && [self.tbs().signature(), self.parsed.signature_algorithm()]
                .iter()
                .all(|algorithm| algorithm.oid == ECDSA_SHA384 && algorithm.parameters.is_none())
    }

    /// The point of the public key; empty where it is none.
    pub(crate) fn key(&self) -> &[u8] {
        self.tbs().subject_public_key_info().subject_public_key.as_bytes().unwrap_or_default()
    }

    /// Whether the holder of `issuer`'s key signed this certificate.
    pub(crate) fn is_signed_by(&self, issuer: &Self) -> bool {
        let signature = self.parsed.signature().as_bytes().unwrap_or_default();
        issuer.verifies_der(&self.tbs, signature)
    }

    /// Verifies a signature in DER.
    pub(crate) fn verifies_der(&self, message: &[u8], signature: &[u8]) -> bool {
        self.uses_p384() && Scheme::P384Der.verifies(self.key(), message, signature)
    }

    /// Verifies a signature of 96 bytes: r, then s.
    pub(crate) fn verifies_fixed(&self, message: &[u8], signature: &[u8]) -> bool {
        self.uses_p384() && Scheme::P384Fixed.verifies(self.key(), message, signature)
    }

    pub(crate) fn extensions(&self) -> &[Extension] {
        self.tbs().extensions().map_or(&[], Vec::as_slice)
    }

    /// The extension's content; `None` where it is absent. Duplicates are refused by [`crate::chain`].
    pub(crate) fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        self.extensions().iter().find(|extension| extension.extn_id == oid).map(|found| found.extn_value.as_bytes())
    }

    pub(crate) fn basic_constraints(&self) -> Option<BasicConstraints> {
        self.extension(BASIC_CONSTRAINTS).and_then(|der| BasicConstraints::from_der(der).ok())
    }

    pub(crate) fn key_usage(&self) -> Option<KeyUsage> {
        self.extension(KEY_USAGE).and_then(|der| KeyUsage::from_der(der).ok())
    }

    /// First and last second (since 1970) at which it is valid.
    pub(crate) fn validity(&self) -> (u64, u64) {
        let validity = self.tbs().validity();
        (validity.not_before.to_unix_duration().as_secs(), validity.not_after.to_unix_duration().as_secs())
    }

    /// Common name of the subject, for people and for the name of the chip.
    pub(crate) fn common_name(&self) -> String {
        self.subject_text(COMMON_NAME)
    }

    /// An attribute of the subject as text; empty where it is absent or no text.
    pub(crate) fn subject_text(&self, oid: ObjectIdentifier) -> String {
        let found = self.tbs().subject().iter().find(|attribute| attribute.oid == oid);
        let bytes = found.map(|attribute| attribute.value.value()).unwrap_or_default();
        bytes
            .iter()
            .take(MAX_NAME)
            .filter(|byte| byte.is_ascii_graphic() || **byte == b' ')
            .map(|b| char::from(*b))
            .collect()
    }
}

/// Certificates of PEM text, in order. Nothing but white space may stand between them, and zeros after the last.
pub(crate) fn parse_pem(text: &[u8]) -> Result<Vec<Cert>, String> {
    if text.len() > MAX_CHAIN_LEN {
        return Err(format!("has more than {MAX_CHAIN_LEN} bytes"));
    }
    let text = core::str::from_utf8(text).map_err(|_| "is no PEM text".to_owned())?;
    let mut rest = text.trim_end_matches('\0').trim();
    let mut certificates = Vec::new();
    while !rest.is_empty() {
        let body = rest.strip_prefix(BEGIN).ok_or("has something other than certificates in PEM")?;
        let (body, after) = body.split_once(END).ok_or("ends inside a certificate")?;
        certificates.push(Cert::parse(&decode_base64(body)?)?);
        rest = after.trim_start();
        if certificates.len() > MAX_CERTIFICATES {
            return Err(format!("has more than {MAX_CERTIFICATES} certificates"));
        }
    }
    Ok(certificates)
}

/// Base64 with white space anywhere.
pub(crate) fn decode_base64(text: &str) -> Result<Vec<u8>, String> {
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(text).map_err(|_| "is not base64".to_owned())
}

/// The signed part, as it stands in `der`: not a re-encoding.
fn tbs_bytes(der: &[u8]) -> der::Result<Vec<u8>> {
    let mut reader = SliceReader::new(der)?;
    reader.sequence(|inner| {
        let tbs = inner.tlv_bytes()?.to_vec();
        inner.tlv_bytes()?;
        inner.tlv_bytes()?;
        Ok::<_, der::Error>(tbs)
    })
}

pub(crate) const MAX_CERTIFICATES: usize = 8;
/// Largest chain of certificates as text, in bytes. Real ones have about 4,900.
pub const MAX_CHAIN_LEN: usize = 32 * 1024;
const MAX_CERTIFICATE_LEN: usize = 4096;
const MAX_NAME: usize = 64;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
pub(crate) const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
pub(crate) const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
pub(crate) const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
