// SPDX-License-Identifier: Apache-2.0
//! Real reports, certificates and manifests of NVIDIA's, each with the verdict and the time that its source names.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::path::{Path, PathBuf};

use gpu_verify::{
    Architecture, DeviceEvidence, GpuAnchors, GpuAppraisal, GpuPolicy, GpuVerdict, Requirement, Rim, RimRefused,
};

#[test]
fn h100_with_both_manifests_is_accepted() {
    let Some(dir) = vectors("the H100 of driver 545.00") else { return };
    let (report, chain) = (hex_file(&dir, "h100_545.00_report.txt"), file(&dir, "h100_545.00_chain.txt"));
    let rims = [
        rim(&dir, "h100_545.00_driver_rim.swidtag", DECEMBER_2024),
        rim(&dir, "h100_545.00_vbios_rim.swidtag", DECEMBER_2024),
    ];
    let nonce: [u8; 32] = report[4..36].try_into().unwrap();
    let set = appraise(&report, &chain, &rims, Some(&nonce), DECEMBER_2024).accept().expect("accepted");
    let gpu = &set.gpus()[0];
    assert_eq!(*gpu.architecture(), Architecture::Hopper);
    assert_eq!((gpu.chip(), gpu.driver_version(), gpu.vbios_version()), ("GH100", "545.00", "96.00.5E.00.01"));
    assert_eq!((gpu.driver_measurements(), gpu.vbios_measurements()), (20, 12), "index 35: no decoder");
    assert_eq!(rims[0].as_ref().unwrap().active(), 21);

    let other = [1; 32];
    assert_eq!(codes(&appraise(&report, &chain, &rims, Some(&other), DECEMBER_2024)), ["gpu_nonce"]);
    assert_eq!(codes(&appraise(&report, &chain, &rims[..1], None, DECEMBER_2024)), ["rim_missing"]);
    assert_eq!(codes(&appraise(&report, &chain, &[], None, DECEMBER_2024)), ["rim_missing", "rim_missing"]);
}

#[test]
fn manifests_expire() {
    let Some(dir) = vectors("manifests after June 2025") else { return };
    let (report, chain) = (hex_file(&dir, "h100_545.00_report.txt"), file(&dir, "h100_545.00_chain.txt"));
    let rims =
        [rim(&dir, "h100_545.00_driver_rim.swidtag", JUNE_2026), rim(&dir, "h100_545.00_vbios_rim.swidtag", JUNE_2026)];
    let verdict = appraise(&report, &chain, &rims, None, JUNE_2026);
    assert_eq!(codes(&verdict), ["rim_expired", "rim_expired", "rim_refused", "rim_refused"]);
    let early = rim(&dir, "h100_545.00_driver_rim.swidtag", 1_600_000_000).unwrap_err();
    assert!(early.faults.iter().all(|fault| fault.code() == "rim_not_yet_valid"), "{early}");
}

#[test]
fn manifest_of_another_version_and_a_broken_signature() {
    let Some(dir) = vectors("manifests of driver 550.144.03") else { return };
    let name = "NV_GPU_DRIVER_GH100_550.144.03.xml";
    let good = rim(&dir, name, JUNE_2026).expect("signed and valid");
    assert_eq!((good.identity().version.as_str(), good.active()), ("550.144.03", 21));
    let broken = rim(&dir, "incorrect_signature_driver_rim.xml", JUNE_2026).unwrap_err();
    assert_eq!(broken.faults.iter().map(gpu_verify::RimFault::code).collect::<Vec<_>>(), ["rim_signature"]);
    let (report, chain) = (hex_file(&dir, "h100_545.00_report.txt"), file(&dir, "h100_545.00_chain.txt"));
    let verdict = appraise(&report, &chain, &[Ok(good)], None, JUNE_2026);
    assert_eq!(codes(&verdict), ["rim_version", "rim_missing"]);
    let verdict = appraise(&report, &chain, &[Err(broken)], None, JUNE_2026);
    assert_eq!(codes(&verdict), ["rim_signature", "rim_version", "rim_missing"]);
}

#[test]
fn every_changed_byte_of_a_manifest_is_noticed() {
    let Some(dir) = vectors("manifest of driver 545.00, changed") else { return };
    let original = file(&dir, "h100_545.00_driver_rim.swidtag");
    for place in (0..original.len() - 1).step_by(509) {
        let mut changed = original.clone();
        changed[place] ^= 1;
        if let Ok(rim) = verify_rim(&changed, DECEMBER_2024) {
            panic!("byte {place} may change: {:?}", rim.identity());
        }
    }
}

#[test]
fn blackwell_is_genuine_but_has_no_manifest() {
    let Some(dir) = vectors("the GB100") else { return };
    let (report, chain) = (hex_file(&dir, "blackwellAttestationReport.txt"), file(&dir, "blackwellCertChain.txt"));
    let verdict = appraise(&report, &chain, &[], None, JUNE_2026);
    assert_eq!(codes(&verdict), ["rim_missing", "rim_missing"]);
    let check = |code: &str| verdict.checks().iter().find(|check| check.code == code).unwrap();
    assert!(check("gpu_fwid").passed && check("gpu_report_signature").passed && check("gpu_chain").passed);
    assert_eq!(check("gpu_architecture").found, "blackwell (GB100)");
    let other = [rim(&dir, "h100_545.00_driver_rim.swidtag", DECEMBER_2024)];
    assert_eq!(codes(&appraise(&report, &chain, &other, None, DECEMBER_2024)), ["rim_version", "rim_missing"]);
}

#[test]
fn a_report_with_other_certificates_is_refused() {
    let Some(dir) = vectors("reports with certificates of another device") else { return };
    let broken = hex_file(&dir, "hopperAttestationReportInvalidSignature.txt");
    let (h100, gb100) = (file(&dir, "h100_545.00_chain.txt"), file(&dir, "blackwellCertChain.txt"));
    let verdict = appraise(&broken, &h100, &[], None, JUNE_2026);
    let found = codes(&verdict);
    assert_eq!(found[0], "gpu_report_signature");
    assert!(found.contains(&"gpu_fwid") && found.contains(&"gpu_mode"), "{found:?}");
    let report = hex_file(&dir, "h100_545.00_report.txt");
    assert_eq!(codes(&appraise(&report, &gb100, &[], None, JUNE_2026))[0], "gpu_report_signature");
}

#[test]
fn every_shorter_report_and_every_changed_bit_is_refused() {
    let Some(dir) = vectors("the H100, cut and changed") else { return };
    let (report, chain) = (hex_file(&dir, "h100_545.00_report.txt"), file(&dir, "h100_545.00_chain.txt"));
    for len in (0..report.len()).step_by(61).chain([report.len() - 1]) {
        let verdict = appraise(&report[..len], &chain, &[], None, DECEMBER_2024);
        assert!(!verdict.is_accepted());
        assert_eq!(codes(&verdict), ["gpu_report_malformed"], "{len}");
    }
    let mut longer = report.clone();
    longer.push(0);
    assert_eq!(codes(&appraise(&longer, &chain, &[], None, DECEMBER_2024)), ["gpu_report_malformed"]);
    for place in (0..report.len()).step_by(97) {
        let mut changed = report.clone();
        changed[place] ^= 1;
        let found = appraise(&changed, &chain, &[], None, DECEMBER_2024);
        let found = codes(&found);
        assert!(
            found.contains(&"gpu_report_malformed") || found.contains(&"gpu_report_signature"),
            "{place}: {found:?}"
        );
    }
}

#[test]
fn certificates_are_judged_by_time_order_and_root() {
    let Some(dir) = vectors("certificates of the H100") else { return };
    let (report, chain) = (hex_file(&dir, "h100_545.00_report.txt"), file(&dir, "h100_545.00_chain.txt"));
    let early = appraise(&report, &chain, &[], None, 1_600_000_000);
    assert!(codes(&early).contains(&"gpu_certificate_not_yet_valid"));
    let text = String::from_utf8(chain.clone()).unwrap();
    let parts: Vec<_> = text.split_inclusive("-----END CERTIFICATE-----").collect();
    let without_root = parts[..4].concat();
    let found = appraise(&report, without_root.as_bytes(), &[], None, DECEMBER_2024);
    assert!(codes(&found).contains(&"gpu_root_untrusted"));
    let swapped = [parts[0], parts[2], parts[1], parts[3], parts[4]].concat();
    let found = appraise(&report, swapped.as_bytes(), &[], None, DECEMBER_2024);
    assert!(codes(&found).contains(&"gpu_chain_signature") && codes(&found).contains(&"gpu_chain"));
    let junk = [b"junk".as_slice(), &chain].concat();
    assert_eq!(codes(&appraise(&report, &junk, &[], None, DECEMBER_2024)), ["gpu_chain_malformed"]);
    let rim_root =
        [parts[0], parts[1], parts[2], parts[3], std::str::from_utf8(&file(&dir, "verifier_RIM_root.pem")).unwrap()]
            .concat();
    let found = appraise(&report, rim_root.as_bytes(), &[], None, DECEMBER_2024);
    assert!(codes(&found).contains(&"gpu_root_untrusted"));
}

fn appraise(
    report: &[u8],
    chain: &[u8],
    rims: &[Result<Rim, RimRefused>],
    nonce: Option<&[u8; 32]>,
    now: u64,
) -> GpuVerdict {
    GpuAppraisal {
        gpus: &[DeviceEvidence { report, chain }],
        switches: &[],
        rims,
        ocsp: &[],
        nonce,
        driver_state: None,
        policy: &GpuPolicy::files_only(),
        anchors: &GpuAnchors::nvidia(),
        now,
    }
    .appraise()
}

fn codes(verdict: &GpuVerdict) -> Vec<&'static str> {
    assert_eq!(verdict.is_accepted(), verdict.checks().iter().all(|check| check.passed));
    verdict.checks().iter().filter(|check| !check.passed).map(|check| check.code).collect()
}

fn rim(dir: &Path, name: &str, now: u64) -> Result<Rim, RimRefused> {
    verify_rim(&file(dir, name), now)
}

fn verify_rim(bytes: &[u8], now: u64) -> Result<Rim, RimRefused> {
    Rim::verify(bytes, &GpuAnchors::nvidia(), &[], Requirement::Optional, now)
}

fn file(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).unwrap()
}

fn hex_file(dir: &Path, name: &str) -> Vec<u8> {
    hex::decode(String::from_utf8(file(dir, name)).unwrap().trim()).unwrap()
}

/// Directory of NVIDIA's files, or says what is skipped.
fn vectors(what: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from)
        .join("nvidia");
    if dir.is_dir() {
        return Some(dir);
    }
    println!("SKIPPED: {what}: no directory {}", dir.display());
    None
}

/// 2024-12-01.
const DECEMBER_2024: u64 = 1_733_011_200;
/// 2026-06-01.
const JUNE_2026: u64 = 1_780_272_000;
