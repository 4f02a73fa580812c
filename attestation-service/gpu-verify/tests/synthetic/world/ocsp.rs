// SPDX-License-Identifier: Apache-2.0
//! OCSP answers of the test maker, written by hand.

use aws_lc_rs::{
    digest::{SHA384, digest},
    rand::SystemRandom,
    signature::{ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair},
};
use der::{Decode as _, Encode as _};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P384_SHA384};
use x509_cert::Certificate;

use super::{Authority, SHA384_OID, issue, leaf, tlv};

#[derive(Clone, Copy)]
pub enum OcspStatus {
    Good,
    Revoked,
    Unknown,
}

/// Signed by the issuer itself. The times are `YYYYMMDD`.
pub fn answer(certificate: &[u8], issuer: &Authority, status: OcspStatus, from: &str, to: &str) -> Vec<u8> {
    build(certificate, issuer, status, from, to, &issuer.key, None)
}

/// Signed by a responder; `purpose` says whether its certificate is for that.
pub fn delegated_answer(certificate: &[u8], issuer: &Authority, by: &Authority, purpose: bool) -> Vec<u8> {
    let mut params = leaf("Responder");
    if purpose {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning];
    }
    let responder = issue(params, by, &PKCS_ECDSA_P384_SHA384);
    build(certificate, issuer, OcspStatus::Good, "20251201", "20260201", &responder.key, Some(&responder.der))
}

fn build(
    certificate: &[u8],
    issuer: &Authority,
    status: OcspStatus,
    from: &str,
    to: &str,
    key: &KeyPair,
    responder: Option<&[u8]>,
) -> Vec<u8> {
    let parsed = Certificate::from_der(certificate).unwrap();
    let issuer = Certificate::from_der(&issuer.der).unwrap();
    let name = issuer.tbs_certificate().subject().to_der().unwrap();
    let point = issuer.tbs_certificate().subject_public_key_info().subject_public_key.raw_bytes().to_vec();
    let hash = |bytes: &[u8]| tlv(0x04, digest(&SHA384, bytes).as_ref());
    let id =
        [tlv(0x30, SHA384_OID), hash(&name), hash(&point), parsed.tbs_certificate().serial_number().to_der().unwrap()];
    let time = |day: &str| tlv(0x18, format!("{day}000000Z").as_bytes());
    let status = match status {
        OcspStatus::Good => vec![0x80, 0],
        OcspStatus::Revoked => tlv(0xa1, &time("20250101")),
        OcspStatus::Unknown => vec![0x82, 0],
    };
    let single = [tlv(0x30, &id.concat()), status, time(from), tlv(0xa0, &time(to))].concat();
    let data = [tlv(0xa1, &name), time(from), tlv(0x30, &tlv(0x30, &single))].concat();
    let data = tlv(0x30, &data);
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, &key.serialize_der()).unwrap();
    let signature = pair.sign(&SystemRandom::new(), &data).unwrap();
    let mut basic = vec![data, tlv(0x30, ECDSA_SHA384_OID), tlv(0x03, &[&[0], signature.as_ref()].concat())];
    basic.extend(responder.map(|der| tlv(0xa0, &tlv(0x30, der))));
    let bytes = [BASIC_OID.to_vec(), tlv(0x04, &tlv(0x30, &basic.concat()))].concat();
    tlv(0x30, &[vec![0x0a, 1, 0], tlv(0xa0, &tlv(0x30, &bytes))].concat())
}

/// OBJECT IDENTIFIER 1.2.840.10045.4.3.3.
const ECDSA_SHA384_OID: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
/// OBJECT IDENTIFIER 1.3.6.1.5.5.7.48.1.1.
const BASIC_OID: &[u8] = &[0x06, 0x09, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01];
