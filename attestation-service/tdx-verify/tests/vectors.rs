// SPDX-License-Identifier: Apache-2.0
//! Real quotes with the verdicts and times that their README names.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::path::PathBuf;

use tdx_verify::{
    AcceptedTcb, Collateral, PlatformPolicy, QuoteFault, QuoteRefused, TcbStatus, TrustAnchors, VerifiedQuote,
    strip_padding, verify,
};

// Seconds since 1970 of the times in the README, at midnight UTC.
const AT_2025_02_20: u64 = 1_740_009_600;
const AT_2025_06_20: u64 = 1_750_377_600;
const AT_2025_07_20: u64 = 1_752_969_600;
const AT_2026_03_01: u64 = 1_772_323_200;
const AT_2026_03_20: u64 = 1_773_964_800;
const AT_2026_10_20: u64 = 1_792_454_400;

fn vectors() -> Option<PathBuf> {
    let dir = std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from)
        .join("tdx");
    if dir.is_dir() {
        return Some(dir);
    }
    println!("SKIPPED: real TDX quotes ({} is absent)", dir.display());
    None
}

struct Case {
    quote: Vec<u8>,
    collateral: Vec<u8>,
}

impl Case {
    fn load(dir: &std::path::Path, quote: &str, collateral: &str) -> Self {
        let read = |name: String| std::fs::read(dir.join(name)).unwrap();
        Self { quote: read(format!("{quote}.dat")), collateral: read(format!("{collateral}.collateral.json")) }
    }

    fn verify(&self, now: u64, policy: &PlatformPolicy) -> Result<VerifiedQuote, QuoteRefused> {
        let collateral = Collateral::from_json(&self.collateral).unwrap();
        verify(strip_padding(&self.quote), &collateral, &TrustAnchors::intel(), now, policy)
    }

    fn codes(&self, now: u64) -> Vec<&'static str> {
        match self.verify(now, &PlatformPolicy::default()) {
            Ok(_) => Vec::new(),
            Err(refused) => refused.faults.iter().map(QuoteFault::code).collect(),
        }
    }
}

#[test]
fn accepted_at_their_times_and_expired_later() {
    let Some(dir) = vectors() else { return };
    for (quote, collateral, at) in [
        ("dq_v4_b0c06f", "dq_v4_b0c06f", AT_2025_06_20),
        ("dq_td15ex_b0c06f", "dq_td15ex_b0c06f", AT_2026_10_20),
        ("gtg_v5_90c06f", "ars_90c06f_2026-03", AT_2026_03_20),
        ("gtg_v4_gcp_cos113", "sol_00806f05_2025-07", AT_2025_07_20),
    ] {
        let case = Case::load(&dir, quote, collateral);
        let verified =
            case.verify(at, &PlatformPolicy::default()).unwrap_or_else(|e| panic!("{quote}: {:?}", e.faults));
        assert_eq!(verified.tcb().status, TcbStatus::UpToDate, "{quote}");
        assert!(verified.collateral_expires() > at);
        assert_eq!(case.codes(verified.collateral_expires() + 1), ["collateral_expired"], "{quote}");
        assert_eq!(case.codes(at - 400 * 86_400).len(), 1, "{quote}");
        let all = [Collateral::from_json(&case.collateral).unwrap()];
        assert!(Collateral::select(&all, &case.quote).is_some(), "{quote}");
    }
}

#[test]
fn refused_with_the_expected_code() {
    let Some(dir) = vectors() else { return };
    let codes = |quote, collateral, at| Case::load(&dir, quote, collateral).codes(at);
    assert_eq!(codes("dq_v5_90c06f_nomatch", "dq_v5_90c06f_nomatch", AT_2026_03_01), ["tcb_level_none"]);
    assert_eq!(codes("dcaprs_v4_00806f05_outofdate", "dcaprs_00806f05_2025-02", AT_2025_02_20), ["tcb_out_of_date"]);
    let debug = codes("trustee_v4_debug", "sol_00806f05_2025-07", AT_2025_07_20);
    assert!(debug.contains(&"tdx_debug_set"), "{debug:?}");
    let service = codes("trustee_v5_servicetd", "ars_90c06f_2026-03", AT_2026_03_20);
    assert!(service.contains(&"tdx_mr_service_td"), "{service:?}");
    let azure = codes("trustee_v4_azure", "dq_v4_b0c06f", AT_2025_06_20);
    assert!(azure.contains(&"tdx_sept_ve_disable_off"), "{azure:?}");
    // Attack 16: another platform's collateral.
    assert_eq!(codes("dq_v4_b0c06f", "sol_00806f05_2025-07", AT_2025_07_20), ["fmspc_mismatch"]);
}

#[test]
fn grace_admits_an_out_of_date_platform_until_its_date() {
    let Some(dir) = vectors() else { return };
    let case = Case::load(&dir, "dcaprs_v4_00806f05_outofdate", "dcaprs_00806f05_2025-02");
    let policy = |until| PlatformPolicy {
        tcb: vec![AcceptedTcb { status: TcbStatus::OutOfDate, until: Some(until) }],
        ..PlatformPolicy::default()
    };
    assert!(case.verify(AT_2025_02_20, &policy(AT_2025_02_20 + 1)).is_ok());
    let refused = case.verify(AT_2025_02_20, &policy(AT_2025_02_20)).unwrap_err();
    assert_eq!(refused.faults[0].code(), "tcb_grace_ended");
}

/// What the two platforms that were refused lack, in Intel's own words; those that were accepted lack nothing.
#[test]
fn what_a_real_platform_lacks_is_named() {
    let Some(dir) = vectors() else { return };
    let lacks = |quote, collateral| {
        let case = Case::load(&dir, quote, collateral);
        let collateral = Collateral::from_json(&case.collateral).unwrap();
        let lacks = collateral.behind(strip_padding(&case.quote));
        lacks.iter().map(|lack| format!("{lack}: update {}", lack.update())).collect::<Vec<_>>()
    };
    let old = lacks("dcaprs_v4_00806f05_outofdate", "dcaprs_00806f05_2025-02");
    let [bios, microcode] = &old[..] else { panic!("{old:?}") };
    assert!(bios.starts_with("SGX component 1 (BIOS, Early Microcode Update) has 6, needs 7: update the firmware"));
    assert!(microcode.contains("SGX Late Microcode Update) has 6, needs 7: update the microcode"), "{microcode}");
    let none = lacks("dq_v5_90c06f_nomatch", "dq_v5_90c06f_nomatch");
    assert_eq!(none, ["SGX component 8 (OS/VMM, SEAMLDR ACM) has 3, needs 5: update the SEAM loader (firmware)"]);
    for (quote, collateral) in [("dq_v4_b0c06f", "dq_v4_b0c06f"), ("gtg_v5_90c06f", "ars_90c06f_2026-03")] {
        assert_eq!(lacks(quote, collateral), [""; 0], "{quote}");
    }
}

/// Attacks 6, 12, 13, and a changed byte in each part that a signature covers.
#[test]
fn changed_bytes_are_refused_with_their_rule() {
    let Some(dir) = vectors() else { return };
    let case = Case::load(&dir, "gtg_v5_90c06f", "ars_90c06f_2026-03");
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut quote = case.quote.clone();
        change(&mut quote);
        let codes = Case { quote, collateral: case.collateral.clone() }.codes(AT_2026_03_20);
        assert_eq!(codes.len(), 1, "{codes:?}");
        codes[0]
    };
    let body = 48 + 6;
    let signature = body + 648 + 4;
    assert_eq!(with(&|q| q[0] = 6), "quote_version");
    assert_eq!(with(&|q| q[4] = 0), "quote_tee_type");
    assert_eq!(with(&|q| q[2] = 3), "attestation_key_type");
    assert_eq!(with(&|q| q[12] ^= 1), "qe_vendor");
    assert_eq!(with(&|q| q[28] ^= 1), "quote_signature");
    assert_eq!(with(&|q| q[body + 136] ^= 1), "quote_signature");
    assert_eq!(with(&|q| q[body + 128] ^= 0x04), "quote_signature");
    assert_eq!(with(&|q| q[signature] ^= 1), "quote_signature");
    assert_eq!(with(&|q| q[signature + 64] ^= 1), "qe_report_data");
    assert_eq!(with(&|q| q[signature + 134 + 64] ^= 1), "qe_report_signature");
    assert_eq!(with(&|q| q[signature + 134 + 384] ^= 1), "qe_report_signature");
    assert_eq!(with(&|q| q[signature + 134 + 450] ^= 1), "qe_report_data");
    assert_eq!(with(&|q| q.push(0)), "quote_trailing_bytes");
    assert_eq!(with(&|q| q.truncate(4000)), "quote_truncated");
    assert_eq!(with(&|q| q.resize(40_000, 0)), "quote_too_large");
}

#[test]
fn changed_collateral_is_refused_with_its_rule() {
    let Some(dir) = vectors() else { return };
    let case = Case::load(&dir, "gtg_v5_90c06f", "ars_90c06f_2026-03");
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut tree: serde_json::Value = serde_json::from_slice(&case.collateral).unwrap();
        change(&mut tree);
        Case { quote: case.quote.clone(), collateral: serde_json::to_vec(&tree).unwrap() }.codes(AT_2026_03_20)
    };
    let edit = |field: &'static str, from: &'static str, to: &'static str| {
        move |tree: &mut serde_json::Value| {
            let text = tree[field].as_str().unwrap();
            assert!(text.contains(from), "{field}");
            tree[field] = text.replacen(from, to, 1).into();
        }
    };
    assert_eq!(with(&edit("tcb_info", "UpToDate", "OutOfDat")), ["collateral_malformed"]);
    assert_eq!(with(&edit("tcb_info", "\"OutOfDate\"", "\"UpToDate\"")), ["collateral_signature"]);
    assert_eq!(with(&edit("qe_identity", "\"isvprodid\":2", "\"isvprodid\":3")), ["collateral_signature"]);
    // A PCK chain in the collateral must be the quote's own.
    let other = Case::load(&dir, "dq_v4_b0c06f", "dq_td15ex_b0c06f");
    let chain =
        serde_json::from_slice::<serde_json::Value>(&other.collateral).unwrap()["pck_certificate_chain"].clone();
    assert_eq!(with(&|tree| tree["pck_certificate_chain"] = chain.clone()), ["collateral_pck_chain"]);
}

/// Attack 10: the same quote under another root.
#[test]
fn another_root_is_refused() {
    let Some(dir) = vectors() else { return };
    let case = Case::load(&dir, "gtg_v5_90c06f", "ars_90c06f_2026-03");
    let collateral = Collateral::from_json(&case.collateral).unwrap();
    let not_a_root = TrustAnchors::custom(vec![0x30, 0x00]);
    let refused = verify(&case.quote, &collateral, &not_a_root, AT_2026_03_20, &PlatformPolicy::default()).unwrap_err();
    assert_eq!(refused.refusals()[0].code, "root_untrusted");
}

#[test]
fn only_known_padding_is_cut() {
    let Some(dir) = vectors() else { return };
    let padded = Case::load(&dir, "gtg_v4_gcp_cos113", "sol_00806f05_2025-07").quote;
    let exact = strip_padding(&padded).to_vec();
    assert_eq!((padded.len(), exact.len()), (8000, 8000 - 3065));
    let same = |bytes: Vec<u8>| assert_eq!(strip_padding(&bytes).len(), bytes.len());
    same([exact.clone(), vec![0]].concat());
    same([padded.clone(), vec![0]].concat());
    let mut dirty = padded;
    dirty[7999] = 1;
    same(dirty);
}
