// SPDX-License-Identifier: Apache-2.0
//! Predictions compared with what hardware and other tools measured.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod common;

use std::{path::Path, process::Command};

use calculator::{
    AcpiDigests, FirmwareGeneration, FirmwareMeasurements, ImageMeasurements, KernelMeasurements, MemoryRange,
    registers,
};
use event_log::EventLog;
use types::{MachineShape, QemuVersion, RegisterName, Sha384Digest, shape::ShapeFacts};

/// The image's measurements as far as RTMR0 and MRTD are concerned.
fn image(ovmf: &[u8]) -> ImageMeasurements {
    ImageMeasurements {
        firmware: FirmwareMeasurements::of(ovmf, FirmwareGeneration::Edk2Stable202502).unwrap(),
        kernel: KernelMeasurements {
            unpatched: Sha384Digest::ZERO,
            initrd_address_max: u32::MAX,
            initrd_len: 1,
            patched: vec![],
        },
        initrd: Sha384Digest::ZERO,
        command_line: "quiet".into(),
    }
}

/// The same image with the memory layout of EDK II up to 2024, which the machines with public logs ran; its
/// configuration volume is the same.
fn older_image(ovmf: &[u8]) -> ImageMeasurements {
    let mut image = image(ovmf);
    assert_eq!(image.firmware.added_memory[0], MemoryRange { address: 0x81_1000, length: 0xf000 });
    image.firmware.added_memory[0] = MemoryRange { address: 0x81_0000, length: 0x1_0000 };
    image
}

fn shape(vcpus: u16, memory_mib: u32) -> MachineShape {
    let qemu = QemuVersion { major: 10, minor: 1 };
    MachineShape::new(ShapeFacts { vcpus, memory_mib, physical_bits: 46, qemu, devices: vec![] }).unwrap()
}

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
fn mr_td_of_debian_13() {
    let ovmf = need!(common::debian_ovmf(), "MRTD of Debian 13's OVMF.fd (not in the cache, CHRYSALIS_OVMF not set)");
    let firmware = image(&ovmf).firmware;
    // Computed by an independent script over the same file.
    let expected = "bdc6fb145880f06f30c8b346b8dce2a99d9351b56892df22f80fcf6574caa9f9c31df8e8576d53b4d0cd1c3f28910e11";
    assert_eq!(firmware.mr_td_per_page.to_string(), expected);
    let expected = "456f07902150d008bb913c3e1e84e9297f735a6c83cd2a957a1f0a8bbedb06df188e3837ae48d32c73d473d097dc0db2";
    assert_eq!(firmware.mr_td_two_pass.to_string(), expected);
    let mut other = ovmf.clone();
    other[0x84000] ^= 1;
    assert_ne!(image(&other).firmware.mr_td_per_page, firmware.mr_td_per_page);
}

#[test]
fn rtmr_0_of_a_quote_from_hardware() {
    let ovmf = need!(common::debian_ovmf(), "RTMR0 of a real quote (Debian 13's OVMF.fd not found)");
    let dir = need!(common::vectors(), "RTMR0 of a real quote (no vectors directory)");
    let report = std::fs::read(dir.join("ccel/dstack_quote_report_64gib.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    let quote = hex::decode(report["quote"].as_str().unwrap()).unwrap();
    let (quote, _) = tdx_spec::Quote::parse_prefix(&quote).unwrap();
    let log: Vec<serde_json::Value> = serde_json::from_str(report["event_log"].as_str().unwrap()).unwrap();
    let logged: Vec<(u64, Sha384Digest)> =
        log.iter().map(|e| (e["imr"].as_u64().unwrap(), e["digest"].as_str().unwrap().parse().unwrap())).collect();
    let of = |imr| logged.iter().filter(move |(i, _)| *i == imr).map(|(_, digest)| *digest).collect::<Vec<_>>();
    // Only the ACPI digests are taken from the log (positions 8 to 10 of RTMR0); all else is predicted.
    let rtmr_0 = of(0);
    let acpi = AcpiDigests { loader: rtmr_0[8], rsdp: rtmr_0[9], tables: rtmr_0[10] };
    // Kernel, command line and initrd of that machine are not public: take their digests, too.
    let mut image = older_image(&ovmf);
    image.kernel.unpatched = of(1)[0];
    image.initrd = of(2)[1];
    let expected = registers(&image, &shape(16, 65536), &acpi).unwrap();
    let predicted =
        |register| expected.events.iter().filter(move |e| e.register == register).map(|e| e.digest).collect::<Vec<_>>();
    assert_eq!(event_log::first_difference(&predicted(RegisterName::Rtmr0), &rtmr_0), None);
    assert_eq!(event_log::first_difference(&predicted(RegisterName::Rtmr1), &of(1)), None);
    let body = quote.body.report();
    assert!(expected.allows(RegisterName::Rtmr0, &Sha384Digest::from_bytes(body.rtmr_0)));
    assert!(expected.allows(RegisterName::Rtmr1, &Sha384Digest::from_bytes(body.rtmr_1)));
    // Another size of memory is another RTMR0.
    let other = registers(&image, &shape(16, 32768), &acpi).unwrap();
    assert!(!other.allows(RegisterName::Rtmr0, &Sha384Digest::from_bytes(body.rtmr_0)));
}

#[test]
fn td_hob_and_configuration_volume_of_a_2_gib_machine() {
    let ovmf = need!(common::debian_ovmf(), "TD HOB at 2 GiB (Debian 13's OVMF.fd not found)");
    let dir = need!(common::vectors(), "TD HOB at 2 GiB (no vectors directory)");
    let bytes = std::fs::read(dir.join("ccel/trustee_ovmf_2gib_ccel.bin")).unwrap();
    let log = EventLog::parse(&bytes).unwrap();
    let logged: Vec<_> = log.events.iter().filter(|e| e.index == 1).map(|e| e.sha384().unwrap()).collect();
    let zero = AcpiDigests { loader: Sha384Digest::ZERO, rsdp: Sha384Digest::ZERO, tables: Sha384Digest::ZERO };
    let expected = registers(&older_image(&ovmf), &shape(1, 2048), &zero).unwrap();
    let predicted: Vec<_> =
        expected.events.iter().filter(|e| e.register == RegisterName::Rtmr0).map(|e| (e.name, e.digest)).collect();
    for (position, (name, digest)) in predicted.iter().enumerate() {
        // That machine's ACPI tables are unknown.
        if !name.starts_with("ACPI") {
            assert_eq!(*digest, logged[position], "{name}");
        }
    }
}

#[test]
fn rtmr_0_that_another_tool_published() {
    let ovmf = need!(common::debian_ovmf(), "published RTMR0 values (Debian 13's OVMF.fd not found)");
    let dir = need!(common::vectors(), "published RTMR0 values (no vectors directory)");
    for (name, vcpus, memory_mib) in [("canonical-defaults", 4, 2048), ("q35-with-hpet", 8, 4096)] {
        let dir = dir.join("calc").join(name);
        let expected = std::fs::read(dir.join("expected.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
        let tables = gunzip(&dir.join("acpi_tables.bin.gz"));
        let (loader, rsdp) = loader_and_rsdp(&tables);
        let digests = AcpiDigests {
            loader: Sha384Digest::of(&loader),
            rsdp: Sha384Digest::of(&rsdp),
            tables: Sha384Digest::of(&tables),
        };
        let registers = registers(&image(&ovmf), &shape(vcpus, memory_mib), &digests).unwrap();
        assert_eq!(registers.rtmr_0[0].value.to_string(), expected["rtmr0"].as_str().unwrap(), "{name}");
    }
}

fn gunzip(path: &Path) -> Vec<u8> {
    let output = Command::new("gzip").arg("-dc").arg(path).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// The two smaller files that QEMU makes for these tables: the loader's script and the RSDP
/// (`hw/i386/acpi-build.c`, `hw/acpi/bios-linker-loader.c`).
fn loader_and_rsdp(tables: &[u8]) -> (Vec<u8>, Vec<u8>) {
    const TABLES: &[u8] = b"etc/acpi/tables";
    const RSDP: &[u8] = b"etc/acpi/rsdp";
    let word = |at: usize| u32::from_le_bytes(tables[at..at + 4].try_into().unwrap());
    let entry = |command: u32, body: &[&[u8]]| {
        let mut entry = [&command.to_le_bytes()[..], &body.concat()].concat();
        entry.resize(128, 0);
        entry
    };
    let name = |file: &[u8]| [file, &[0; 56][file.len()..]].concat();
    let allocate = |file: &[u8], align: u32, zone: u8| entry(1, &[&name(file), &align.to_le_bytes(), &[zone]]);
    let pointer = |file: &[u8], at: usize, size: u8| {
        entry(2, &[&name(file), &name(TABLES), &u32::try_from(at).unwrap().to_le_bytes(), &[size]])
    };
    let checksum = |file: &[u8], at: u32, start: u32, len: u32| {
        entry(3, &[&name(file), &at.to_le_bytes(), &start.to_le_bytes(), &len.to_le_bytes()])
    };
    let mut loader = vec![allocate(RSDP, 16, 2), allocate(TABLES, 64, 1)];
    let (mut at, mut rsdt) = (0, 0);
    while tables[at..at + 4] != [0; 4] {
        let (start, len) = (u32::try_from(at).unwrap(), word(at + 4));
        match &tables[at..at + 4] {
            b"FACP" => {
                loader.extend([(36, 4), (40, 4), (140, 8)].map(|(field, size)| pointer(TABLES, at + field, size)))
            }
            b"RSDT" => {
                rsdt = start;
                loader
                    .extend((36..usize::try_from(len).unwrap()).step_by(4).map(|field| pointer(TABLES, at + field, 4)));
            }
            _ => {}
        }
        if &tables[at..at + 4] != b"FACS" {
            loader.push(checksum(TABLES, start + 9, start, len));
        }
        at += usize::try_from(len).unwrap();
    }
    loader.extend([pointer(RSDP, 16, 4), checksum(RSDP, 8, 0, 20)]);
    let mut loader = loader.concat();
    loader.resize(loader.len().next_multiple_of(4096), 0);
    let rsdp = [&b"RSD PTR \0BOCHS \0"[..], &rsdt.to_le_bytes()].concat();
    (loader, rsdp)
}
