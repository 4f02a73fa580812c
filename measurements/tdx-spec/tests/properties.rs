// SPDX-License-Identifier: Apache-2.0
//! Properties of every reader: any bytes, every truncation, bytes behind the end, fields at the offsets of the tables.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use proptest::{collection::vec, prelude::*};
use tdx_spec::{
    Quote, QuoteBody, QuoteError, ReadError, Section, TdAttributes, TdReport, TdReportError, Tdvf, TdvfError, Xfam,
};

/// A quote of one of the four layouts; `contents` fills header and body.
fn quote(layout: usize, contents: &[u8], signature: &[u8]) -> (Vec<u8>, usize) {
    let (version, described) =
        [(4_u8, None), (5, Some((2_u16, 584))), (5, Some((3, 648))), (5, Some((4, 885)))][layout];
    let mut bytes = contents[..48].to_vec();
    bytes[..2].copy_from_slice(&[version, 0]);
    bytes[4..8].copy_from_slice(&[0x81, 0, 0, 0]);
    if let Some((kind, size)) = described {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(u32::to_le_bytes(size));
    }
    let body = bytes.len();
    let size = described.map_or(584, |(_, size)| usize::try_from(size).unwrap());
    bytes.extend(&contents[48..48 + size]);
    bytes.extend(u32::try_from(signature.len()).unwrap().to_le_bytes());
    bytes.extend(signature);
    (bytes, body)
}

fn section(memory: (u64, u64), raw: (u32, u32), kind: u32, attributes: u32) -> Vec<u8> {
    let mut bytes = [raw.0.to_le_bytes(), raw.1.to_le_bytes()].concat();
    bytes.extend([memory.0.to_le_bytes(), memory.1.to_le_bytes()].concat());
    bytes.extend([kind.to_le_bytes(), attributes.to_le_bytes()].concat());
    bytes
}

/// A page of contents, a descriptor with these sections, and the table that leads to it.
fn firmware(sections: &[Vec<u8>]) -> Vec<u8> {
    let count = u32::try_from(sections.len()).unwrap();
    let mut descriptor = b"TDVF".to_vec();
    for word in [16 + 32 * count, 1, count] {
        descriptor.extend(word.to_le_bytes());
    }
    descriptor.extend(sections.concat());
    let from_end = u32::try_from(descriptor.len()).unwrap() + 22 + 18 + 32;
    let mut bytes = vec![0x11; 4096];
    bytes.extend(descriptor);
    bytes.extend(from_end.to_le_bytes());
    bytes.extend([
        22, 0, 0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2,
    ]);
    bytes.extend([
        40, 0, 0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d,
    ]);
    bytes.extend([0x90; 32]);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn quotes_hold_their_fields_at_the_offsets_of_the_tables(
        layout in 0..4_usize, contents in vec(any::<u8>(), 48 + 885), signature in vec(any::<u8>(), 0..64),
    ) {
        let (bytes, body) = quote(layout, &contents, &signature);
        let quote = Quote::parse(&bytes).unwrap();
        let at = |offset: usize, len: usize| &bytes[body + offset..body + offset + len];
        let report = quote.body.report();
        prop_assert_eq!(&quote.header.qe_vendor_id, &bytes[12..28]);
        prop_assert_eq!(&report.mr_seam, at(16, 48));
        prop_assert_eq!(&report.td_attributes.bits().to_le_bytes(), at(120, 8));
        prop_assert_eq!(&report.xfam.bits().to_le_bytes(), at(128, 8));
        prop_assert_eq!(&report.mr_td, at(136, 48));
        prop_assert_eq!(&report.rtmr_0, at(328, 48));
        prop_assert_eq!(&report.rtmr_3, at(472, 48));
        prop_assert_eq!(&report.report_data, at(520, 64));
        if let Some(report) = quote.body.report_15() {
            prop_assert_eq!(&report.mr_service_td, at(600, 48));
        }
        if let QuoteBody::Td15Ex(report) = &quote.body {
            prop_assert_eq!(&report.current_service_td_hash, at(829, 48));
        }
        prop_assert_eq!(quote.signature, &signature[..]);
        prop_assert_eq!(quote.signed, &bytes[..bytes.len() - 4 - signature.len()]);
    }

    #[test]
    fn cut_and_extended_quotes_are_refused(
        layout in 0..4_usize, contents in vec(any::<u8>(), 48 + 885), cut: prop::sample::Index, extra in vec(any::<u8>(), 1..40),
    ) {
        let (bytes, _) = quote(layout, &contents, b"signature");
        let cut = Quote::parse(&bytes[..cut.index(bytes.len())]);
        let truncated = matches!(cut, Err(QuoteError::Read(ReadError::Truncated { .. })));
        prop_assert!(truncated, "{:?}", cut);
        let extended = [bytes.as_slice(), &extra].concat();
        let trailing = Quote::parse(&extended);
        let expected = ReadError::Trailing { offset: bytes.len(), left: extra.len() };
        prop_assert_eq!(trailing, Err(QuoteError::Read(expected)));
    }

    #[test]
    fn reports_hold_their_fields_and_have_one_size(mut bytes in vec(any::<u8>(), 1024), cut in 0..1024_usize, extra in 1..40_usize) {
        bytes[0] = 0x81;
        let report = TdReport::parse(&bytes).unwrap();
        prop_assert_eq!(&report.mac.cpu_svn, &bytes[16..32]);
        prop_assert_eq!(&report.mac.report_data, &bytes[128..192]);
        prop_assert_eq!(&report.mac.mac, &bytes[224..256]);
        prop_assert_eq!(&report.tcb.tee_tcb_svn, &bytes[264..280]);
        prop_assert_eq!(&report.tcb.tee_tcb_svn_2, &bytes[384..400]);
        prop_assert_eq!(&report.td.mr_td, &bytes[528..576]);
        prop_assert_eq!(report.td.rtmr.as_flattened(), &bytes[720..912]);
        let truncated = matches!(TdReport::parse(&bytes[..cut]), Err(TdReportError::Read(ReadError::Truncated { .. })));
        prop_assert!(truncated);
        bytes.resize(1024 + extra, 0);
        let trailing = ReadError::Trailing { offset: 1024, left: extra };
        prop_assert_eq!(TdReport::parse(&bytes), Err(TdReportError::Read(trailing)));
    }

    #[test]
    fn sections_are_read_as_they_were_written(
        pages in vec((1..8_u64, 0..8_u64, 0..9_u32, any::<bool>()), 1..=32),
    ) {
        let mut next = 0x10_0000;
        let written: Vec<_> = pages.iter().map(|(len, gap, kind, later)| {
            let start = next + gap * 4096;
            next = start + len * 4096;
            (start, len * 4096, *kind, u32::from(*later) * Section::PAGE_AUG)
        }).collect();
        let bytes = firmware(&written.iter().map(|(at, len, kind, attributes)| section((*at, *len), (0, 0), *kind, *attributes)).collect::<Vec<_>>());
        let tdvf = Tdvf::parse(&bytes).unwrap();
        let read: Vec<_> = tdvf.sections().iter().map(|s| (s.memory_address, s.memory_len, s.attributes)).collect();
        prop_assert_eq!(read, written.iter().map(|(at, len, _, attributes)| (*at, *len, *attributes)).collect::<Vec<_>>());
        // The table stands at the end, so a cut end loses it, and a cut start loses the descriptor.
        for cut in [1, 31, 32, 60, 100] {
            prop_assert!(Tdvf::parse(&bytes[..bytes.len() - cut]).is_err());
        }
        prop_assert!(Tdvf::parse(&bytes[4097..]).is_err());
    }

    #[test]
    fn sections_that_share_a_page_are_refused(start in 0..16_u64, len in 1..16_u64, other in 0..16_u64, other_len in 1..16_u64) {
        let sections = [(start, len), (other, other_len)].map(|(at, len)| section((at * 4096, len * 4096), (0, 0), 3, 0));
        let shared = start < other + other_len && other < start + len;
        let parsed = Tdvf::parse(&firmware(&sections));
        let refused = matches!(parsed, Err(TdvfError::Section { index: 1, .. }));
        prop_assert_eq!(refused, shared, "{:?}", parsed);
    }

    #[test]
    fn any_section_is_accepted_or_refused_by_its_rule(bytes in vec(any::<u8>(), 32), small: bool) {
        let mut bytes = bytes;
        if small {
            // Sizes and addresses that can be right.
            bytes[2..8].fill(0);
            bytes[8] = 0;
            bytes[16] = 0;
            bytes[19..24].fill(0);
        }
        match Tdvf::parse(&firmware(&[bytes])) {
            Ok(tdvf) => {
                let section = tdvf.sections()[0];
                prop_assert!(section.memory_address.checked_add(section.memory_len).is_some());
                prop_assert!(!section.extends() || u64::from(section.raw_len) == section.memory_len);
            }
            Err(error) => prop_assert!(matches!(error, TdvfError::Section { index: 0, .. }), "{error}"),
        }
    }

    #[test]
    fn masks_name_every_bit_once(bits: u64) {
        for (names, outside) in [
            (TdAttributes::names(bits), TdAttributes::from_bits(bits).outside(TdAttributes::NAMED)),
            (Xfam::names(bits), Xfam::from_bits(bits).outside(Xfam::NAMED)),
        ] {
            prop_assert_eq!(names.len(), usize::try_from(bits.count_ones()).unwrap());
            let reserved = names.iter().filter(|name| name.starts_with("bit ")).count();
            prop_assert_eq!(reserved, usize::try_from(outside.count_ones()).unwrap());
        }
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..2048)) {
        let _ = (Quote::parse(&bytes), Quote::parse_prefix(&bytes), TdReport::parse(&bytes), Tdvf::parse(&bytes));
    }
}

#[test]
fn readers_have_caps() {
    let long = vec![0; tdx_spec::quote::MAX_QUOTE_LEN + 1];
    assert_eq!(Quote::parse(&long), Err(QuoteError::TooLarge(long.len())));
    let large = vec![0; tdx_spec::tdvf::MAX_FIRMWARE_LEN + 1];
    assert_eq!(Tdvf::parse(&large), Err(TdvfError::TooLarge(large.len())));
}
