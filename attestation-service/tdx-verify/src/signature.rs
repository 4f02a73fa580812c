// SPDX-License-Identifier: Apache-2.0
//! Layout of a quote's signature section, read to its last byte.
//!
//! Source: Intel TDX DCAP Quoting Library API, appendix A.3.8 "ECDSA 256-bit Quote Signature Data Structure"
//! and A.3.9 "QE Certification Data - Version 4"; of the QE's report Intel SGX SDK, `sgx_report_body_t`. Signatures
//! are verified elsewhere.

use tdx_spec::{Cursor, ReadError};

use crate::fault::SignatureForm;

/// The section's parts. Nothing of it is verified.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SignatureSection<'a> {
    /// Over the quote's signed bytes, r ‖ s.
    pub(crate) signature: &'a [u8],
    /// x ‖ y on P-256.
    pub(crate) attestation_key: &'a [u8],
    /// The quoting enclave's report, as the PCK signs it.
    pub(crate) qe_report: &'a [u8],
    /// Fields of that report.
    pub(crate) qe: QeReport,
    /// Over the report, r ‖ s.
    pub(crate) qe_report_signature: &'a [u8],
    /// What the report binds beside the attestation key.
    pub(crate) qe_auth_data: &'a [u8],
    /// The PCK certificate chain, PEM.
    pub(crate) pck_chain: &'a [u8],
}

/// What a quoting enclave's report says of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QeReport {
    pub(crate) misc_select: u32,
    pub(crate) attributes: [u8; 16],
    pub(crate) mr_signer: [u8; 32],
    pub(crate) isv_prod_id: u16,
    pub(crate) isv_svn: u16,
    /// First half of REPORTDATA: SHA-256(attestation key ‖ authentication data).
    pub(crate) bound: [u8; 32],
}

/// Reads the section and refuses bytes left over at every level.
pub(crate) fn read(section: &[u8]) -> Result<SignatureSection<'_>, SignatureForm> {
    let mut cursor = Cursor::new(section);
    let signature = cursor.slice("signature", 64)?;
    let attestation_key = cursor.slice("attestation_key", 64)?;
    let outer = certification_data(&mut cursor, "certification_data.type", QE_REPORT_CERTIFICATION)?;
    cursor.finish()?;
    let mut cursor = Cursor::new(outer);
    let qe_report = cursor.slice("qe_report", QE_REPORT_LEN)?;
    let qe_report_signature = cursor.slice("qe_report_signature", 64)?;
    let auth_len = cursor.u16("qe_auth_data_len")?;
    let qe_auth_data = cursor.slice("qe_auth_data", usize::from(auth_len))?;
    let pck_chain = certification_data(&mut cursor, "qe_certification_data.type", PCK_CHAIN)?;
    cursor.finish()?;
    let qe = read_qe_report(qe_report)?;
    Ok(SignatureSection { signature, attestation_key, qe_report, qe, qe_report_signature, qe_auth_data, pck_chain })
}

fn read_qe_report(bytes: &[u8]) -> Result<QeReport, ReadError> {
    let mut cursor = Cursor::new(bytes);
    cursor.skip("qe_report.cpu_svn", 16)?;
    let misc_select = cursor.u32("qe_report.misc_select")?;
    cursor.skip("qe_report.reserved_1", 28)?;
    let attributes = cursor.array("qe_report.attributes")?;
    cursor.skip("qe_report.mr_enclave", 32)?;
    cursor.skip("qe_report.reserved_2", 32)?;
    let mr_signer = cursor.array("qe_report.mr_signer")?;
    cursor.skip("qe_report.reserved_3", 96)?;
    let isv_prod_id = cursor.u16("qe_report.isv_prod_id")?;
    let isv_svn = cursor.u16("qe_report.isv_svn")?;
    cursor.skip("qe_report.reserved_4", 60)?;
    let bound = cursor.array("qe_report.report_data")?;
    cursor.skip("qe_report.report_data", 32)?;
    cursor.finish()?;
    Ok(QeReport { misc_select, attributes, mr_signer, isv_prod_id, isv_svn, bound })
}

fn certification_data<'a>(
    cursor: &mut Cursor<'a>,
    field: &'static str,
    expected: u16,
) -> Result<&'a [u8], SignatureForm> {
    let found = cursor.u16(field)?;
    if found != expected {
        return Err(SignatureForm::CertificationType { field, expected, found });
    }
    let len = cursor.u32(field)?;
    Ok(cursor.slice(field, usize::try_from(len).unwrap_or(usize::MAX))?)
}

const QE_REPORT_CERTIFICATION: u16 = 6;
const PCK_CHAIN: u16 = 5;
const QE_REPORT_LEN: usize = 384;

#[cfg(test)]
mod tests {
    use super::*;

    fn section(inner_extra: usize, outer_extra: usize) -> Vec<u8> {
        let mut inner = vec![0; 384 + 64];
        for (at, value) in [(16, 1), (48, 2), (128, 3), (256, 4), (258, 7), (320, 5), (352, 6)] {
            inner[at] = value;
        }
        inner.extend([2, 0, 1, 1]);
        inner.extend([5, 0, 3, 0, 0, 0, b'p', b'e', b'm']);
        inner.extend(vec![0; inner_extra]);
        let mut bytes = vec![0; 128];
        bytes.extend([6, 0]);
        bytes.extend(u32::try_from(inner.len()).unwrap().to_le_bytes());
        bytes.extend(inner);
        bytes.extend(vec![0; outer_extra]);
        bytes
    }

    #[test]
    fn every_byte_is_accounted_for() {
        let good = section(0, 0);
        let read_good = read(&good).unwrap();
        assert_eq!((read_good.qe.isv_svn, read_good.pck_chain), (7, b"pem".as_slice()));
        let QeReport { misc_select, attributes, mr_signer, isv_prod_id, bound, .. } = read_good.qe;
        assert_eq!((misc_select, attributes[0], mr_signer[0], isv_prod_id, bound[0]), (1, 2, 3, 4, 5));
        assert_eq!((read_good.qe_auth_data, read_good.qe_report.len()), ([1, 1].as_slice(), 384));
        for bad in [section(1, 0), section(0, 1)] {
            assert!(matches!(read(&bad), Err(SignatureForm::Read(ReadError::Trailing { left: 1, .. }))));
        }
        for len in 0..good.len() {
            assert!(matches!(read(&good[..len]), Err(SignatureForm::Read(ReadError::Truncated { .. }))), "{len}");
        }
        let mut other = good;
        other[128] = 5;
        assert!(matches!(read(&other), Err(SignatureForm::CertificationType { found: 5, .. })));
    }
}
