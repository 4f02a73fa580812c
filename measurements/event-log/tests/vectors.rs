// SPDX-License-Identifier: Apache-2.0
//! Logs written by real firmware replay to the registers in quotes signed by real hardware.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::path::PathBuf;

use event_log::{EventLog, Indexing, replay};
use proptest::prelude::*;
use tdx_spec::Quote;
use types::Sha384Digest;

fn vectors() -> Option<PathBuf> {
    let dir = std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from);
    dir.is_dir().then_some(dir)
}

#[test]
fn a_cloud_machines_log_replays_to_its_quote() {
    let Some(dir) = vectors() else {
        println!("SKIPPED: CCEL and quote of a cloud machine (no vectors directory)");
        return;
    };
    let log = std::fs::read(dir.join("ccel/gtg_gcp_cos113_ccel.bin")).unwrap();
    let log = EventLog::parse(&log).unwrap();
    let quote = std::fs::read(dir.join("tdx/gtg_v4_gcp_cos113.dat")).unwrap();
    let (quote, _) = Quote::parse_prefix(&quote).unwrap();
    let rtmrs = replay(&log, Indexing::MeasurementRegister).unwrap().0;
    let report = quote.body.report();
    let quoted = [report.rtmr_0, report.rtmr_1, report.rtmr_2, report.rtmr_3];
    for (index, (replayed, quoted)) in rtmrs.iter().zip(quoted).enumerate().take(3) {
        assert_eq!(replayed.as_bytes(), &quoted, "RTMR{index}");
    }
    // One event less, and the register is another.
    let mut shorter = log.clone();
    let last = shorter.events.iter().rposition(|event| event.index == 2).unwrap();
    shorter.events.remove(last);
    assert_ne!(replay(&shorter, Indexing::MeasurementRegister).unwrap().0[1].as_bytes(), &report.rtmr_1);
}

#[test]
fn logs_of_other_firmware_parse_and_replay() {
    let Some(dir) = vectors() else {
        println!("SKIPPED: CCELs of several firmwares (no vectors directory)");
        return;
    };
    for (name, events) in [("trustee_ovmf_2gib_ccel", 20), ("trustee_grub_ccel", 37), ("trustee_alibaba_aael", 87)] {
        let bytes = std::fs::read(dir.join(format!("ccel/{name}.bin"))).unwrap();
        let log = EventLog::parse(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(log.events.len(), events, "{name}");
        let rtmrs = replay(&log, Indexing::MeasurementRegister).unwrap().0;
        assert_ne!(rtmrs[0], Sha384Digest::ZERO, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..600), cut in 0_usize..80) {
        let mut bytes = [&1_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), &[0; 20], &33_u32.to_le_bytes()].concat();
        bytes.extend(b"Spec ID Event03\0");
        bytes.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0xc, 0, 48, 0, 0]);
        bytes.truncate(bytes.len().min(cut.max(20)));
        bytes.extend(tail);
        let _ = EventLog::parse(&bytes);
    }
}
