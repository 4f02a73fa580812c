// SPDX-License-Identifier: Apache-2.0
//! The Authenticode digest of a PE image, as EDK II measures it.
//!
//! Source: Microsoft, "Windows Authenticode Portable Executable Signature Format", "Calculating the PE image
//! hash"; EDK II `OvmfPkg/Tcg/TdTcg2Dxe/MeasureBootPeCoff.c`, which differs in one point: a file whose length
//! is no multiple of 8 is not padded.

use sha2::{Digest as _, Sha384};
use types::Sha384Digest;

/// Why a file has no Authenticode digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeError {
    /// A field or range lies outside the file.
    #[error("PE: {0} lies outside the file")]
    Outside(&'static str),
    /// A field has an impossible value.
    #[error("PE: {0} is wrong")]
    Wrong(&'static str),
}

/// Computes the SHA-384 Authenticode digest of `image`.
///
/// # Errors
/// [`PeError`] when the headers lie; firmware refuses to load such an image.
pub fn digest(image: &[u8]) -> Result<Sha384Digest, PeError> {
    let headers = Headers::read(image)?;
    let mut hasher = Sha384::new();
    let checksum_end = headers.checksum.checked_add(4).ok_or(PeError::Outside("checksum"))?;
    hasher.update(range(image, 0, headers.checksum, "header")?);
    match headers.certificate_entry {
        None => hasher.update(range(image, checksum_end, headers.size_of_headers, "header")?),
        Some(entry) => {
            hasher.update(range(image, checksum_end, entry, "header")?);
            let entry_end = entry.checked_add(8).ok_or(PeError::Outside("certificate entry"))?;
            hasher.update(range(image, entry_end, headers.size_of_headers, "header")?);
        }
    }
    let mut hashed = headers.size_of_headers;
    for (start, len) in headers.sections(image)? {
        let end = start.checked_add(len).ok_or(PeError::Outside("section"))?;
        hasher.update(range(image, start, end, "section")?);
        hashed = hashed.checked_add(len).ok_or(PeError::Wrong("sum of sizes"))?;
        // Sections that overlap would have a small file hashed many times over. Linkers make none.
        if hashed > image.len() {
            return Err(PeError::Wrong("sum of sizes"));
        }
    }
    if image.len() > hashed {
        let end = image.len().checked_sub(headers.certificate_len).ok_or(PeError::Wrong("certificate size"))?;
        if end < hashed {
            return Err(PeError::Wrong("certificate size"));
        }
        hasher.update(range(image, hashed, end, "data behind the sections")?);
    }
    Ok(Sha384Digest::from_bytes(hasher.finalize().into()))
}

/// What the digest needs from the headers; offsets from the start of the file.
struct Headers {
    checksum: usize,
    /// The data directory's entry for certificates, when there is one.
    certificate_entry: Option<usize>,
    certificate_len: usize,
    size_of_headers: usize,
    section_table: usize,
    section_count: u16,
}

impl Headers {
    fn read(image: &[u8]) -> Result<Self, PeError> {
        if image.get(..2) != Some(b"MZ") {
            return Err(PeError::Wrong("DOS signature"));
        }
        let pe = to_usize(u32_at(image, 0x3c, "offset of the PE header")?)?;
        if image.get(pe..offset(pe, 4)?) != Some(b"PE\0\0") {
            return Err(PeError::Wrong("PE signature"));
        }
        let section_count = u16_at(image, offset(pe, 6)?, "NumberOfSections")?;
        let optional_len = u16_at(image, offset(pe, 20)?, "SizeOfOptionalHeader")?;
        let optional = offset(pe, 24)?;
        let directories = match u16_at(image, optional, "Magic")? {
            MAGIC_PE32 => offset(optional, 96)?,
            MAGIC_PE32_PLUS => offset(optional, 112)?,
            _ => return Err(PeError::Wrong("Magic")),
        };
        let section_table = offset(optional, usize::from(optional_len))?;
        let directory_count = u32_at(image, offset(directories, 4)?.saturating_sub(8), "NumberOfRvaAndSizes")?;
        let size_of_headers = to_usize(u32_at(image, offset(optional, 60)?, "SizeOfHeaders")?)?;
        let (certificate_entry, certificate_len) = if directory_count > CERTIFICATE_DIRECTORY {
            let entry = offset(directories, 32)?;
            let len = u32_at(image, offset(entry, 4)?, "certificate size")?;
            (Some(entry), to_usize(len)?)
        } else {
            (None, 0)
        };
        Ok(Self {
            checksum: offset(optional, 64)?,
            certificate_entry,
            certificate_len,
            size_of_headers,
            section_table,
            section_count,
        })
    }

    /// Offset and length of each section with data, by offset.
    fn sections(&self, image: &[u8]) -> Result<Vec<(usize, usize)>, PeError> {
        let mut sections = Vec::with_capacity(usize::from(self.section_count));
        for index in 0..usize::from(self.section_count) {
            let at = offset(self.section_table, index.saturating_mul(40))?;
            let len = to_usize(u32_at(image, offset(at, 16)?, "SizeOfRawData")?)?;
            let start = to_usize(u32_at(image, offset(at, 20)?, "PointerToRawData")?)?;
            if len != 0 {
                sections.push((start, len));
            }
        }
        sections.sort_by_key(|(start, _)| *start);
        Ok(sections)
    }
}

fn range<'a>(image: &'a [u8], start: usize, end: usize, what: &'static str) -> Result<&'a [u8], PeError> {
    image.get(start..end).ok_or(PeError::Outside(what))
}

fn u16_at(image: &[u8], at: usize, what: &'static str) -> Result<u16, PeError> {
    let bytes = image.get(at..).and_then(<[u8]>::first_chunk).ok_or(PeError::Outside(what))?;
    Ok(u16::from_le_bytes(*bytes))
}

fn u32_at(image: &[u8], at: usize, what: &'static str) -> Result<u32, PeError> {
    let bytes = image.get(at..).and_then(<[u8]>::first_chunk).ok_or(PeError::Outside(what))?;
    Ok(u32::from_le_bytes(*bytes))
}

fn offset(base: usize, add: usize) -> Result<usize, PeError> {
    base.checked_add(add).ok_or(PeError::Outside("header"))
}

fn to_usize(value: u32) -> Result<usize, PeError> {
    usize::try_from(value).map_err(|_| PeError::Outside("header"))
}

const MAGIC_PE32: u16 = 0x10b;
const MAGIC_PE32_PLUS: u16 = 0x20b;
/// Index of the certificate table in the data directory.
const CERTIFICATE_DIRECTORY: u32 = 4;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small PE32+ image: headers of 0x200 bytes, two sections out of order, `extra` bytes behind them of
    /// which the last `certificates` are the certificate table.
    pub(crate) fn image(extra: usize, certificates: u32) -> Vec<u8> {
        let mut pe = vec![0_u8; 0x200];
        pe[..2].copy_from_slice(b"MZ");
        pe[0x3c] = 0x40;
        pe[0x40..0x44].copy_from_slice(b"PE\0\0");
        pe[0x46] = 2;
        pe[0x54] = 0xf0;
        pe[0x58..0x5a].copy_from_slice(&0x20b_u16.to_le_bytes());
        pe[0x58 + 60..0x58 + 64].copy_from_slice(&0x200_u32.to_le_bytes());
        pe[0x58 + 64..0x58 + 68].fill(0xcc);
        pe[0x58 + 108] = 16;
        pe[0x58 + 112 + 36..0x58 + 112 + 40].copy_from_slice(&certificates.to_le_bytes());
        for (index, (start, len)) in [(0x300_u32, 0x80_u32), (0x200, 0x100)].into_iter().enumerate() {
            let at = 0x58 + 0xf0 + 40 * index;
            pe[at + 16..at + 20].copy_from_slice(&len.to_le_bytes());
            pe[at + 20..at + 24].copy_from_slice(&start.to_le_bytes());
        }
        pe.extend((0..0x180 + extra).map(|i| u8::try_from(i % 253).unwrap()));
        pe
    }

    fn expected(image: &[u8], end: usize) -> Sha384Digest {
        let parts = [&image[..0x58 + 64], &image[0x58 + 68..0x58 + 144], &image[0x58 + 152..end]];
        Sha384Digest::of_parts(&parts)
    }

    #[test]
    fn checksum_certificate_entry_and_certificates_are_left_out() {
        let plain = image(5, 0);
        assert_eq!(digest(&plain), Ok(expected(&plain, plain.len())));
        let signed = image(13, 8);
        assert_eq!(digest(&signed), Ok(expected(&signed, signed.len() - 8)));
        let mut other_checksum = plain.clone();
        other_checksum[0x58 + 64] ^= 1;
        assert_eq!(digest(&other_checksum), digest(&plain));
    }

    #[test]
    fn every_other_bit_counts() {
        let plain = image(5, 0);
        for at in [3, 0x1ff, 0x200, 0x37f, 0x380, 0x384] {
            let mut other = plain.clone();
            other[at] ^= 0x80;
            assert_ne!(digest(&other), digest(&plain), "{at:#x}");
        }
    }

    #[test]
    fn lying_headers_are_refused() {
        assert_eq!(digest(b"no"), Err(PeError::Wrong("DOS signature")));
        assert_eq!(digest(&image(5, 6)), Err(PeError::Wrong("certificate size")));
        assert_eq!(digest(&image(5, u32::MAX)), Err(PeError::Wrong("certificate size")));
        let mut far = image(0, 0);
        far[0x58 + 0xf0 + 20..0x58 + 0xf0 + 24].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(digest(&far), Err(PeError::Outside("section")));
        let mut twice = image(0, 0);
        twice.copy_within(0x58 + 0xf0 + 40..0x58 + 0xf0 + 80, 0x58 + 0xf0);
        assert_eq!(digest(&twice), Err(PeError::Wrong("sum of sizes")));
        let whole = image(0, 0);
        for len in 0..whole.len() {
            assert!(digest(&whole[..len]).is_err(), "{len}");
        }
    }
}
