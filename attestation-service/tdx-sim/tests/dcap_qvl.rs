// SPDX-License-Identifier: Apache-2.0
//! An independent verifier accepts what the simulator makes, and refuses each fault for its own reason.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::sync::Arc;
use std::time::Duration;

use dcap_qvl::QuoteCollateralV3;
use dcap_qvl::verify::{QuoteVerifier, VerifiedReport};
use tdx_sim::{Fault, QuoteVersion, SimulatedPlatform, SimulatedTd, TdParams, TdReport};
use types::{Registers, Sha384Digest};

const NOW: u64 = 1_800_000_000;

#[test]
fn good_quotes_of_both_versions_are_accepted() {
    let platform = Arc::new(SimulatedPlatform::generate(NOW).unwrap());
    for version in [QuoteVersion::V4, QuoteVersion::V5] {
        let td = td(&platform, version, None);
        td.extend(3, &Sha384Digest::of(b"event")).unwrap();
        let verified = verify(&platform, &td, None).unwrap();
        assert_eq!(verified.status, "UpToDate", "{version:?}");
        assert_eq!(verified.ppid, platform.ppid());
        let report = verified.report.as_td10().unwrap();
        assert_eq!(report.mr_td, [1; 48]);
        assert_eq!(report.mr_config_id, [6; 48]);
        assert_eq!(&report.rt_mr3, Sha384Digest::from_bytes([5; 48]).extend(&Sha384Digest::of(b"event")).as_bytes());
        assert_eq!(report.report_data, [9; 64]);
    }
}

#[test]
fn every_fault_has_its_own_answer() {
    let platform = Arc::new(SimulatedPlatform::generate(NOW).unwrap());
    for fault in Fault::ALL {
        for version in [QuoteVersion::V4, QuoteVersion::V5] {
            let answer = verify(&platform, &td(&platform, version, Some(fault)), Some(fault));
            match (expected(fault, version), answer) {
                (Expected::Status(status), Ok(report)) => assert_eq!(report.status, status, "{fault:?}"),
                (Expected::Refused(words), Err(error)) => assert!(error.contains(words), "{fault:?}: {error}"),
                (_, answer) => panic!("{fault:?} {version:?}: {:?}", answer.map(|report| report.status)),
            }
        }
    }
}

#[test]
fn a_platform_is_the_same_after_it_was_saved_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pki");
    let platform = SimulatedPlatform::generate(NOW).unwrap();
    platform.save(&path, NOW).unwrap();
    assert!(platform.save(&path, NOW).is_err(), "keys of a run are made once");
    let loaded = Arc::new(SimulatedPlatform::load(&path).unwrap());
    assert_eq!(std::fs::read(path.join("root.der")).unwrap(), platform.root_der());
    let quote = td(&loaded, QuoteVersion::V4, None).quote([0; 64]).unwrap();
    let collateral: QuoteCollateralV3 =
        serde_json::from_slice(&std::fs::read(path.join("collateral.json")).unwrap()).unwrap();
    let verified = QuoteVerifier::new(platform.root_der().to_vec()).verify(&quote, &collateral, NOW).unwrap();
    assert_eq!(verified.status, "UpToDate");
}

#[test]
fn simulated_quotes_do_not_verify_under_the_hardware_root() {
    let platform = Arc::new(SimulatedPlatform::generate(NOW).unwrap());
    let quote = td(&platform, QuoteVersion::V4, None).quote([0; 64]).unwrap();
    assert!(QuoteVerifier::new_prod().verify(&quote, &collateral(&platform, None), NOW).is_err());
    let label = tdx_sim::pki::ROOT_LABEL.as_bytes();
    assert!(platform.root_der().windows(label.len()).any(|window| window == label));
}

enum Expected {
    Status(&'static str),
    Refused(&'static str),
}

fn expected(fault: Fault, version: QuoteVersion) -> Expected {
    use Expected::{Refused, Status};
    match fault {
        Fault::RevokedPck | Fault::RevokedPlatformCa => Refused("CertRevoked"),
        Fault::RevokedTcbSigner => Refused("CertRevoked"),
        Fault::OutOfDateTcb | Fault::OutOfDateQe => Status("OutOfDate"),
        Fault::RevokedQe => Refused("Revoked"),
        Fault::DebugQe => Refused("QE report validation failed"),
        Fault::ConfigurationNeeded => Status("ConfigurationNeeded"),
        Fault::RevokedTcb => Refused("Revoked"),
        Fault::NoTcbLevel => Refused("No matching TCB level"),
        Fault::ExpiredCollateral => Refused("CrlExpired"),
        Fault::FutureCollateral => Refused("future"),
        Fault::ForgedTcbInfo => Refused("Signature is invalid for tcb_info"),
        Fault::ForgedQeIdentity => Refused("Signature is invalid for qe_identity"),
        Fault::OtherFmspc => Refused("Fmspc mismatch"),
        Fault::OtherRoot => Refused("certificate chain"),
        Fault::ForgedReport => Refused("ISV enclave report signature"),
        Fault::ForgedQeReport => Refused("Signature is invalid for qe_report"),
        Fault::ForeignAttestationKey => Refused("QE report hash mismatch"),
        Fault::DebugAttribute => Refused("Debug mode"),
        Fault::SeptVeEnabled => Refused("SEPT_VE_DISABLE"),
        Fault::MigratableAttribute => Refused("migration"),
        Fault::OtherModuleSigner => Refused("TDX module MRSIGNER"),
        Fault::ExpiredLists => Refused("CrlExpired"),
        Fault::ExpiredTcbInfo => Refused("TCBInfo expired"),
        Fault::ExpiredQeIdentity => Refused("QE Identity expired"),
        Fault::ExpiredPck => Refused("CertExpired"),
        Fault::ShortSgxComponents | Fault::ShortTdxComponents => Refused("component count mismatch"),
        Fault::SwappedComponents | Fault::SwappedTeeTcbSvns => Refused("No matching TCB level"),
        Fault::ShortPckSvns => Refused("CpuSvn length mismatch"),
        Fault::OtherQeVendor => Refused("vendor"),
        Fault::OtherQeSigner => Refused("QE MRSIGNER mismatch"),
        Fault::OtherQeProduct => Refused("QE ISVPRODID mismatch"),
        Fault::ReservedAttribute => Refused("Reserved bits in TD attributes"),
        Fault::SeamAttributes => Refused("TDX module"),
        // The library leaves these to its callers.
        Fault::OtherPceId | Fault::AdvisoryUpToDate | Fault::UnexpectedXfam | Fault::MissingXfam => Status("UpToDate"),
        Fault::ServiceTd if version == QuoteVersion::V4 => Status("UpToDate"),
        Fault::ServiceTd => Refused("Invalid MR service TD"),
    }
}

fn verify(platform: &SimulatedPlatform, td: &SimulatedTd, fault: Option<Fault>) -> Result<VerifiedReport, String> {
    let quote = td.quote([9; 64]).unwrap();
    QuoteVerifier::new(platform.root_der().to_vec())
        .verify(&quote, &collateral(platform, fault), NOW)
        .map_err(|error| format!("{error:#}"))
}

fn collateral(platform: &SimulatedPlatform, fault: Option<Fault>) -> QuoteCollateralV3 {
    serde_json::from_str(&platform.collateral(NOW, fault).unwrap().to_json()).unwrap()
}

fn td(platform: &Arc<SimulatedPlatform>, version: QuoteVersion, fault: Option<Fault>) -> SimulatedTd {
    let register = |byte| Sha384Digest::from_bytes([byte; 48]);
    let registers = Registers {
        mr_td: register(1),
        rtmr_0: register(2),
        rtmr_1: register(3),
        rtmr_2: register(4),
        rtmr_3: register(5),
        mr_config_id: register(6),
        mr_owner: Sha384Digest::ZERO,
        mr_owner_config: Sha384Digest::ZERO,
    };
    let TdParams { attributes, xfam, .. } = TdParams::with_config(registers.mr_config_id);
    let report = TdReport { registers, attributes, xfam, report_data: [0; 64] };
    SimulatedTd::with(Arc::clone(platform), report, version, fault, Duration::ZERO)
}
