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

use event_log::{Agreement, Binding, EventLog, Indexing, Kind, pair, replay};
use proptest::prelude::*;
use tdx_spec::{Quote, TdReport10};
use types::{Registers, Sha384Digest};

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

#[test]
fn labels_of_real_logs_name_what_was_measured() {
    let Some(dir) = vectors() else {
        println!("SKIPPED: labels of a real log (no vectors directory)");
        return;
    };
    let bytes = std::fs::read(dir.join("ccel/trustee_ovmf_2gib_ccel.bin")).unwrap();
    let log = EventLog::parse(&bytes).unwrap();
    let text = |position: usize| log.events[position].label().text;
    assert_eq!(text(0), "TdxTable");
    assert_eq!(text(2), "SecureBoot: absent or empty");
    assert_eq!(text(8), "ACPI DATA");
    assert_eq!(text(11), "1428f772-b64a-441e-b8c3-9ebdd7f893c7/kernel (10854912 bytes)");
    assert_eq!(text(12), "BootOrder: 0000");
    assert_eq!(text(14), "Calling EFI Application from Boot Option");
    assert_eq!((text(16), log.events[16].label().kind), ("LOADED_IMAGE::LoadOptions".into(), Kind::LoadOptions));
    assert_eq!(log.events[17].label().kind, Kind::Initrd);
    // Variables, separators and actions are their own preimage; boot variables without their name; files are not.
    let bindings: Vec<_> = log.events.iter().map(|event| event.binding()).collect();
    assert_eq!(bindings[..2], [Binding::Nothing; 2]);
    assert_eq!(bindings[2..8], [Binding::Data; 6]);
    assert_eq!(bindings[8..12], [Binding::Nothing; 4]);
    assert_eq!(bindings[12..14], [Binding::VariableValue; 2]);
    assert_eq!(bindings[16..18], [Binding::Nothing; 2]);
    let bytes = std::fs::read(dir.join("ccel/gtg_gcp_cos113_ccel.bin")).unwrap();
    let log = EventLog::parse(&bytes).unwrap();
    let line = log.events[40].command_line().unwrap();
    assert!(line.starts_with("/syslinux/vmlinuz.A init=/usr/lib/systemd/systemd"), "{line}");
}

#[test]
fn a_log_and_a_quote_are_paired_register_by_register() {
    let Some(dir) = vectors() else {
        println!("SKIPPED: a log paired with its quote (no vectors directory)");
        return;
    };
    let quote = |name: &str| {
        let bytes = std::fs::read(dir.join("tdx").join(name)).unwrap();
        let (quote, _) = Quote::parse_prefix(&bytes).unwrap();
        registers(quote.body.report())
    };
    for (name, own) in [
        ("gtg_gcp_cos113_ccel", true),
        ("trustee_ovmf_2gib_ccel", false),
        ("trustee_grub_ccel", false),
        ("trustee_alibaba_aael", false),
    ] {
        let bytes = std::fs::read(dir.join(format!("ccel/{name}.bin"))).unwrap();
        let log = EventLog::parse(&bytes).unwrap();
        let pairings = pair(&log, Indexing::MeasurementRegister, &quote("gtg_v4_gcp_cos113.dat")).unwrap();
        for pairing in &pairings[..3] {
            let expected = if own { Agreement::Match } else { Agreement::Mismatch };
            assert_eq!(pairing.agreement, expected, "{name} {}", pairing.register);
        }
        let [.., last] = &pairings;
        if name != "trustee_alibaba_aael" {
            assert_eq!(last.agreement, Agreement::NotInLog, "{name}");
        }
    }
}

fn registers(report: &TdReport10) -> Registers {
    let digest = Sha384Digest::from_bytes;
    Registers {
        mr_td: digest(report.mr_td),
        rtmr_0: digest(report.rtmr_0),
        rtmr_1: digest(report.rtmr_1),
        rtmr_2: digest(report.rtmr_2),
        rtmr_3: digest(report.rtmr_3),
        mr_config_id: digest(report.mr_config_id),
        mr_owner: digest(report.mr_owner),
        mr_owner_config: digest(report.mr_owner_config),
    }
}
