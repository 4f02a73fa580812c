// SPDX-License-Identifier: Apache-2.0
//! Real quotes from several platforms parse, and their fields hold what is known about them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::path::PathBuf;

use proptest::prelude::*;
use tdx_spec::{Quote, QuoteBody, QuoteVersion, TdAttributes, Tdvf, quote};

fn vectors() -> Option<PathBuf> {
    let dir = std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from);
    dir.is_dir().then_some(dir)
}

#[test]
fn all_real_quotes_parse() {
    let Some(dir) = vectors() else {
        println!("SKIPPED: real TDX quotes (no vectors directory)");
        return;
    };
    let mut seen = 0;
    for entry in std::fs::read_dir(dir.join("tdx")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_none_or(|e| e != "dat") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let (quote, rest) = Quote::parse_prefix(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        // Two of the files hold the 8,000-byte buffer of the quote device; strict parsing refuses those.
        assert!(rest.iter().all(|b| *b == 0), "{name}");
        assert_eq!(Quote::parse(&bytes).is_ok(), rest.is_empty(), "{name}");
        assert_eq!(quote.header.qe_vendor_id, quote::QE_VENDOR_INTEL, "{name}");
        assert_eq!(u16::from_le_bytes(quote.header.attestation_key_type), quote::ATTESTATION_KEY_ECDSA_P256);
        let version = quote.header.quote_version().unwrap();
        assert_eq!(version == QuoteVersion::V5, name.contains("v5") || name.contains("td15"), "{name}");
        let attributes = quote.body.report().td_attributes;
        assert_eq!(attributes.contains(TdAttributes::DEBUG), name.contains("debug"), "{name}: {attributes:?}");
        assert_eq!(
            attributes.contains(TdAttributes::SEPT_VE_DISABLE),
            !name.contains("azure"),
            "{name}: {attributes:?}"
        );
        assert_eq!(matches!(quote.body, QuoteBody::Td15Ex(_)), name.contains("td15ex"), "{name}");
        if let Some(report) = quote.body.report_15() {
            assert_eq!(report.mr_service_td != [0; 48], name.contains("servicetd"), "{name}");
        }
        seen += 1;
    }
    assert!(seen >= 8, "{seen} quotes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..1500), v5: bool) {
        if let Some(start) = bytes.first_chunk_mut::<8>() {
            *start = [if v5 { 5 } else { 4 }, 0, 2, 0, 0x81, 0, 0, 0];
        }
        let _ = Quote::parse(&bytes);
        let _ = Tdvf::parse(&bytes);
    }
}
