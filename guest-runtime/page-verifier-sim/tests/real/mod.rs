// SPDX-License-Identifier: Apache-2.0
//! Real quotes and GPU evidence, with the times that their README names.

use std::path::{Path, PathBuf};

use gpu_verify::GpuPolicy;
use page_verifier::{DeviceRequest, GpusRequest, QuoteRequest, Subject};
use serde_json::json;
use tdx_verify::PlatformPolicy;
use types::{Base64, Hex32};

use super::{both, codes, genuine, modules, text};

fn vectors(part: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from)
        .join(part);
    if dir.is_dir() {
        return Some(dir);
    }
    println!("SKIPPED: real evidence of {part} in WebAssembly ({} is absent)", dir.display());
    None
}

fn file(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn string(dir: &Path, name: &str) -> String {
    String::from_utf8(file(dir, name)).unwrap()
}

fn quote(bytes: &[u8], collateral: &str, at: u64) -> String {
    let quote = Base64::new(tdx_verify::strip_padding(bytes).to_vec()).unwrap();
    let collateral = vec![collateral.to_owned()];
    text(Subject::Quote(QuoteRequest { quote, collateral, policy: PlatformPolicy::default() }), at)
}

/// What must come of a request, beside the same of both.
enum Expected {
    /// These codes.
    Codes(&'static [&'static str]),
    /// Any refusal.
    Refused,
    /// Anything: a byte of a certificate's text was changed, which may be its white space.
    Any,
}

/// A real quote, when it is judged, and with which codes.
const QUOTES: [(&str, &str, u64, &[&str]); 7] = [
    ("dq_v4_b0c06f", "dq_v4_b0c06f", 1_750_377_600, &[]),
    ("dq_td15ex_b0c06f", "dq_td15ex_b0c06f", 1_792_454_400, &[]),
    ("gtg_v5_90c06f", "ars_90c06f_2026-03", 1_773_964_800, &[]),
    ("gtg_v4_gcp_cos113", "sol_00806f05_2025-07", 1_752_969_600, &[]),
    ("dq_v5_90c06f_nomatch", "dq_v5_90c06f_nomatch", 1_772_323_200, &["tcb_level_none"]),
    ("dcaprs_v4_00806f05_outofdate", "dcaprs_00806f05_2025-02", 1_740_009_600, &["tcb_out_of_date"]),
    ("dq_v4_b0c06f", "sol_00806f05_2025-07", 1_752_969_600, &["collateral_missing"]),
];

/// In a quote of version 4: before it are signatures, keys and the quoting enclave's report, of which no byte may change.
const CERTIFICATES: usize = 1218;

#[test]
fn real_quotes_are_decided_in_wasm_as_natively() {
    let (Some(modules), Some(dir)) = (modules("real quotes"), vectors("tdx")) else { return };
    let mut requests = Vec::new();
    let mut expected = Vec::new();
    let mut ask = |request: String, outcome: Expected| {
        requests.push(request);
        expected.push(outcome);
    };
    for (name, collateral, at, codes) in QUOTES {
        let (bytes, collateral) =
            (file(&dir, &format!("{name}.dat")), string(&dir, &format!("{collateral}.collateral.json")));
        ask(quote(&bytes, &collateral, at), Expected::Codes(codes));
        if !codes.is_empty() {
            continue;
        }
        ask(quote(&bytes, &collateral, at + 400 * 86_400), Expected::Codes(&["collateral_expired"]));
        ask(quote(&bytes, &collateral, at - 400 * 86_400), Expected::Refused);
        ask(quote(&bytes[..bytes.len() / 2], &collateral, at), Expected::Codes(&["quote_truncated"]));
        // What the attestation key signs: header and body.
        for place in [60, 200, 400, 600] {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            ask(quote(&changed, &collateral, at), Expected::Refused);
        }
        for place in (640..tdx_verify::strip_padding(&bytes).len()).step_by(487) {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            let outcome = if place < CERTIFICATES { Expected::Refused } else { Expected::Any };
            ask(quote(&changed, &collateral, at), outcome);
        }
        ask(
            quote(&bytes, &collateral.replacen("UpToDate", "Revoked", 1), at),
            Expected::Codes(&["collateral_signature"]),
        );
    }
    let answers = both(&modules.join("page_verifier_wasm.wasm"), genuine, &requests);
    let mut accepted = 0;
    for ((answer, expected), request) in answers.iter().zip(&expected).zip(&requests) {
        let found = codes(answer);
        match expected {
            Expected::Codes(expected) => assert_eq!(found, *expected, "{answer}"),
            Expected::Refused => assert!(!found.is_empty(), "a changed quote was accepted: {request}"),
            Expected::Any => {}
        }
        accepted += usize::from(answer["accepted"] == json!(true));
        assert_eq!(answer["accepted"] == json!(true), found.is_empty());
    }
    assert!(accepted >= 4, "{accepted}");
    assert!(answers.iter().any(|answer| codes(answer) == ["quote_signature"]), "none came as far as the signature");
    let first = &answers[0]["result"];
    assert_eq!((&first["hardware"], &first["tcb"]["status"]), (&json!("tdx"), &json!("UpToDate")));
}

#[test]
fn real_gpu_evidence_is_decided_in_wasm_as_natively() {
    const DECEMBER_2024: u64 = 1_733_011_200;
    const JUNE_2026: u64 = 1_780_272_000;
    let (Some(modules), Some(dir)) = (modules("real GPU evidence"), vectors("nvidia")) else { return };
    let report = |name: &str| hex::decode(string(&dir, name).trim()).unwrap();
    let ask = |report: &[u8], chain: &str, rims: &[String], nonce: Option<Hex32>, at: u64| {
        let device = DeviceRequest { report: Base64::new(report.to_vec()).unwrap(), chain: chain.to_owned() };
        let (gpus, rims, policy) = (vec![device], rims.to_vec(), GpuPolicy::files_only());
        let (switches, ocsp) = (Vec::new(), Vec::new());
        text(Subject::Gpus(GpusRequest { gpus, switches, rims, ocsp, nonce, driver_state: None, policy }), at)
    };
    let (h100, chain) = (report("h100_545.00_report.txt"), string(&dir, "h100_545.00_chain.txt"));
    let (driver, vbios) =
        (string(&dir, "h100_545.00_driver_rim.swidtag"), string(&dir, "h100_545.00_vbios_rim.swidtag"));
    let rims = [driver.clone(), vbios];
    let nonce = Hex32::new(h100[4..36].try_into().unwrap());
    let mut changed = h100.clone();
    changed[700] ^= 1;
    let broken = string(&dir, "incorrect_signature_driver_rim.xml");
    let requests = [
        ask(&h100, &chain, &rims, Some(nonce), DECEMBER_2024),
        ask(&h100, &chain, &rims, Some(Hex32::new([1; 32])), DECEMBER_2024),
        ask(&h100, &chain, &rims[..1], None, DECEMBER_2024),
        ask(&h100, &chain, &rims, None, JUNE_2026),
        ask(&h100, &chain, &[broken], None, JUNE_2026),
        ask(&changed, &chain, &rims, None, DECEMBER_2024),
        ask(&h100[..h100.len() - 1], &chain, &rims, None, DECEMBER_2024),
        ask(&h100, &chain, &[driver.replacen("545.00", "545.01", 1)], None, DECEMBER_2024),
        ask(&report("blackwellAttestationReport.txt"), &string(&dir, "blackwellCertChain.txt"), &[], None, JUNE_2026),
        ask(&report("hopperAttestationReportInvalidSignature.txt"), &chain, &[], None, JUNE_2026),
    ];
    let answers = both(&modules.join("page_verifier_wasm.wasm"), genuine, &requests);
    let found: Vec<Vec<String>> = answers.iter().map(codes).collect();
    assert!(found[0].is_empty() && answers[0]["accepted"] == json!(true), "{}", answers[0]);
    assert_eq!(answers[0]["result"]["hardware"], json!("nvidia"));
    assert_eq!(found[1], ["gpu_nonce"]);
    assert_eq!(found[2], ["rim_missing"]);
    assert_eq!(found[3], ["rim_expired", "rim_expired", "rim_refused", "rim_refused"]);
    assert_eq!(found[4][0], "rim_signature");
    assert!(found[5].contains(&"gpu_report_signature".to_owned()), "{:?}", found[5]);
    assert_eq!(found[6], ["gpu_report_malformed"]);
    assert!(found[7].contains(&"rim_signature".to_owned()), "{:?}", found[7]);
    assert_eq!(found[8], ["rim_missing", "rim_missing"]);
    assert_eq!(found[9][0], "gpu_report_signature");
}
