// SPDX-License-Identifier: Apache-2.0
//! TD quotes, versions 4 and 5.
//!
//! Source: Intel TDX DCAP Quoting Library API, appendix A.3 "Version 4 Quote Format (TDX-ECDSA, SGX-ECDSA)"
//! and A.4 "Version 5 Quote Format"; offsets compared with `sgx_quote4_header_t` and `sgx_quote5_t` of `sgx_quote_4.h`
//! and `sgx_quote_5.h` in Intel's SGXDataCenterAttestationPrimitives (commit 6c1a9ab). The signature data stay opaque: they are the verifier's business.

use core::mem::offset_of;

use crate::{Cursor, ReadError, TdReport10, TdReport15, TdReport15Ex};

/// A parsed quote. It says nothing about whether the signature holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote<'a> {
    /// The header.
    pub header: QuoteHeader,
    /// What is quoted.
    pub body: QuoteBody,
    /// The bytes that the attestation key signs: header, body descriptor (version 5 only) and body.
    pub signed: &'a [u8],
    /// Signature, attestation key, QE report and certification data, unparsed.
    pub signature: &'a [u8],
}

/// Version of the quote's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuoteVersion {
    /// Version 4: the body is that of TDX 1.0.
    V4,
    /// Version 5: a descriptor says which body follows.
    V5,
}

/// The quote's header, 48 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct QuoteHeader {
    /// Version number, little endian.
    pub version: [u8; 2],
    /// Type of the attestation key, little endian; 2 is ECDSA with P-256.
    pub attestation_key_type: [u8; 2],
    /// Kind of environment, little endian; [`TEE_TYPE_TDX`] here.
    pub tee_type: [u8; 4],
    /// Reserved in version 5; the QE's security version in the first layouts of version 4.
    pub reserved_1: [u8; 2],
    /// Reserved in version 5; the PCE's security version in the first layouts of version 4.
    pub reserved_2: [u8; 2],
    /// Vendor of the quoting enclave.
    pub qe_vendor_id: [u8; 16],
    /// Data of the quoting enclave.
    pub user_data: [u8; 20],
}

/// The quoted body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "all bodies are close in size and live once per quote")]
pub enum QuoteBody {
    /// TDX 1.0.
    Td10(TdReport10),
    /// TDX 1.5.
    Td15(TdReport15),
    /// TDX 1.5, extended.
    Td15Ex(TdReport15Ex),
}

/// Why bytes are no TD quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// More than [`MAX_QUOTE_LEN`] bytes.
    #[error("a quote has at most {MAX_QUOTE_LEN} bytes, found {0}")]
    TooLarge(usize),
    /// Truncated or trailing bytes.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The header's version is neither 4 nor 5.
    #[error("version must be 4 or 5, found {0}")]
    Version(u16),
    /// The header's TEE type is not TDX.
    #[error("tee_type must be 0x81 (TDX), found {0:#x}")]
    TeeType(u32),
    /// The version 5 descriptor names another body than those of TDX 1.0 and 1.5.
    #[error("body type must be 2 (TDX 1.0), 3 (TDX 1.5) or 4 (TDX 1.5 extended), found {0}")]
    BodyType(u16),
    /// The version 5 descriptor's size is not that of its body type.
    #[error("body size must be {expected}, found {found}")]
    BodySize {
        /// Size of the body that the descriptor names.
        expected: usize,
        /// Size in the descriptor.
        found: u32,
    },
}

impl<'a> Quote<'a> {
    /// Reads a quote from exactly its bytes.
    ///
    /// # Errors
    /// [`QuoteError`] names the rule and the field.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, QuoteError> {
        let (quote, rest) = Self::parse_prefix(bytes)?;
        if rest.is_empty() {
            return Ok(quote);
        }
        let offset = bytes.len().saturating_sub(rest.len());
        Err(ReadError::Trailing { offset, left: rest.len() }.into())
    }

    /// Reads a quote from the beginning of `bytes` and hands back what follows it. For sources that pad to a
    /// fixed size; the caller judges the rest.
    ///
    /// # Errors
    /// As [`Quote::parse`], except for trailing bytes.
    pub fn parse_prefix(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), QuoteError> {
        if bytes.len() > MAX_QUOTE_LEN {
            return Err(QuoteError::TooLarge(bytes.len()));
        }
        let mut cursor = Cursor::new(bytes);
        let header = QuoteHeader::read(&mut cursor)?;
        let body = match header.quote_version()? {
            QuoteVersion::V4 => QuoteBody::Td10(TdReport10::read(&mut cursor)?),
            QuoteVersion::V5 => QuoteBody::read_described(&mut cursor)?,
        };
        let (signed, _) = bytes.split_at_checked(cursor.offset()).unwrap_or((bytes, &[]));
        let signature_len = cursor.u32("signature_len")?;
        // A length that does not fit in usize is certainly longer than what is left.
        let signature = cursor.slice("signature", usize::try_from(signature_len).unwrap_or(usize::MAX))?;
        Ok((Self { header, body, signed, signature }, cursor.rest()))
    }
}

impl QuoteHeader {
    /// Size in bytes.
    pub const LEN: usize = 48;

    /// The version, when it is one that this crate reads and the TEE type is TDX.
    ///
    /// # Errors
    /// [`QuoteError::Version`] or [`QuoteError::TeeType`].
    pub const fn quote_version(&self) -> Result<QuoteVersion, QuoteError> {
        let version = match u16::from_le_bytes(self.version) {
            4 => QuoteVersion::V4,
            5 => QuoteVersion::V5,
            other => return Err(QuoteError::Version(other)),
        };
        match u32::from_le_bytes(self.tee_type) {
            TEE_TYPE_TDX => Ok(version),
            other => Err(QuoteError::TeeType(other)),
        }
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, ReadError> {
        Ok(Self {
            version: cursor.array("version")?,
            attestation_key_type: cursor.array("attestation_key_type")?,
            tee_type: cursor.array("tee_type")?,
            reserved_1: cursor.array("reserved_1")?,
            reserved_2: cursor.array("reserved_2")?,
            qe_vendor_id: cursor.array("qe_vendor_id")?,
            user_data: cursor.array("user_data")?,
        })
    }
}

impl QuoteBody {
    /// The fields that every TDX version has.
    #[must_use]
    pub const fn report(&self) -> &TdReport10 {
        match self {
            Self::Td10(report) => report,
            Self::Td15(report) => &report.base,
            Self::Td15Ex(report) => &report.base.base,
        }
    }

    /// The fields that TDX 1.5 added.
    #[must_use]
    pub const fn report_15(&self) -> Option<&TdReport15> {
        match self {
            Self::Td10(_) => None,
            Self::Td15(report) => Some(report),
            Self::Td15Ex(report) => Some(&report.base),
        }
    }

    /// The fields that only the extended body has.
    #[must_use]
    pub const fn report_15_ex(&self) -> Option<&TdReport15Ex> {
        match self {
            Self::Td10(_) | Self::Td15(_) => None,
            Self::Td15Ex(report) => Some(report),
        }
    }

    fn read_described(cursor: &mut Cursor<'_>) -> Result<Self, QuoteError> {
        let kind = cursor.u16("body_type")?;
        let found = cursor.u32("body_size")?;
        let expected = match kind {
            BODY_TD10 => TdReport10::LEN,
            BODY_TD15 => TdReport15::LEN,
            BODY_TD15_EX => TdReport15Ex::LEN,
            other => return Err(QuoteError::BodyType(other)),
        };
        if usize::try_from(found) != Ok(expected) {
            return Err(QuoteError::BodySize { expected, found });
        }
        Ok(match kind {
            BODY_TD15 => Self::Td15(TdReport15::read(cursor)?),
            BODY_TD15_EX => Self::Td15Ex(TdReport15Ex::read(cursor)?),
            _ => Self::Td10(TdReport10::read(cursor)?),
        })
    }
}

/// TEE type of Intel TDX in a quote's header.
pub const TEE_TYPE_TDX: u32 = 0x81;
/// Attestation key type ECDSA-256 with P-256.
pub const ATTESTATION_KEY_ECDSA_P256: u16 = 2;
/// Vendor id of Intel's quoting enclave: 939a7233-f79c-4ca9-940a-0db3957f0607.
pub const QE_VENDOR_INTEL: [u8; 16] =
    [0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07];
/// Most bytes of a quote. Real ones have about 5,000, of which most are certificates.
pub const MAX_QUOTE_LEN: usize = 32 * 1024;

/// Type and size in front of a version 5 body.
const DESCRIPTOR_LEN: usize = size_of::<u16>() + size_of::<u32>();
const BODY_TD10: u16 = 2;
const BODY_TD15: u16 = 3;
const BODY_TD15_EX: u16 = 4;

// `sgx_quote5_t`: type at 48, size at 50, body at 54.
const _: () = assert!(QuoteHeader::LEN + DESCRIPTOR_LEN == 54);
const _: () = assert!(size_of::<QuoteHeader>() == QuoteHeader::LEN);
const _: () = assert!(offset_of!(QuoteHeader, attestation_key_type) == 2);
const _: () = assert!(offset_of!(QuoteHeader, tee_type) == 4);
const _: () = assert!(offset_of!(QuoteHeader, reserved_1) == 8);
const _: () = assert!(offset_of!(QuoteHeader, reserved_2) == 10);
const _: () = assert!(offset_of!(QuoteHeader, qe_vendor_id) == 12);
const _: () = assert!(offset_of!(QuoteHeader, user_data) == 28);

#[cfg(test)]
mod tests {
    use super::*;

    /// A version 4 quote with a signature of three bytes; field bytes are distinct by position.
    fn v4() -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..48 + 584).map(|i| u8::try_from(i % 251).unwrap()).collect();
        bytes[..8].copy_from_slice(&[4, 0, 2, 0, 0x81, 0, 0, 0]);
        bytes.extend([3, 0, 0, 0, b's', b'i', b'g']);
        bytes
    }

    fn v5(kind: u16, size: u32) -> Vec<u8> {
        let mut bytes = v4();
        bytes[0] = 5;
        let mut tail = bytes.split_off(48);
        tail.splice(584..584, [9; 64].into_iter().take(if kind == 3 { 64 } else { 0 }));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend(tail);
        bytes
    }

    #[test]
    fn version_4_is_read_field_by_field() {
        let bytes = v4();
        let quote = Quote::parse(&bytes).unwrap();
        assert_eq!(quote.header.quote_version(), Ok(QuoteVersion::V4));
        assert_eq!(quote.body.report().mr_td, bytes[48 + 136..48 + 184]);
        assert_eq!(quote.body.report().report_data, bytes[48 + 520..48 + 584]);
        assert_eq!(quote.signed, &bytes[..48 + 584]);
        assert_eq!(quote.signature, b"sig");
        assert_eq!(quote.body.report_15(), None);
    }

    #[test]
    fn version_5_follows_its_descriptor() {
        let bytes = v5(3, 648);
        let quote = Quote::parse(&bytes).unwrap();
        assert_eq!(quote.body.report_15().unwrap().mr_service_td, [9; 48]);
        assert_eq!(quote.signed.len(), 48 + 6 + 648);
        assert!(matches!(Quote::parse(&v5(2, 584)).unwrap().body, QuoteBody::Td10(_)));
        assert_eq!(Quote::parse(&v5(2, 648)), Err(QuoteError::BodySize { expected: 584, found: 648 }));
        assert_eq!(Quote::parse(&v5(1, 384)), Err(QuoteError::BodyType(1)));
    }

    #[test]
    fn other_versions_and_environments_are_refused() {
        let mut bytes = v4();
        bytes[0] = 3;
        assert_eq!(Quote::parse(&bytes), Err(QuoteError::Version(3)));
        bytes[0] = 4;
        bytes[4] = 0;
        assert_eq!(Quote::parse(&bytes), Err(QuoteError::TeeType(0)));
    }

    #[test]
    fn trailing_and_oversized_bytes_are_refused() {
        let mut bytes = v4();
        bytes.push(0);
        assert!(matches!(Quote::parse(&bytes), Err(QuoteError::Read(ReadError::Trailing { left: 1, .. }))));
        assert_eq!(Quote::parse_prefix(&bytes).unwrap().1, [0]);
        bytes.resize(MAX_QUOTE_LEN + 1, 0);
        assert_eq!(Quote::parse_prefix(&bytes), Err(QuoteError::TooLarge(MAX_QUOTE_LEN + 1)));
        let mut long = v4();
        long[48 + 584 + 3] = 0xff;
        assert!(matches!(Quote::parse(&long), Err(QuoteError::Read(ReadError::Truncated { field: "signature", .. }))));
    }

    #[test]
    fn every_truncation_is_refused() {
        for bytes in [v4(), v5(3, 648)] {
            for len in 0..bytes.len() {
                assert!(
                    matches!(Quote::parse(&bytes[..len]), Err(QuoteError::Read(ReadError::Truncated { .. }))),
                    "{len}"
                );
            }
        }
    }
}
