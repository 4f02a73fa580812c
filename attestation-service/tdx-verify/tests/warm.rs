// SPDX-License-Identifier: Apache-2.0
//! The warm path against `dcap-qvl`: the same verdict, codes, TCB and platform for every quote, time and collateral.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod both;

use std::path::PathBuf;

use both::Both;
use tdx_sim::{Fault, QuoteVersion, SimulatedPlatform, TdReport};
use tdx_verify::{Collateral, KnownPlatforms, PlatformPolicy, TrustAnchors, Uses, strip_padding};

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;

fn simulated(platform: &SimulatedPlatform, fault: Option<Fault>) -> Collateral {
    Collateral::from_json(platform.collateral(NOW, fault).unwrap().to_json().as_bytes()).unwrap()
}

fn anchors(platform: &SimulatedPlatform) -> TrustAnchors {
    TrustAnchors::custom(platform.root_der().to_vec())
}

/// Quotes of the README's table with their collateral and times.
const REAL: [(&str, &str, u64); 9] = [
    ("dq_v4_b0c06f", "dq_v4_b0c06f", 1_750_377_600),
    ("dq_td15ex_b0c06f", "dq_td15ex_b0c06f", 1_792_454_400),
    ("gtg_v5_90c06f", "ars_90c06f_2026-03", 1_773_964_800),
    ("gtg_v4_gcp_cos113", "sol_00806f05_2025-07", 1_752_969_600),
    ("dcaprs_v4_00806f05_outofdate", "dcaprs_00806f05_2025-02", 1_740_009_600),
    ("dq_v5_90c06f_nomatch", "dq_v5_90c06f_nomatch", 1_772_323_200),
    ("trustee_v4_debug", "sol_00806f05_2025-07", 1_752_969_600),
    ("trustee_v5_servicetd", "ars_90c06f_2026-03", 1_773_964_800),
    ("trustee_v4_azure", "dq_v4_b0c06f", 1_750_377_600),
];

fn real() -> Option<Vec<(Vec<u8>, Collateral, u64)>> {
    let dir = std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from)
        .join("tdx");
    if !dir.is_dir() {
        println!("SKIPPED: real TDX quotes ({} is absent)", dir.display());
        return None;
    }
    let read = |name: String| std::fs::read(dir.join(name)).unwrap();
    let load = |(quote, collateral, at)| {
        let quote = strip_padding(&read(format!("{quote}.dat"))).to_vec();
        (quote, Collateral::from_json(&read(format!("{collateral}.collateral.json"))).unwrap(), at)
    };
    Some(REAL.into_iter().map(load).collect())
}

/// Every vector at its time and around every edge of its validity.
#[test]
fn real_quotes_have_the_same_verdict_on_both_paths() {
    let Some(cases) = real() else { return };
    let mut warm = 0;
    for (quote, collateral, at) in &cases {
        let both = Both::new(vec![collateral.clone()], TrustAnchors::intel());
        let expires = both.agree(quote, *at).map_or(at + DAY, |verified| verified.collateral_expires());
        both.agree(quote, *at);
        warm += u64::from(both.known.uses().warm > 0);
        let edges = [0, at - 400 * DAY, at - DAY, expires - 1, expires, expires + 1, at + 400 * DAY, u64::MAX];
        for now in edges {
            both.agree(quote, now);
        }
        // Second by second around the beginning: the latest part was issued at most 40 days before.
        let begin = (at - 40 * DAY..=*at).step_by(3600 * 6);
        begin.for_each(|now| drop(both.agree(quote, now)));
    }
    // All but those whose chain or TCB is refused: no level, a TCB that the collateral does not know.
    assert!(warm >= 5, "{warm} took the warm path");
}

/// Every byte outside of the PCK chain (which has other digests, so that `dcap-qvl` judges) is changed once.
#[test]
fn every_changed_byte_has_the_same_verdict_on_both_paths() {
    let Some(cases) = real() else { return };
    for (quote, collateral, at) in &cases[..3] {
        let both = Both::new(vec![collateral.clone()], TrustAnchors::intel());
        assert!(both.agree(quote, *at).is_some());
        let chain = quote.windows(27).position(|window| window == b"-----BEGIN CERTIFICATE-----").unwrap();
        for offset in 0..chain {
            let mut changed = quote.clone();
            changed[offset] ^= 1 << (offset % 8);
            assert!(both.agree(&changed, *at).is_none(), "byte {offset}");
        }
        let mut changed = quote.clone();
        changed[chain + 40] ^= 1;
        assert!(both.agree(&changed, *at).is_none());
        assert!(both.agree(quote, *at).is_some(), "nothing of all that was kept");
        // Two policies each; what is left is refused by its form alone.
        assert!(both.known.uses().warm > 2 * 1000, "{:?}", both.known.uses());
    }
}

/// Every fault that the simulator makes, on a platform that is already known.
#[test]
fn simulated_faults_have_the_same_verdict_on_both_paths() {
    let platform = SimulatedPlatform::generate(NOW).unwrap();
    for version in [QuoteVersion::V4, QuoteVersion::V5] {
        let good = platform.quote(&TdReport::example(), version, None).unwrap();
        for fault in Fault::ALL {
            let collateral = simulated(&platform, Some(fault));
            let both = Both::new(vec![collateral], anchors(&platform));
            // Under this collateral, and with a good quote before the bad one where only the quote is bad.
            both.agree(&good, NOW);
            let bad = platform.quote(&TdReport::example(), version, Some(fault)).unwrap();
            both.agree(&bad, NOW);
            both.agree(&bad, NOW);
            for now in [NOW - 2 * DAY, NOW + DAY, NOW + 30 * DAY - 1, NOW + 30 * DAY, NOW + 31 * DAY] {
                both.agree(&good, now);
                both.agree(&bad, now);
            }
        }
    }
}

/// Attack 20: known platforms count for nothing under collateral that revokes them, nor under other anchors.
#[test]
fn nothing_known_outlives_a_revocation() {
    let platform = SimulatedPlatform::generate(NOW).unwrap();
    let quote = platform.quote(&TdReport::example(), QuoteVersion::V5, None).unwrap();
    let known = KnownPlatforms::default();
    let accepted = |collateral: &Collateral, anchors: &TrustAnchors| {
        let examined = known.examine(&quote, std::slice::from_ref(collateral), anchors, NOW).unwrap();
        examined.judge(&PlatformPolicy::default()).map(drop).map_err(|refused| refused.faults[0].code())
    };
    let (good, own) = (simulated(&platform, None), anchors(&platform));
    assert_eq!([accepted(&good, &own), accepted(&good, &own)], [Ok(()), Ok(())]);
    assert_eq!(known.uses(), Uses { warm: 1, cold: 1 });
    for (fault, code) in [
        (Fault::RevokedPck, "pck_revoked"),
        (Fault::RevokedPlatformCa, "pck_revoked"),
        (Fault::RevokedTcbSigner, "certificate_revoked"),
        (Fault::RevokedTcb, "tcb_revoked"),
        (Fault::RevokedQe, "qe_revoked"),
    ] {
        let revoking = simulated(&platform, Some(fault));
        assert_eq!([accepted(&revoking, &own), accepted(&revoking, &own)], [Err(code), Err(code)]);
        assert_eq!(accepted(&good, &own), Ok(()));
    }
    assert_eq!(accepted(&good, &TrustAnchors::intel()), Err("root_untrusted"));
    known.keep_only(&[simulated(&platform, Some(Fault::RevokedPck))]);
    assert!(known.is_empty());
}

/// One certificate has one place, and the number of places is bounded.
#[test]
fn known_platforms_are_bounded() {
    let known = KnownPlatforms::new(2);
    let platforms: Vec<_> = (0..3).map(|_| SimulatedPlatform::generate(NOW).unwrap()).collect();
    let see = |platform: &SimulatedPlatform| {
        let quote = platform.quote(&TdReport::example(), QuoteVersion::V4, None).unwrap();
        let before = known.uses();
        let examined = known.examine(&quote, &[simulated_once(platform)], &anchors(platform), NOW).unwrap();
        assert!(examined.judge(&PlatformPolicy::default()).is_ok());
        known.uses().warm > before.warm
    };
    assert!(!see(&platforms[0]) && !see(&platforms[1]));
    assert!(see(&platforms[0]) && see(&platforms[1]) && see(&platforms[0]));
    // The second was not used for longest.
    assert!(!see(&platforms[2]));
    assert_eq!(known.len(), 2);
    assert!(see(&platforms[0]) && !see(&platforms[1]));
    // More white space around the certificates: other bytes, the same place.
    let quote = platforms[1].quote(&TdReport::example(), QuoteVersion::V4, None).unwrap();
    let spaced = both::with_longer_chain(&quote, b"\n");
    let collateral = [simulated_once(&platforms[1])];
    for bytes in [&quote, &spaced] {
        let examined = known.examine(bytes, &collateral, &anchors(&platforms[1]), NOW).unwrap();
        assert!(examined.judge(&PlatformPolicy::default()).is_ok());
    }
    assert_eq!(known.len(), 2);
    assert!(see(&platforms[0]));
}

/// The same bytes each time: signatures in collateral are deterministic, but its lists may not be.
fn simulated_once(platform: &SimulatedPlatform) -> Collateral {
    static MADE: std::sync::Mutex<Vec<(Vec<u8>, Collateral)>> = std::sync::Mutex::new(Vec::new());
    let mut made = MADE.lock().unwrap();
    let root = platform.root_der();
    if let Some((_, collateral)) = made.iter().find(|(of, _)| of == root) {
        return collateral.clone();
    }
    made.push((root.to_vec(), simulated(platform, None)));
    made.last().unwrap().1.clone()
}
