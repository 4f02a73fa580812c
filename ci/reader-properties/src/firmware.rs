// SPDX-License-Identifier: Apache-2.0
//! Firmware: sections keep to the file and to each other, and MRTD is what the definition gives.

use calculator::{FirmwareGeneration, FirmwareMeasurements};
use sha2::{Digest as _, Sha384};
use tdx_spec::Tdvf;

/// TDVF metadata, variable stores and MRTD.
pub fn firmware(bytes: &[u8]) -> bool {
    let Ok(tdvf) = Tdvf::parse(bytes) else {
        assert!(FirmwareMeasurements::of(bytes, GENERATION).is_err(), "firmware without metadata was measured");
        return false;
    };
    let mut pages = 0;
    for (number, section) in tdvf.sections().iter().enumerate() {
        let raw = section.raw(bytes).expect("a section's bytes lie in the file");
        assert!(u64::try_from(raw.len()).is_ok_and(|len| len <= section.memory_len));
        let end = section.memory_address.checked_add(section.memory_len).expect("a section ends in the address space");
        assert!(section.memory_address.is_multiple_of(PAGE) && section.memory_len.is_multiple_of(PAGE));
        for other in tdvf.sections().iter().skip(number + 1) {
            let other_end = other.memory_address.checked_add(other.memory_len).expect("likewise");
            assert!(other_end <= section.memory_address || end <= other.memory_address, "sections overlap");
        }
        pages += if section.augmented() { 0 } else { section.memory_len / PAGE };
    }
    assert!(pages <= MAX_PAGES, "{pages} pages to be measured make a small file cost minutes");
    if pages > MAX_PAGES_HERE {
        return true;
    }
    let Ok(measured) = FirmwareMeasurements::of(bytes, GENERATION) else { return false };
    let expected = [mr_td(bytes, &tdvf, true), mr_td(bytes, &tdvf, false)];
    assert_eq!([*measured.mr_td_per_page.as_bytes(), *measured.mr_td_two_pass.as_bytes()], expected, "MRTD");
    true
}

/// Intel TDX Module v1.5 Base Architecture Specification (348549), "MRTD", written down without streaming.
fn mr_td(firmware: &[u8], tdvf: &Tdvf, per_page: bool) -> [u8; 48] {
    let mut log = Vec::new();
    for section in tdvf.sections().iter().filter(|section| !section.augmented()) {
        let raw = section.raw(firmware).unwrap_or_default();
        let pages: Vec<u64> = (0..section.memory_len / PAGE).map(|n| section.memory_address + n * PAGE).collect();
        let contents: Vec<&[u8]> = if section.extends() { raw.chunks(4096).collect() } else { Vec::new() };
        let added: Vec<_> = pages.iter().map(|at| record(b"MEM.PAGE.ADD\0\0\0\0", *at)).collect();
        let measured: Vec<_> = pages.iter().zip(contents).map(|(at, page)| extended(*at, page)).collect();
        if per_page && section.extends() {
            added.iter().zip(&measured).for_each(|(add, extend)| log.extend([add.as_slice(), extend].concat()));
        } else {
            log.extend(added.concat());
            log.extend(measured.concat());
        }
    }
    Sha384::digest(&log).into()
}

fn extended(address: u64, page: &[u8]) -> Vec<u8> {
    let chunks = page.chunks(256).zip((address..).step_by(256));
    chunks.flat_map(|(chunk, at)| [record(b"MR.EXTEND\0\0\0\0\0\0\0", at), chunk.to_vec()].concat()).collect()
}

fn record(operation: &[u8; 16], address: u64) -> Vec<u8> {
    [operation.as_slice(), &address.to_le_bytes(), &[0; 104]].concat()
}

const GENERATION: FirmwareGeneration = FirmwareGeneration::Edk2Stable202502;
const PAGE: u64 = 4096;
/// What the reader lets through: 256 MiB.
const MAX_PAGES: u64 = 1 << 16;
/// What is computed twice here; more would only make each run slow.
const MAX_PAGES_HERE: u64 = 64;
