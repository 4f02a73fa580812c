// SPDX-License-Identifier: Apache-2.0
//! Kernels: the Authenticode digest covers exactly the bytes that the specification names, and the loader's patch
//! touches exactly the loader's fields.

use calculator::{authenticode, patched_by_qemu};
use sha2::{Digest as _, Sha384};

use crate::{u16_at, u32_at};

/// PE images, bzImage headers and their patching.
pub fn kernel(bytes: &[u8]) -> bool {
    let Ok(digest) = authenticode::digest(bytes) else {
        assert!(patched_by_qemu(bytes, INITRD_LEN, MEMORY_MIB).is_err(), "a kernel that is no PE image was accepted");
        return false;
    };
    let counted = counted_bytes(bytes).expect("accepted headers lie inside the file");
    let expected: [u8; 48] = Sha384::digest(&counted).into();
    assert_eq!(*digest.as_bytes(), expected, "the digest covers other bytes than those that count");
    if let Ok(patched) = patched_by_qemu(bytes, INITRD_LEN, MEMORY_MIB) {
        assert_eq!(patched.len(), bytes.len());
        for (at, _) in bytes.iter().zip(&patched).enumerate().filter(|(_, (before, after))| before != after) {
            assert!(matches!(at, 0x210 | 0x211 | 0x218..0x220 | 0x224..0x226 | 0x228..0x22c), "{at:#x} was patched");
        }
        if let Ok(again) = patched_by_qemu(&patched, INITRD_LEN, MEMORY_MIB) {
            assert_eq!(again, patched, "patching twice must be patching once");
        }
    }
    true
}

/// Microsoft, "Windows Authenticode Portable Executable Signature Format": all bytes but the checksum, the
/// certificate table's entry and the certificates; sections by their offset.
fn counted_bytes(image: &[u8]) -> Option<Vec<u8>> {
    let pe = u32_at(image, 0x3c)?;
    let optional = pe + 24;
    let directories = optional + if u16_at(image, optional)? == 0x20b { 112 } else { 96 };
    let checksum = optional + 64..optional + 68;
    let (mut entry, mut certificates) = (0..0, 0);
    if u32_at(image, directories - 4)? > 4 {
        entry = directories + 32..directories + 40;
        certificates = u32_at(image, directories + 36)?;
    }
    let headers = u32_at(image, optional + 60)?;
    let mut counted: Vec<u8> = Vec::new();
    for (at, byte) in image.get(..headers)?.iter().enumerate() {
        if !checksum.contains(&at) && !entry.contains(&at) {
            counted.push(*byte);
        }
    }
    let table = optional + u16_at(image, pe + 20)?;
    let mut sections = Vec::new();
    for index in 0..u16_at(image, pe + 6)? {
        let (len, start) = (u32_at(image, table + index * 40 + 16)?, u32_at(image, table + index * 40 + 20)?);
        if len > 0 {
            sections.push((start, len));
        }
    }
    sections.sort_by_key(|(start, _)| *start);
    let mut hashed = headers;
    for (start, len) in sections {
        counted.extend(image.get(start..start + len)?);
        hashed += len;
    }
    assert!(hashed <= image.len(), "sections that overlap make a small file cost hours");
    // Certificates stand last, in what follows the sections. Where nothing follows, their size is not looked at.
    if hashed < image.len() {
        counted.extend(image.get(hashed..image.len() - certificates)?);
    }
    Some(counted)
}

const INITRD_LEN: u64 = 0x1234;
const MEMORY_MIB: u32 = 2048;
