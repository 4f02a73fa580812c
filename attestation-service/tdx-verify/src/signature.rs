// SPDX-License-Identifier: Apache-2.0
//! Layout of a quote's signature section, read to its last byte.
//!
//! Source: Intel TDX DCAP Quoting Library API, appendix A.3.8 "ECDSA 256-bit Quote Signature Data Structure"
//! and A.3.9 "QE Certification Data - Version 4". Signatures are verified elsewhere.

use tdx_spec::Cursor;

use crate::fault::SignatureForm;

/// What the refusals of [`crate::chain`] need to know about a quote.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SignatureFacts<'a> {
    /// Security version of the quoting enclave.
    pub(crate) qe_isv_svn: u16,
    /// The PCK certificate chain, PEM.
    pub(crate) pck_chain: &'a [u8],
}

/// Reads the section and refuses bytes left over at every level.
pub(crate) fn read(section: &[u8]) -> Result<SignatureFacts<'_>, SignatureForm> {
    let mut cursor = Cursor::new(section);
    cursor.skip("signature", 64)?;
    cursor.skip("attestation_key", 64)?;
    let outer = certification_data(&mut cursor, "certification_data.type", QE_REPORT_CERTIFICATION)?;
    cursor.finish()?;
    let mut cursor = Cursor::new(outer);
    let report: &[u8] = cursor.slice("qe_report", QE_REPORT_LEN)?;
    cursor.skip("qe_report_signature", 64)?;
    let auth_len = cursor.u16("qe_auth_data_len")?;
    cursor.skip("qe_auth_data", usize::from(auth_len))?;
    let pck_chain = certification_data(&mut cursor, "qe_certification_data.type", PCK_CHAIN)?;
    cursor.finish()?;
    let mut report = Cursor::new(report);
    report.skip("qe_report", QE_ISV_SVN_OFFSET)?;
    Ok(SignatureFacts { qe_isv_svn: report.u16("qe_report.isv_svn")?, pck_chain })
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
const QE_ISV_SVN_OFFSET: usize = 258;

#[cfg(test)]
mod tests {
    use tdx_spec::ReadError;

    use super::*;

    fn section(inner_extra: usize, outer_extra: usize) -> Vec<u8> {
        let mut inner = vec![0; 384 + 64];
        inner[258] = 7;
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
        let facts = read(&good).unwrap();
        assert_eq!((facts.qe_isv_svn, facts.pck_chain), (7, b"pem".as_slice()));
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
