// SPDX-License-Identifier: Apache-2.0
//! Quotes over a TD's report ("Intel TDX DCAP Quoting Library API", revision 0.9, appendix A.3 and A.4).

use types::{Registers, Sha384Digest};

use crate::Fault;
use crate::pki::{
    CPU_SVN, Certificates, Keys, PkiError, SimulatedPlatform, TEE_TCB_SVN, pem, raw_public, sha256, sign_raw, sign_with,
};
use crate::td::TdParams;

/// Version of the quote format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuoteVersion {
    /// Version 4, TD report 1.0 (584 bytes).
    V4,
    /// Version 5, TD report 1.5 (648 bytes).
    V5,
}

/// What the TDX module reports of a TD, beside the module's own identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdReport {
    /// All measurement registers.
    pub registers: Registers,
    /// TD attributes, little-endian.
    pub attributes: [u8; 8],
    /// Extended features, little-endian.
    pub xfam: [u8; 8],
    /// What the TD asked to have quoted.
    pub report_data: [u8; 64],
}

impl TdReport {
    /// A TD that nothing is wrong with: production attributes, a register's name as what was measured into it, and
    /// REPORTDATA of 64 sevens.
    #[must_use]
    pub fn example() -> Self {
        let value = |text: &str| Sha384Digest::of(text.as_bytes());
        let registers = Registers {
            mr_td: value("mr_td"),
            rtmr_0: value("rtmr_0"),
            rtmr_1: value("rtmr_1"),
            rtmr_2: value("rtmr_2"),
            rtmr_3: value("rtmr_3"),
            mr_config_id: value("config"),
            mr_owner: Sha384Digest::ZERO,
            mr_owner_config: Sha384Digest::ZERO,
        };
        let params = TdParams::with_config(registers.mr_config_id);
        Self { registers, attributes: params.attributes, xfam: params.xfam, report_data: [7; 64] }
    }
}

impl SimulatedPlatform {
    /// A quote over `report`, or one that is bad in one way. Faults that concern only collateral change nothing here.
    ///
    /// # Errors
    /// [`PkiError`] when a key can't sign, or, for [`Fault::OtherRoot`], can't be made.
    pub fn quote(&self, report: &TdReport, version: QuoteVersion, fault: Option<Fault>) -> Result<Vec<u8>, PkiError> {
        if fault == Some(Fault::OtherRoot) {
            return Self::generate_for(self.span.from, self.span.until)?.quote(report, version, None);
        }
        let mut signed = header(version, fault);
        signed.extend(body(report, version, fault));
        let (signature, public) = match fault {
            Some(Fault::ForeignAttestationKey) => {
                let foreign = rcgen::KeyPair::generate()?;
                (sign_raw("attestation", &foreign, &signed)?, raw_public("attestation", &foreign)?)
            }
            _ => (sign_with(&self.signer, &signed), raw_public("attestation", &self.keys.attestation)?),
        };
        let mut data = signature.to_vec();
        data.extend_from_slice(&public);
        put_certification(&mut data, QE_REPORT_CERTIFICATION, &self.certification_with(fault)?);
        if let (Some(Fault::ForgedReport), Some(byte)) = (fault, signed.last_mut()) {
            *byte ^= 1;
        }
        put_length(&mut signed, data.len());
        signed.extend(data);
        Ok(signed)
    }

    fn certification_with(&self, fault: Option<Fault>) -> Result<Vec<u8>, PkiError> {
        let made = |enclave| certification_of(&self.keys, &self.certificates.pck, &self.certificates, enclave);
        match fault {
            Some(Fault::DebugQe) => return made(Enclave { attributes: QE_ATTRIBUTES_DEBUG, ..Enclave::GOOD }),
            Some(Fault::OtherQeSigner) => return made(Enclave { signer: [1; 32], ..Enclave::GOOD }),
            Some(Fault::OtherQeProduct) => return made(Enclave { product: QE_ISV_PROD_ID - 1, ..Enclave::GOOD }),
            Some(Fault::ExpiredPck | Fault::ShortPckSvns) => {
                let pck = self.other_pck(fault)?;
                return certification_of(&self.keys, &pck, &self.certificates, Enclave::GOOD);
            }
            _ => {}
        }
        let mut certification = self.certification.clone();
        // A bit in MRENCLAVE, which nothing else looks at.
        if let (Some(Fault::ForgedQeReport), Some(byte)) = (fault, certification.get_mut(64)) {
            *byte ^= 1;
        }
        Ok(certification)
    }
}

/// Certification data of type 6: the quoting enclave's report and what certifies it.
pub(crate) fn certification(keys: &Keys, certificates: &Certificates) -> Result<Vec<u8>, PkiError> {
    certification_of(keys, &certificates.pck, certificates, Enclave::GOOD)
}

/// What the quoting enclave's report says of it.
#[derive(Clone, Copy)]
struct Enclave {
    attributes: [u8; 16],
    signer: [u8; 32],
    product: u16,
}

impl Enclave {
    const GOOD: Self = Self { attributes: QE_ATTRIBUTES, signer: QE_SIGNER, product: QE_ISV_PROD_ID };
}

fn certification_of(
    keys: &Keys,
    pck: &[u8],
    certificates: &Certificates,
    Enclave { attributes, signer, product }: Enclave,
) -> Result<Vec<u8>, PkiError> {
    let authentication = *b"Chrysalis simulated QE auth data";
    let mut report = CPU_SVN.to_vec();
    report.extend([0; 32]); // MISCSELECT, reserved
    report.extend(attributes);
    report.extend(sha256(&[b"Chrysalis simulated quoting enclave"])); // MRENCLAVE
    report.extend([0; 32]);
    report.extend(signer);
    report.extend([0; 96]);
    report.extend(product.to_le_bytes());
    report.extend(QE_ISV_SVN.to_le_bytes());
    report.extend([0; 60]);
    report.extend(sha256(&[&raw_public("attestation", &keys.attestation)?, &authentication]));
    report.extend([0; 32]);
    let signature = sign_raw("pck", &keys.pck, &report)?;
    let mut out = report;
    out.extend(signature);
    out.extend((authentication.len() as u16).to_le_bytes());
    out.extend(authentication);
    let chain = pem(pck) + &pem(&certificates.platform_ca) + &pem(&certificates.root);
    put_certification(&mut out, PCK_CHAIN_CERTIFICATION, chain.as_bytes());
    Ok(out)
}

fn header(version: QuoteVersion, fault: Option<Fault>) -> Vec<u8> {
    let number: u16 = match version {
        QuoteVersion::V4 => 4,
        QuoteVersion::V5 => 5,
    };
    let mut out = number.to_le_bytes().to_vec();
    out.extend(ECDSA_P256.to_le_bytes());
    out.extend(TEE_TDX.to_le_bytes());
    out.extend([0; 4]); // QE SVN, PCE SVN: zero in quotes of version 4 and above
    let vendor = if fault == Some(Fault::OtherQeVendor) { [1; 16] } else { INTEL_QE_VENDOR };
    out.extend(vendor);
    out.extend([0; 20]); // user data
    out
}

fn body(report: &TdReport, version: QuoteVersion, fault: Option<Fault>) -> Vec<u8> {
    let TdReport { registers, attributes, xfam, report_data } = report;
    let Registers { mr_td, rtmr_0, rtmr_1, rtmr_2, rtmr_3, mr_config_id, mr_owner, mr_owner_config } = registers;
    let mut out = Vec::new();
    if version == QuoteVersion::V5 {
        out.extend(BODY_TD_REPORT_15.to_le_bytes());
        out.extend(648_u32.to_le_bytes());
    }
    let mut svns = TEE_TCB_SVN;
    if fault == Some(Fault::SwappedTeeTcbSvns) {
        svns.reverse();
    }
    out.extend(svns);
    out.extend(Sha384Digest::of(b"Chrysalis simulated TDX module").as_bytes());
    out.extend([u8::from(fault == Some(Fault::OtherModuleSigner)); 48]);
    out.extend([u8::from(fault == Some(Fault::SeamAttributes)), 0, 0, 0, 0, 0, 0, 0]); // SEAM attributes
    out.extend(attributes_with(*attributes, fault));
    out.extend(xfam_with(*xfam, fault));
    for register in [mr_td, mr_config_id, mr_owner, mr_owner_config, rtmr_0, rtmr_1, rtmr_2, rtmr_3] {
        out.extend(register.as_bytes());
    }
    out.extend(report_data);
    if version == QuoteVersion::V5 {
        out.extend(TEE_TCB_SVN);
        out.extend([u8::from(fault == Some(Fault::ServiceTd)); 48]); // MRSERVICETD
    }
    out
}

fn attributes_with(attributes: [u8; 8], fault: Option<Fault>) -> [u8; 8] {
    let bits = u64::from_le_bytes(attributes);
    match fault {
        Some(Fault::DebugAttribute) => bits | ATTRIBUTE_DEBUG,
        Some(Fault::MigratableAttribute) => bits | ATTRIBUTE_MIGRATABLE,
        Some(Fault::SeptVeEnabled) => bits & !ATTRIBUTE_SEPT_VE_DISABLE,
        Some(Fault::ReservedAttribute) => bits | ATTRIBUTE_RESERVED,
        _ => bits,
    }
    .to_le_bytes()
}

fn xfam_with(xfam: [u8; 8], fault: Option<Fault>) -> [u8; 8] {
    let bits = u64::from_le_bytes(xfam);
    match fault {
        Some(Fault::UnexpectedXfam) => bits | XFAM_PROCESSOR_TRACE,
        Some(Fault::MissingXfam) => bits & !XFAM_SSE,
        _ => bits,
    }
    .to_le_bytes()
}

pub(crate) fn put_certification(out: &mut Vec<u8>, kind: u16, data: &[u8]) {
    out.extend(kind.to_le_bytes());
    put_length(out, data.len());
    out.extend_from_slice(data);
}

pub(crate) fn put_length(out: &mut Vec<u8>, length: usize) {
    out.extend((length as u32).to_le_bytes());
}

const ECDSA_P256: u16 = 2;
const TEE_TDX: u32 = 0x81;
const BODY_TD_REPORT_15: u16 = 3;
const PCK_CHAIN_CERTIFICATION: u16 = 5;
pub(crate) const QE_REPORT_CERTIFICATION: u16 = 6;
/// 939A7233-F79C-4CA9-940A-0DB3957F0607, which verifiers ask for.
const INTEL_QE_VENDOR: [u8; 16] =
    [0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07];
pub(crate) const QE_ATTRIBUTES: [u8; 16] = [0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// The same with the bit DEBUG.
const QE_ATTRIBUTES_DEBUG: [u8; 16] = [0x13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Signer of Intel's TD quoting enclave.
pub(crate) const QE_SIGNER: [u8; 32] = [
    0xdc, 0x9e, 0x2a, 0x7c, 0x6f, 0x94, 0x8f, 0x17, 0x47, 0x4e, 0x34, 0xa7, 0xfc, 0x43, 0xed, 0x03, 0x0f, 0x7c, 0x15,
    0x63, 0xf1, 0xba, 0xbd, 0xdf, 0x63, 0x40, 0xc8, 0x2e, 0x0e, 0x54, 0xa8, 0xc5,
];
pub(crate) const QE_ISV_PROD_ID: u16 = 2;
pub(crate) const QE_ISV_SVN: u16 = 4;
const ATTRIBUTE_DEBUG: u64 = 1;
const ATTRIBUTE_SEPT_VE_DISABLE: u64 = 1 << 28;
const ATTRIBUTE_MIGRATABLE: u64 = 1 << 29;
const ATTRIBUTE_RESERVED: u64 = 1 << 40;
const XFAM_SSE: u64 = 1 << 1;
const XFAM_PROCESSOR_TRACE: u64 = 1 << 8;
