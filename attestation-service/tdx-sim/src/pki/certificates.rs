// SPDX-License-Identifier: Apache-2.0
//! Certificates and revocation lists in the form of Intel's ("SGX PCK Certificate and Certificate Revocation List
//! Profile Specification", revision 1.5).

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DistinguishedName, DnType,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, SerialNumber,
};

use super::{CPU_SVN, Certificates, FMSPC, Keys, PCE_SVN, PkiError, PlatformIdentity, date};
use crate::der;

/// Common name of every simulated root. A release binary must not contain it.
pub const ROOT_LABEL: &str = "Chrysalis simulated TDX root \u{2014} not hardware";

/// Issues all certificates of a platform.
pub(super) fn issue(keys: &Keys, identity: &PlatformIdentity, span: Span) -> Result<Certificates, PkiError> {
    let root = Authority::Root.params(span)?;
    let platform_ca = Authority::PlatformCa.params(span)?;
    let pck = pck_params(identity, span, &CPU_SVN)?;
    let tcb_signer = leaf("Chrysalis simulated TCB signing", TCB_SIGNER_SERIAL, span)?;
    let root_issuer = Issuer::from_params(&root, &keys.root);
    let ca_issuer = Issuer::from_params(&platform_ca, &keys.platform_ca);
    Ok(Certificates {
        root: root.self_signed(&keys.root)?.der().to_vec(),
        platform_ca: platform_ca.signed_by(&keys.platform_ca, &root_issuer)?.der().to_vec(),
        pck: pck.signed_by(&keys.pck, &ca_issuer)?.der().to_vec(),
        tcb_signer: tcb_signer.signed_by(&keys.tcb_signer, &root_issuer)?.der().to_vec(),
    })
}

/// Another PCK certificate of the platform, bad in one way: ended by the platform's beginning, or with an array of CPU
/// security versions that is too short.
pub(super) fn other_pck(platform: &super::SimulatedPlatform, fault: Option<crate::Fault>) -> Result<Vec<u8>, PkiError> {
    let Span { from, until } = platform.span;
    let (span, svns) = match fault {
        Some(crate::Fault::ExpiredPck) => (Span { from: from.saturating_sub(86_400), until: from }, &CPU_SVN[..]),
        _ => (Span { from, until }, CPU_SVN.split_last().map_or(&CPU_SVN[..], |(_, short)| short)),
    };
    let ca = Authority::PlatformCa.params(platform.span)?;
    let issuer = Issuer::from_params(&ca, &platform.keys.platform_ca);
    let params = pck_params(&platform.identity, span, svns)?;
    Ok(params.signed_by(&platform.keys.pck, &issuer)?.der().to_vec())
}

fn pck_params(identity: &PlatformIdentity, span: Span, svns: &[u8]) -> Result<CertificateParams, PkiError> {
    let mut pck = leaf(PCK_NAME, PCK_SERIAL, span)?;
    pck.custom_extensions = vec![CustomExtension::from_oid_content(SGX_EXTENSIONS, sgx_extensions(identity, svns))];
    Ok(pck)
}

/// When certificates begin and end, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: u64,
    pub(crate) until: u64,
}

/// Who signs a certificate or a revocation list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Authority {
    Root,
    PlatformCa,
    ProcessorCa,
}

impl Authority {
    fn params(self, span: Span) -> Result<CertificateParams, PkiError> {
        let (name, serial, below) = match self {
            Self::Root => (ROOT_LABEL, ROOT_SERIAL, 1),
            Self::PlatformCa => ("Chrysalis simulated PCK Platform CA", PLATFORM_CA_SERIAL, 0),
            Self::ProcessorCa => ("Chrysalis simulated PCK Processor CA", PROCESSOR_CA_SERIAL, 0),
        };
        let mut params = leaf(name, serial, span)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(params)
    }

    /// A revocation list over `revoked`, valid from `from` until `until` (seconds since 1970).
    pub(crate) fn revocation_list(
        self,
        key: &KeyPair,
        span: Span,
        revoked: &[SerialNumber],
        (from, until): (i64, i64),
    ) -> Result<Vec<u8>, PkiError> {
        let params = self.params(span)?;
        let mut revoked_certs = Vec::new();
        for serial_number in revoked {
            revoked_certs.push(RevokedCertParams {
                serial_number: serial_number.clone(),
                revocation_time: date(from)?,
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            });
        }
        let list = CertificateRevocationListParams {
            this_update: date(from)?,
            next_update: date(until)?,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&Issuer::from_params(&params, key))?.der().to_vec())
    }
}

/// The certificate (DER) of an authority of processors under the platform's root, and its list, which revokes nothing, of
/// this time.
pub(crate) fn processor_ca(
    platform: &super::SimulatedPlatform,
    window: (i64, i64),
) -> Result<(Vec<u8>, Vec<u8>), PkiError> {
    let key = KeyPair::generate()?;
    let root = Authority::Root.params(platform.span)?;
    let issuer = Issuer::from_params(&root, &platform.keys.root);
    let certificate = Authority::ProcessorCa.params(platform.span)?.signed_by(&key, &issuer)?.der().to_vec();
    let list = Authority::ProcessorCa.revocation_list(&key, platform.span, &[], window)?;
    Ok((certificate, list))
}

pub(crate) fn pck_serial() -> SerialNumber {
    SerialNumber::from(PCK_SERIAL)
}

pub(crate) fn platform_ca_serial() -> SerialNumber {
    SerialNumber::from(PLATFORM_CA_SERIAL)
}

pub(crate) fn tcb_signer_serial() -> SerialNumber {
    SerialNumber::from(TCB_SIGNER_SERIAL)
}

fn leaf(name: &str, serial: u64, span: Span) -> Result<CertificateParams, PkiError> {
    let at = |seconds: u64| date(i64::try_from(seconds).map_err(|_| PkiError::Time(i64::MAX))?);
    let mut params = CertificateParams::default();
    params.not_before = at(span.from)?;
    params.not_after = at(span.until)?;
    params.serial_number = Some(SerialNumber::from(serial));
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject.push(DnType::OrganizationName, "Chrysalis simulation");
    params.distinguished_name = subject;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::ContentCommitment];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The value of extension 1.2.840.113741.1.13.1 (profile specification, section 1.3.5).
fn sgx_extensions(identity: &PlatformIdentity, svns: &[u8]) -> Vec<u8> {
    let oid = |tail: &[u64]| [SGX_EXTENSIONS, tail].concat();
    let mut tcb: Vec<Vec<u8>> = svns
        .iter()
        .zip(1..)
        .map(|(svn, component)| der::entry(&oid(&[2, component]), der::integer((*svn).into())))
        .collect();
    tcb.push(der::entry(&oid(&[2, 17]), der::integer(PCE_SVN)));
    tcb.push(der::entry(&oid(&[2, 18]), der::octets(svns)));
    let configuration = [
        der::entry(&oid(&[7, 1]), der::boolean(false)),
        der::entry(&oid(&[7, 2]), der::boolean(false)),
        der::entry(&oid(&[7, 3]), der::boolean(true)),
    ];
    der::sequence(&[
        der::entry(&oid(&[1]), der::octets(&identity.ppid)),
        der::entry(&oid(&[2]), der::sequence(&tcb)),
        der::entry(&oid(&[3]), der::octets(&[0, 0])),
        der::entry(&oid(&[4]), der::octets(&FMSPC)),
        der::entry(&oid(&[5]), der::enumerated(SGX_TYPE_SCALABLE)),
        der::entry(&oid(&[6]), der::octets(&identity.instance)),
        der::entry(&oid(&[7]), der::sequence(&configuration)),
    ])
}

const SGX_EXTENSIONS: &[u64] = &[1, 2, 840, 113_741, 1, 13, 1];
const SGX_TYPE_SCALABLE: u8 = 1;
const PCK_NAME: &str = "Chrysalis simulated PCK";
/// Seven years, as Intel's PCK certificates.
pub(super) const CERTIFICATE_LIFE: u64 = 7 * 365 * 86_400;
const ROOT_SERIAL: u64 = 0x5349_4d01;
const PLATFORM_CA_SERIAL: u64 = 0x5349_4d02;
const PCK_SERIAL: u64 = 0x5349_4d03;
const PROCESSOR_CA_SERIAL: u64 = 0x5349_4d05;
const TCB_SIGNER_SERIAL: u64 = 0x5349_4d04;
