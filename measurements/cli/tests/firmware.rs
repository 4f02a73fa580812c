// SPDX-License-Identifier: Apache-2.0
//! An oracle that shares nothing with the calculator: real firmware boots a real kernel under emulation, with a
//! TPM, and writes its own event log. The log is read straight out of the guest's memory. Each boot is made under several
//! versions of QEMU.
//!
//! What it cannot show: the events that only a trust domain has (TD HOB, configuration volume), and ACPI in
//! that same boot, since a TPM changes the tables. ACPI is compared in a boot without TPM.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod oracle;

use std::{path::Path, process::Command};

use calculator::{AcpiDigests, ExpectedRegisters, FirmwareGeneration, ImageBytes, ImageMeasurements, registers};
use measure::acpi::{self, PhysicalBits, Program};
use oracle::{COMMAND_LINE, Ended, Logged, MEMORY_MIB};
use types::{Device, MachineShape, RegisterName, Sha384Digest, shape::ShapeFacts};

macro_rules! need {
    ($value:expr, $what:literal) => {
        match $value {
            Some(value) => value,
            None => {
                println!(concat!("SKIPPED: ", $what));
                return;
            }
        }
    };
}

#[test]
fn predictions_equal_the_log_under_the_installed_qemu() {
    compare_log(&need!(oracle::installed_qemu(), "firmware's own log (no qemu-system-x86_64)"));
}

#[test]
fn predictions_equal_the_log_under_qemu_10_0() {
    compare_log(&need!(oracle::packaged_qemu("10.0"), "firmware's own log under QEMU 10.0 (not in the cache)"));
}

#[test]
fn predictions_equal_the_log_under_qemu_11_1() {
    compare_log(&need!(oracle::packaged_qemu("11.1"), "firmware's own log under QEMU 11.1 (not in the cache)"));
}

#[test]
fn tables_are_those_that_firmware_gets_under_the_installed_qemu() {
    compare_tables(&need!(oracle::installed_qemu(), "ACPI tables after firmware (no qemu-system-x86_64)"), 40);
}

#[test]
fn tables_are_those_that_firmware_gets_under_qemu_10_0() {
    // Firmware uses no more than 46 of them.
    compare_tables(&need!(oracle::packaged_qemu("10.0"), "ACPI tables under QEMU 10.0 (not in the cache)"), 52);
}

#[test]
fn tables_are_those_that_firmware_gets_under_qemu_11_1() {
    compare_tables(&need!(oracle::packaged_qemu("11.1"), "ACPI tables under QEMU 11.1 (not in the cache)"), 46);
}

/// Why `FirmwareGeneration` ends where it does: newer firmware measures SMBIOS tables, whose digest the processor's
/// signature enters. What can be computed is where the sources say.
#[test]
fn newer_firmware_measures_more_than_can_be_computed() {
    let qemu = need!(oracle::packaged_qemu("11.1"), "newer firmware (QEMU 11.1 is not in the cache)");
    let ovmf = need!(oracle::newer_ovmf(), "newer firmware (ovmf 2026.08 is not in the cache)");
    let Some((expected, log)) = boot(&qemu, &ovmf) else { return };
    let smbios = log.iter().filter(|logged| logged.pcr == 1 && logged.kind == EV_EFI_HANDOFF_TABLES);
    assert_eq!(smbios.count(), 1, "SMBIOS tables are measured");
    let has = |digest: Sha384Digest| log.iter().any(|logged| logged.digest == digest);
    let digest = |name: &str| expected.events.iter().find(|event| event.name == name).unwrap().digest;
    for name in ["variable SecureBoot", "variable PK", "variable dbx", "separator", "kernel", "initrd"] {
        assert!(has(digest(name)), "{name}");
    }
    for name in ["variable BootOrder", "variable Boot0000", "command line"] {
        assert!(!has(digest(name)), "{name} is as before");
    }
    let options = calculator::load_options(COMMAND_LINE, calculator::InitrdWord::Before).unwrap();
    assert!(has(Sha384Digest::of(&options)), "initrd=initrd stands before the command line");
}

/// Boots Debian 13's firmware and compares its log with the predictions.
fn compare_log(qemu: &Path) {
    let ovmf = need!(oracle::ovmf(), "firmware's own log (Debian 13's OVMF.fd not found)");
    let Some((expected, log)) = boot(qemu, &ovmf) else { return };
    let not_in_this_log = ["TD HOB", "configuration volume", "leaving boot services", "left boot services"];
    let predicted: Vec<_> = expected
        .events
        .iter()
        .filter(|event| !event.name.starts_with("ACPI") && !not_in_this_log.contains(&event.name))
        .collect();
    // Register by register: PCR 1 and 7, 2 to 6, 8 to 15 (the same events, with more of a PC's own between).
    for (register, pcrs) in [
        (RegisterName::Rtmr0, vec![1, 7]),
        (RegisterName::Rtmr1, vec![2, 3, 4, 5, 6]),
        (RegisterName::Rtmr2, vec![8, 9]),
    ] {
        let mut logged = log.iter().filter(|logged| pcrs.contains(&logged.pcr));
        for event in predicted.iter().filter(|event| event.register == register) {
            assert!(
                logged.any(|logged| logged.digest == event.digest),
                "{register}: {} is not in the log at its place",
                event.name
            );
        }
    }
    // The test can fail: another command line would not be found.
    let other = calculator::load_options("quiet", calculator::InitrdWord::After).unwrap();
    assert!(log.iter().all(|logged| logged.digest != Sha384Digest::of(&other)));
}

/// What is predicted for a boot with TPM, and what the firmware logged in it.
fn boot(qemu: &Path, ovmf: &Path) -> Option<(ExpectedRegisters, Vec<Logged>)> {
    let (Some(_), Some(kernel)) = (oracle::swtpm(), oracle::kernel()) else {
        println!("SKIPPED: firmware's own log (no swtpm, or no kernel: CHRYSALIS_KERNEL or cache)");
        return None;
    };
    let dir = tempfile::tempdir().unwrap();
    // The kernel measures the initrd before it looks into it, so any bytes will do.
    let initrd: Vec<u8> = (0..1_234_567_u32).map(|i| i.to_le_bytes()[1]).collect();
    std::fs::write(dir.path().join("initrd"), &initrd).unwrap();
    let machine = oracle::boot_with_tpm(qemu, dir.path(), ovmf, &kernel);
    let image = ImageBytes {
        firmware: &std::fs::read(ovmf).unwrap(),
        generation: FirmwareGeneration::Edk2Stable202502,
        kernel: &std::fs::read(&kernel).unwrap(),
        initrd: &initrd,
        command_line: COMMAND_LINE,
    };
    let image = ImageMeasurements::of(&image, &[MEMORY_MIB]).unwrap();
    let zero = AcpiDigests { loader: Sha384Digest::ZERO, rsdp: Sha384Digest::ZERO, tables: Sha384Digest::ZERO };
    let expected = registers(&image, &shape(qemu, 40), &zero).unwrap();
    Some((expected, oracle::wait_for_log(&machine).expect("the firmware's log up to the initrd")))
}

/// Boots Debian 13's firmware and compares the DSDT that it got with the one read without a guest.
fn compare_tables(qemu: &Path, bits: u8) {
    let ovmf = need!(oracle::ovmf(), "ACPI tables after firmware (Debian 13's OVMF.fd not found)");
    let arguments = qemu::table_arguments(&shape(qemu, bits));
    let predicted = acpi::read(qemu, &arguments, PhysicalBits::new(bits).unwrap()).unwrap();
    // The same machine with firmware and a memory that can be looked into. QEMU leaves the tables in the guest's
    // memory where the firmware put them; DSDT is the part that depends on what was programmed before.
    let dir = tempfile::tempdir().unwrap();
    let memory = dir.path().join("memory");
    let arguments: Vec<String> = arguments
        .into_iter()
        .filter(|argument| argument != "-S")
        .map(|argument| match argument.strip_prefix("memory-backend-memfd,") {
            Some(rest) => format!("memory-backend-file,mem-path={},{rest}", memory.display()),
            None => argument,
        })
        .collect();
    let _machine = Ended::start(Command::new(qemu).args(arguments).arg("-bios").arg(&ovmf));
    let dsdt = oracle::table(&predicted.tables, b"DSDT").to_vec();
    let found = oracle::poll(|| {
        let bytes = std::fs::read(&memory).unwrap_or_default();
        let found: Vec<_> = oracle::tables_in(&bytes, b"DSDT", dsdt.len()).map(<[u8]>::to_vec).collect();
        (!found.is_empty()).then_some(found)
    });
    let found = found.expect("a DSDT in the guest's memory");
    // The firmware fills in the checksum, at offset 9.
    let blank = |table: &[u8]| [&table[..9], &[0], &table[10..]].concat();
    assert!(found.iter().any(|table| blank(table) == dsdt), "the firmware got another DSDT");
}

fn shape(qemu: &Path, physical_bits: u8) -> MachineShape {
    let devices = vec![Device::ConfigDisk, Device::ModelDisk, Device::Network, Device::Vsock];
    let qemu = Program::ask(qemu).unwrap().version;
    MachineShape::new(ShapeFacts { vcpus: 2, memory_mib: MEMORY_MIB, physical_bits, qemu, devices }).unwrap()
}

const EV_EFI_HANDOFF_TABLES: u32 = 0x8000_0009;
