// SPDX-License-Identifier: Apache-2.0
//! MRTD: the measurement of a TD's initial contents.
//!
//! Source: Intel TDX Module v1.5 Base Architecture Specification (348549), "Measurement and attestation",
//! "MRTD": SHA-384 over 128-byte records of TDH.MEM.PAGE.ADD and TDH.MR.EXTEND, the latter followed by the
//! 256 bytes that they cover.

use sha2::{Digest as _, Sha384};
use tdx_spec::tdvf::{PAGE, Section, Tdvf};
use types::Sha384Digest;

/// In which order the host adds and measures the pages of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageOrder {
    /// Each page is added, then measured (`KVM_TDX_INIT_MEM_REGION` of Linux 6.16 and later).
    PerPage,
    /// All pages of a section are added, then all are measured (QEMU 8 with out-of-tree patches).
    TwoPass,
}

/// MRTD of a firmware file. `tdvf` was parsed from `firmware`; `None` only if it was not.
pub(crate) fn mr_td(firmware: &[u8], tdvf: &Tdvf, order: PageOrder) -> Option<Sha384Digest> {
    let mut hasher = Sha384::new();
    for section in tdvf.sections().iter().filter(|section| !section.augmented()) {
        let raw = section.raw(firmware)?;
        match order {
            PageOrder::PerPage => {
                for (index, address) in page_addresses(section).enumerate() {
                    add_page(&mut hasher, address);
                    if section.extends() {
                        extend_page(&mut hasher, address, page(raw, index)?);
                    }
                }
            }
            PageOrder::TwoPass => {
                page_addresses(section).for_each(|address| add_page(&mut hasher, address));
                if section.extends() {
                    for (index, address) in page_addresses(section).enumerate() {
                        extend_page(&mut hasher, address, page(raw, index)?);
                    }
                }
            }
        }
    }
    Some(Sha384Digest::from_bytes(hasher.finalize().into()))
}

/// Addresses of a section's pages; [`Tdvf::parse`] checked that they do not overflow.
fn page_addresses(section: &Section) -> impl Iterator<Item = u64> {
    let start = section.memory_address;
    (0..section.memory_len / PAGE).map(move |index| start.saturating_add(index.saturating_mul(PAGE)))
}

fn page(raw: &[u8], index: usize) -> Option<&[u8]> {
    raw.chunks_exact(PAGE_LEN).nth(index)
}

fn add_page(hasher: &mut Sha384, address: u64) {
    hasher.update(record(b"MEM.PAGE.ADD", address));
}

fn extend_page(hasher: &mut Sha384, address: u64, page: &[u8]) {
    let mut at = address;
    for chunk in page.chunks_exact(CHUNK_LEN) {
        hasher.update(record(b"MR.EXTEND", at));
        hasher.update(chunk);
        at = at.saturating_add(CHUNK);
    }
}

/// Operation name, padded to 16 bytes, address, zeros.
fn record(operation: &[u8], address: u64) -> [u8; 128] {
    let mut record = [0; 128];
    for (to, from) in record.iter_mut().zip(operation) {
        *to = *from;
    }
    for (to, from) in record.iter_mut().skip(16).zip(address.to_le_bytes()) {
        *to = from;
    }
    record
}

const PAGE_LEN: usize = 4096;
const CHUNK: u64 = 256;
const CHUNK_LEN: usize = 256;
