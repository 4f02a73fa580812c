// SPDX-License-Identifier: Apache-2.0
//! Collateral judged without a quote: simulated and real.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::path::PathBuf;

use serde_json::Value;
use tdx_sim::{Fault, SimulatedPlatform};
use tdx_verify::{Collateral, TrustAnchors};

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;

fn anchors(platform: &SimulatedPlatform) -> TrustAnchors {
    TrustAnchors::custom(platform.root_der().to_vec())
}

/// Code and field of the refusal; empty where it was accepted.
fn judge(json: &str, anchors: &TrustAnchors, now: u64) -> (String, String) {
    match Collateral::from_json(json.as_bytes()).unwrap().check(anchors, now) {
        Ok(_) => (String::new(), String::new()),
        Err(fault) => (fault.refusal().code, fault.refusal().field),
    }
}

fn pair(code: &str, field: &str) -> (String, String) {
    (code.to_owned(), if field.is_empty() { String::new() } else { format!("collateral.{field}") })
}

#[test]
fn good_collateral_says_until_when() {
    let platform = SimulatedPlatform::generate(NOW).unwrap();
    let json = platform.collateral_numbered(NOW, 18, None).unwrap().to_json();
    let facts = Collateral::from_json(json.as_bytes()).unwrap().check(&anchors(&platform), NOW).unwrap();
    assert_eq!(facts.expires(), NOW + 30 * DAY);
    assert_eq!((facts.tcb_evaluation_data_number, facts.qe_evaluation_data_number), (18, 18));
    assert_eq!(facts.tcb_info.issued, NOW - 3600);
    assert_eq!(facts.newest_level, NOW - 3600 - 90 * DAY);
    assert!(facts.certificates_end > facts.expires());
}

/// Times are judged at both ends, to the second.
#[test]
fn validity_has_two_ends() {
    let platform = SimulatedPlatform::generate(NOW).unwrap();
    let json = platform.collateral(NOW, None).unwrap().to_json();
    let anchors = anchors(&platform);
    let at = |now| judge(&json, &anchors, now).0;
    assert_eq!(at(NOW - 3600), "");
    assert_eq!(at(NOW - 3601), "certificate_not_yet_valid");
    assert_eq!(at(NOW + 30 * DAY), "");
    assert_eq!(at(NOW + 30 * DAY + 1), "collateral_expired");
    assert_eq!(at(NOW + 8 * 365 * DAY), "certificate_expired");
}

#[test]
fn each_fault_of_collateral_has_its_code() {
    let platform = SimulatedPlatform::generate(NOW).unwrap();
    for (fault, code, field) in [
        (Fault::RevokedPlatformCa, "certificate_revoked", "pck_crl_issuer_chain"),
        (Fault::RevokedTcbSigner, "certificate_revoked", "tcb_info"),
        (Fault::ExpiredCollateral, "collateral_expired", "root_ca_crl"),
        (Fault::FutureCollateral, "collateral_not_yet_valid", "tcb_info"),
        (Fault::ForgedTcbInfo, "collateral_signature", "tcb_info"),
        (Fault::ForgedQeIdentity, "collateral_signature", "qe_identity"),
    ] {
        let json = platform.collateral(NOW, Some(fault)).unwrap().to_json();
        assert_eq!(judge(&json, &anchors(&platform), NOW), pair(code, field), "{fault:?}");
    }
    // What concerns platforms or quotes is no fault of the collateral.
    for fault in [Fault::RevokedPck, Fault::OutOfDateTcb, Fault::NoTcbLevel, Fault::OtherFmspc, Fault::ForgedReport] {
        let json = platform.collateral(NOW, Some(fault)).unwrap().to_json();
        assert_eq!(judge(&json, &anchors(&platform), NOW), pair("", ""), "{fault:?}");
    }
}

/// Parts of another root's collateral, parts in each other's place, and bytes that were changed.
#[test]
fn parts_that_do_not_belong_are_refused() {
    let (platform, other) = (SimulatedPlatform::generate(NOW).unwrap(), SimulatedPlatform::generate(NOW).unwrap());
    let parse = |platform: &SimulatedPlatform| -> Value {
        serde_json::from_str(&platform.collateral(NOW, None).unwrap().to_json()).unwrap()
    };
    let (good, foreign) = (parse(&platform), parse(&other));
    let anchors = anchors(&platform);
    assert_eq!(judge(&foreign.to_string(), &anchors, NOW), pair("root_untrusted", "pck_crl_issuer_chain"));
    assert_eq!(judge(&good.to_string(), &TrustAnchors::intel(), NOW), pair("root_untrusted", "pck_crl_issuer_chain"));
    for (part, code, field) in [
        ("pck_crl_issuer_chain", "root_untrusted", "pck_crl_issuer_chain"),
        ("tcb_info_issuer_chain", "root_untrusted", "tcb_info"),
        ("qe_identity_issuer_chain", "root_untrusted", "qe_identity"),
        ("root_ca_crl", "crl_invalid", "root_ca_crl"),
        ("pck_crl", "crl_invalid", "pck_crl"),
        ("tcb_info_signature", "collateral_signature", "tcb_info"),
        ("qe_identity_signature", "collateral_signature", "qe_identity"),
    ] {
        let mut mixed = good.clone();
        mixed[part] = foreign[part].clone();
        assert_eq!(judge(&mixed.to_string(), &anchors, NOW), pair(code, field), "{part}");
    }
    let mut swapped = good.clone();
    swapped["pck_crl"] = good["root_ca_crl"].clone();
    assert_eq!(judge(&swapped.to_string(), &anchors, NOW), pair("crl_invalid", "pck_crl"));
    // A signer that is no authority, and an authority that is no signer.
    let mut swapped = good.clone();
    swapped["pck_crl_issuer_chain"] = good["tcb_info_issuer_chain"].clone();
    assert_eq!(judge(&swapped.to_string(), &anchors, NOW), pair("collateral_malformed", "pck_crl_issuer_chain"));
    let mut swapped = good.clone();
    swapped["tcb_info_issuer_chain"] = good["pck_crl_issuer_chain"].clone();
    assert_eq!(judge(&swapped.to_string(), &anchors, NOW), pair("collateral_malformed", "tcb_info"));
    for chain in ["", "x", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"] {
        let mut broken = good.clone();
        broken["tcb_info_issuer_chain"] = chain.into();
        assert_eq!(judge(&broken.to_string(), &anchors, NOW), pair("collateral_malformed", "tcb_info"), "{chain}");
    }
    let list = good["pck_crl"].as_str().unwrap();
    for cut in [0, 2, (list.len() / 2) & !1, list.len() - 2] {
        let mut broken = good.clone();
        broken["pck_crl"] = list[..cut].into();
        assert_eq!(judge(&broken.to_string(), &anchors, NOW), pair("crl_invalid", "pck_crl"), "{cut}");
    }
}

/// Whatever a source serves: no panic, and no other facts than the signed ones.
#[test]
fn changed_bytes_give_no_other_facts() {
    let platform = SimulatedPlatform::generate(NOW).unwrap();
    let good: Value = serde_json::from_str(&platform.collateral(NOW, None).unwrap().to_json()).unwrap();
    let anchors = anchors(&platform);
    let facts = Collateral::from_json(good.to_string().as_bytes()).unwrap().check(&anchors, NOW).unwrap();
    let (mut refused, mut state) = (0, 1_u64);
    for (field, value) in good.as_object().unwrap() {
        for _ in 0..150 {
            // Any sequence does; this one is the same in every run (Knuth's MMIX generator).
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                usize::try_from(state >> 33).unwrap()
            };
            let mut bytes = value.as_str().unwrap().as_bytes().to_vec();
            let at = next() % bytes.len();
            match next() % 3 {
                0 => bytes[at] = b"0aF{}\"-+/=\n"[next() % 11],
                1 => bytes.truncate(at),
                _ => bytes.insert(at, b'0'),
            }
            let mut changed = good.clone();
            changed[field] = String::from_utf8(bytes).unwrap().into();
            let read = Collateral::from_json(changed.to_string().as_bytes());
            match read.map(|collateral| collateral.check(&anchors, NOW)) {
                Ok(Ok(found)) => assert_eq!(found, facts, "{field}"),
                _ => refused += 1,
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

/// Collateral of real platforms under Intel's root, each at a time at which a quote was verified with it.
#[test]
fn real_collateral_is_accepted_under_the_compiled_in_root() {
    let dir = std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from)
        .join("tdx");
    if !dir.is_dir() {
        println!("SKIPPED: real collateral ({} is absent)", dir.display());
        return;
    }
    for (name, at) in [
        ("dq_v4_b0c06f", 1_750_377_600),
        ("dcaprs_00806f05_2025-02", 1_740_009_600),
        ("ars_90c06f_2026-03", 1_773_964_800),
        ("sol_00806f05_2025-07", 1_752_969_600),
    ] {
        let bytes = std::fs::read(dir.join(format!("{name}.collateral.json"))).unwrap();
        let collateral = Collateral::from_json(&bytes).unwrap();
        let facts = collateral.check(&TrustAnchors::intel(), at).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(facts.tcb_evaluation_data_number > 0 && facts.expires() >= at, "{name}");
        let late = collateral.check(&TrustAnchors::intel(), facts.expires() + 1).unwrap_err().refusal();
        assert_eq!(late.code, "collateral_expired", "{name}");
    }
}
