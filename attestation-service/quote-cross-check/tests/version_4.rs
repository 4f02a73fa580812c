// SPDX-License-Identifier: Apache-2.0
//! Version 4 quotes as `tdx-quote` reads and verifies them, beside our own reading and verdict. Its version 5 fails real
//! quotes and is left out. What it does not look at (collateral, revocation, the chain's root, attributes) is no part of
//! the comparison.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::path::PathBuf;

use tdx_quote::VerifyingKey;
use tdx_sim::{Fault, QuoteVersion, SimulatedPlatform, TdReport};
use tdx_spec::{Quote, QuoteBody};
use tdx_verify::{Collateral, PlatformPolicy, QuoteFault, TrustAnchors, strip_padding, verify};

const NOW: u64 = 1_800_000_000;

/// Our own codes for what the other implementation verifies, too.
const SIGNED: [&str; 3] = ["quote_signature", "qe_report_signature", "qe_report_data"];

/// Whether it accepts the three signatures: of the body by the attestation key, of that key by the QE report, of the QE
/// report by the PCK key of the first certificate.
fn theirs(bytes: &[u8]) -> Result<tdx_quote::Quote, String> {
    let quote = tdx_quote::Quote::from_bytes(bytes).map_err(|error| format!("{error:?}"))?;
    let chain = quote.pck_cert_chain().map_err(|error| format!("{error:?}"))?;
    // Quotes end it with a zero, as C does.
    let chain = chain.strip_suffix(&[0]).unwrap_or(&chain);
    let chain = x509_cert::Certificate::load_pem_chain(chain).map_err(|error| error.to_string())?;
    let leaf = chain.first().ok_or("no certificate")?;
    let point = leaf.tbs_certificate().subject_public_key_info().subject_public_key.raw_bytes();
    let pck = VerifyingKey::from_sec1_bytes(point).map_err(|error| error.to_string())?;
    quote.verify_with_pck(&pck).map_err(|error| format!("{error:?}"))?;
    Ok(quote)
}

/// Every field is the same in both readings.
fn compare(bytes: &[u8], name: &str) {
    let theirs = theirs(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    let ours = Quote::parse(bytes).unwrap();
    let QuoteBody::Td10(body) = ours.body else { panic!("{name}: a body of another version") };
    let other = &theirs.body;
    for (ours, theirs) in [
        (body.mr_seam, other.mrseam),
        (body.mr_signer_seam, other.mrsignerseam),
        (body.mr_td, other.mrtd),
        (body.mr_config_id, other.mrconfigid),
        (body.mr_owner, other.mrowner),
        (body.mr_owner_config, other.mrownerconfig),
        (body.rtmr_0, other.rtmr0),
        (body.rtmr_1, other.rtmr1),
        (body.rtmr_2, other.rtmr2),
        (body.rtmr_3, other.rtmr3),
    ] {
        assert_eq!(ours, theirs, "{name}");
    }
    assert_eq!((body.report_data, body.tee_tcb_svn), (other.reportdata, other.tee_tcb_svn), "{name}");
    let ours_attributes = (body.seam_attributes, body.td_attributes.bits(), body.xfam.bits());
    let number = u64::from_le_bytes;
    assert_eq!(ours_attributes, (other.seamattributes, number(other.tdattributes), number(other.xfam)), "{name}");
    assert_eq!(ours.header.qe_vendor_id, theirs.header.qe_vendor_id, "{name}");
    assert_eq!(ours.header.user_data, theirs.header.user_data, "{name}");
}

#[test]
fn real_quotes_read_and_verify_alike() {
    let dir = std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from)
        .join("tdx");
    if !dir.is_dir() {
        println!("SKIPPED: real TDX quotes ({} is absent)", dir.display());
        return;
    }
    let names =
        ["dq_v4_b0c06f", "gtg_v4_gcp_cos113", "dcaprs_v4_00806f05_outofdate", "trustee_v4_azure", "trustee_v4_debug"];
    for name in names {
        let bytes = std::fs::read(dir.join(format!("{name}.dat"))).unwrap();
        compare(strip_padding(&bytes), name);
    }
}

/// Whatever of a quote is changed: what the other implementation refuses for a signature, ours does; and what ours
/// refuses for a signature alone, the other one does.
#[test]
fn changed_quotes_are_refused_alike() {
    let platform = SimulatedPlatform::generate(NOW).unwrap();
    let collateral = Collateral::from_json(platform.collateral(NOW, None).unwrap().to_json().as_bytes()).unwrap();
    let anchors = TrustAnchors::custom(platform.root_der().to_vec());
    let ours = |bytes: &[u8]| -> Vec<&'static str> {
        match verify(bytes, &collateral, &anchors, NOW, &PlatformPolicy::default()) {
            Ok(_) => Vec::new(),
            Err(refused) => refused.faults.iter().map(QuoteFault::code).collect(),
        }
    };
    let good = platform.quote(&TdReport::example(), QuoteVersion::V4, None).unwrap();
    compare(&good, "simulated");
    assert_eq!(ours(&good), [""; 0]);
    for fault in [Fault::ForgedReport, Fault::ForgedQeReport, Fault::ForeignAttestationKey] {
        let forged = platform.quote(&TdReport::example(), QuoteVersion::V4, Some(fault)).unwrap();
        assert!(theirs(&forged).is_err() && !ours(&forged).is_empty(), "{fault:?}");
    }
    // Header, body, length, signature, attestation key, QE report, its signature, authentication data.
    let (mut both, mut ours_alone) = (0, 0);
    let end = 48 + 584 + 4 + 64 + 64 + 6 + 384 + 64 + 2 + 32;
    for place in (0..end).step_by(3) {
        let mut changed = good.clone();
        changed[place] ^= 0x10;
        let (ours, theirs) = (ours(&changed), theirs(&changed));
        match &theirs {
            Err(_) => assert!(!ours.is_empty(), "byte {place}: only the other one refuses: {theirs:?}"),
            Ok(_) => assert!(!ours.iter().any(|code| SIGNED.contains(code)), "byte {place}: only ours: {ours:?}"),
        }
        both += usize::from(theirs.is_err());
        ours_alone += usize::from(theirs.is_ok() && !ours.is_empty());
    }
    println!("{both} changes refused by both, {ours_alone} by ours alone");
    assert!(both > 300, "{both}");
}
