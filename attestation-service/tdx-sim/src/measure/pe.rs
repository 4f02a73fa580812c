// SPDX-License-Identifier: Apache-2.0
//! Authenticode digest of a PE image ("Windows Authenticode Portable Executable Signature Format", 2008, "Calculating
//! the PE Image Hash"), as firmware measures what it loads.

use std::ops::Range;

use sha2::{Digest as _, Sha384};
use types::Sha384Digest;

use super::MeasureError;

/// SHA-384 Authenticode digest of a PE32+ image.
pub(super) fn authenticode(image: &[u8]) -> Result<Sha384Digest, MeasureError> {
    let malformed = MeasureError::Kernel("it is not a PE32+ image");
    digest(image).ok_or(malformed)
}

fn digest(image: &[u8]) -> Option<Sha384Digest> {
    let pe = long(image, 0x3c)?;
    let optional = pe.checked_add(24)?;
    if image.get(..2)? != b"MZ" || image.get(pe..pe + 4)? != b"PE\0\0" || short(image, optional)? != PE32_PLUS {
        return None;
    }
    let checksum = optional + 64;
    let certificates = optional + 112 + 8 * CERTIFICATE_TABLE;
    let has_table = long(image, optional + 108)? > CERTIFICATE_TABLE;
    let signature = if has_table { long(image, certificates + 4)? } else { 0 };
    let headers = long(image, optional + 60)?;
    let mut hasher = Sha384::new();
    hasher.update(image.get(..checksum)?);
    if has_table {
        hasher.update(image.get(checksum + 4..certificates)?);
        hasher.update(image.get(certificates + 8..headers)?);
    } else {
        hasher.update(image.get(checksum + 4..headers)?);
    }
    let mut hashed = headers;
    for section in sections(image, pe, optional)? {
        hasher.update(image.get(section.clone())?);
        hashed = hashed.checked_add(section.len())?;
    }
    if let Some(rest) = image.len().checked_sub(signature).filter(|end| *end > hashed) {
        hasher.update(image.get(hashed..rest)?);
    }
    Some(Sha384Digest::from_bytes(hasher.finalize().into()))
}

/// The sections' places in the file, in that order, without empty ones.
fn sections(image: &[u8], pe: usize, optional: usize) -> Option<Vec<Range<usize>>> {
    let count = short(image, pe + 6)?;
    let table = optional.checked_add(usize::from(short(image, pe + 20)?))?;
    let mut sections = Vec::new();
    for index in 0..usize::from(count) {
        let header = table.checked_add(40 * index)?;
        let (size, start) = (long(image, header + 16)?, long(image, header + 20)?);
        if size > 0 {
            sections.push(start..start.checked_add(size)?);
        }
    }
    sections.sort_by_key(|section| section.start);
    Some(sections)
}

fn short(image: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(image.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn long(image: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(image.get(at..at.checked_add(4)?)?.try_into().ok()?)).ok()
}

const PE32_PLUS: u16 = 0x20b;
/// Index of the certificate table among the data directories.
const CERTIFICATE_TABLE: usize = 4;
