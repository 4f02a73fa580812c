// SPDX-License-Identifier: Apache-2.0
//! Against logs that hardware wrote: `ccel/trustee_ovmf_2gib_ccel.bin` and the 64 GiB log of the shared vectors.

use std::path::PathBuf;
use std::slice::from_ref;

use super::*;

const GIB: u64 = 1 << 30;

#[test]
fn hand_off_blocks_are_those_of_hardware_logs() {
    let image = image(older_sections);
    let firmware = tdvf::Firmware::parse(&image).unwrap();
    let digest = |ram: &[std::ops::Range<u64>]| Sha384Digest::of(&firmware.hand_off_block(ram).unwrap()).to_string();
    assert!(digest(from_ref(&(0..2 * GIB))).starts_with("0b8772e5b0b41b83e6044a6839"));
    assert!(digest(&[0..2 * GIB, 4 * GIB..66 * GIB]).starts_with("8ae1e425351df799"));
    assert!(firmware.hand_off_block(from_ref(&(0..1 << 20))).is_err());
}

#[test]
fn the_log_has_the_form_of_a_hardware_log() {
    let Some(hardware) = vector("ccel/trustee_ovmf_2gib_ccel.bin") else { return };
    let image = image(older_sections);
    let blob = |byte| vec![byte; 8];
    let served = Served {
        kernel: kernel(),
        initrd: vec![1],
        command_line: b"quiet".to_vec(),
        loader: blob(1),
        blobs: vec![blob(2), blob(3)],
        ram: std::iter::once(0..2 * GIB).collect(),
    };
    let ours = measure_served(&image, &served).unwrap().event_log();
    assert_eq!(ours.len(), 64 * 1024);
    let (header, ours) = entries(&ours);
    let (hardware_header, hardware) = entries(&hardware);
    assert_eq!(header, hardware_header);
    assert_eq!(ours.len(), hardware.len());
    for (index, (ours, theirs)) in ours.iter().zip(&hardware).enumerate() {
        assert_eq!(ours.kind, theirs.kind, "event {index}");
        // The separator before the boot loader went to RTMR0 in older firmware.
        assert_eq!(ours.register, if index == 15 { 2 } else { theirs.register }, "event {index}");
        // Address and size of the kernel differ.
        let skip = if index == 11 { 16 } else { 0 };
        assert_eq!(ours.data[skip..], theirs.data[skip..], "event {index}");
        // The launch had other tables, kernel, command line, initrd and variable store.
        if ![1, 8, 9, 10, 11, 16, 17].contains(&index) {
            assert_eq!(ours.digest, theirs.digest, "event {index}");
        }
    }
}

#[test]
fn mr_td_follows_the_sections() {
    let base = tdvf::Firmware::parse(&image(|_| {})).unwrap().mr_td().unwrap();
    // A byte in the firmware volume is measured; one in the configuration volume is not (RTMR0 has it).
    assert_ne!(tdvf::Firmware::parse(&image(|i| i[0x9_0000] ^= 1)).unwrap().mr_td().unwrap(), base);
    assert_eq!(tdvf::Firmware::parse(&image(|i| i[0x2000] ^= 1)).unwrap().mr_td().unwrap(), base);
}

#[test]
fn bad_firmware_is_refused() {
    for (name, change) in [
        ("no table", (|i| i[4 * MIB - 0x30] ^= 1) as fn(&mut [u8])),
        ("other signature", |i| i[METADATA] ^= 1),
        ("too many sections", |i| i[METADATA + 12] = 65),
        ("unknown kind", |i| i[METADATA + 16 + 24] = 9),
        ("unknown attribute", |i| i[METADATA + 16 + 28] = 4),
        ("odd size", |i| i[METADATA + 16 + 16] = 1),
        ("outside of the image", |i| i[METADATA + 16 + 3] = 0x7f),
    ] {
        assert!(tdvf::Firmware::parse(&image(change)).is_err(), "{name}");
    }
    let enrolled = image(|i| i[0x48 + 28..0x48 + 30].copy_from_slice(&[0xaa, 0x55]));
    assert!(tdvf::Firmware::parse(&enrolled).unwrap().refuse_variables().is_err());
    assert!(tdvf::Firmware::parse(&[]).is_err());
}

#[test]
fn authenticode_leaves_out_checksum_and_certificates_only() {
    let base = pe::authenticode(&kernel()).unwrap();
    for (at, same) in [(0x40 + 24 + 64, true), (0x40 + 24 + 112 + 32, true), (2, false), (0x200, false), (0x3ff, false)]
    {
        let mut changed = kernel();
        changed[at] ^= if same && at > 0x90 { 0x10 } else { 1 };
        assert_eq!(pe::authenticode(&changed).unwrap() == base, same, "{at:#x}");
    }
    for end in [0, 0x40, 0x80, 0x300] {
        assert!(pe::authenticode(&kernel()[..end]).is_err(), "{end:#x}");
    }
}

/// With Debian 13's `OVMF.fd` and a bzImage: a whole launch, through QEMU.
#[test]
fn a_launch_is_measured() {
    let (Some(firmware), Some(kernel)) = (std::env::var("CHRYSALIS_OVMF").ok(), std::env::var("CHRYSALIS_KERNEL").ok())
    else {
        println!("SKIPPED: measuring a launch (CHRYSALIS_OVMF and CHRYSALIS_KERNEL are not set)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("initrd"), b"initrd").unwrap();
    let arguments = format!(
        "-M q35,memory-backend=mem0 -accel tcg -cpu max -m 512M -object memory-backend-memfd,id=mem0,size=512M,share=on \
         -smp 2 -nodefaults -no-user-config -no-reboot -display none -bios {firmware} -kernel {kernel} -initrd initrd \
         -append quiet -device virtio-rng-pci,disable-legacy=on,addr=0x2"
    );
    let arguments = arguments.split_whitespace().map(str::to_owned).collect();
    let launch = Launch::new("/usr/bin/qemu-system-x86_64".into(), arguments, dir.path().to_owned());
    let measured = measure(&launch).unwrap();
    let stub: Vec<_> = measured.events.iter().filter(|event| event.rtmr == 2).collect();
    let line: Vec<u8> = "quiet initrd=initrd\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(stub.len(), 2);
    assert_eq!(stub[0].digest, Sha384Digest::of(&line));
    assert_eq!(stub[1].digest, Sha384Digest::of(b"initrd"));
    assert_eq!(measured.events.iter().filter(|event| event.rtmr == 0).count(), 13);
    assert_eq!(measured.events.iter().filter(|event| event.rtmr == 1).count(), 5);
}

const MIB: usize = 1 << 20;
const METADATA: usize = 4 * MIB - 0x800;

/// An image with the sections of Debian 13's `OVMF.fd` and nothing in them.
fn image(change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut image = vec![0; 4 * MIB];
    image[0x28..0x2c].copy_from_slice(b"_FVH");
    image[0x30] = 0x48;
    image[0x48..0x58].copy_from_slice(&hex::decode("782cf3aa7b949a43a1802e144ec37792").unwrap());
    image[0x48 + 28..0x100].fill(0xff);
    let sections: [(u32, u32, u64, u64, u32, u32); 6] = [
        (0x8_4000, 0x37_c000, 0xffc8_4000, 0x37_c000, 0, 1),
        (0, 0x8_4000, 0xffc0_0000, 0x8_4000, 1, 0),
        (0, 0, 0x81_1000, 0xf000, 3, 0),
        (0, 0, 0x80_b000, 0x2000, 3, 0),
        (0, 0, 0x80_9000, 0x2000, 2, 0),
        (0, 0, 0x80_0000, 0x6000, 3, 0),
    ];
    let mut metadata = b"TDVF".to_vec();
    for word in [16 + 32 * 6, 1, 6_u32] {
        metadata.extend(word.to_le_bytes());
    }
    for (offset, raw, address, size, kind, attributes) in sections {
        metadata.extend([offset.to_le_bytes(), raw.to_le_bytes()].concat());
        metadata.extend([address.to_le_bytes(), size.to_le_bytes()].concat());
        metadata.extend([kind.to_le_bytes(), attributes.to_le_bytes()].concat());
    }
    image[METADATA..METADATA + metadata.len()].copy_from_slice(&metadata);
    let mut table = 0x800_u32.to_le_bytes().to_vec();
    table.extend([22, 0]);
    table.extend(hex::decode("35657ae44a989847865e4685a7bf8ec2").unwrap());
    table.extend([40, 0]);
    table.extend(hex::decode("de82b596b21ff745baeaa366c55a082d").unwrap());
    let end = 4 * MIB - 0x20;
    image[end - table.len()..end].copy_from_slice(&table);
    change(&mut image);
    image
}

/// The first section in memory as the firmware of the hardware logs had it: 0x810000, 0x10000 bytes.
fn older_sections(image: &mut [u8]) {
    let section = METADATA + 16 + 2 * 32;
    image[section + 8..section + 24]
        .copy_from_slice(&[0x81_0000_u64.to_le_bytes(), 0x1_0000_u64.to_le_bytes()].concat());
}

/// A PE32+ image with headers of 0x200 bytes and one section of 0x200.
fn kernel() -> Vec<u8> {
    let mut image = vec![0; 0x400];
    image[..2].copy_from_slice(b"MZ");
    image[0x3c] = 0x40;
    image[0x40..0x44].copy_from_slice(b"PE\0\0");
    image[0x46] = 1; // sections
    image[0x54] = 0xf0; // size of the optional header
    let optional = 0x40 + 24;
    image[optional..optional + 2].copy_from_slice(&[0x0b, 0x02]);
    image[optional + 61] = 2; // size of headers
    image[optional + 108] = 16; // data directories
    let section = optional + 0xf0;
    image[section + 17] = 2; // size of raw data
    image[section + 21] = 2; // its place
    image[0x200..].fill(7);
    image
}

struct Entry {
    register: u32,
    kind: u32,
    digest: Vec<u8>,
    data: Vec<u8>,
}

fn entries(log: &[u8]) -> (Vec<u8>, Vec<Entry>) {
    let word = |at: usize| u32::from_le_bytes(log[at..at + 4].try_into().unwrap());
    let mut at = 32 + word(28) as usize;
    let header = log[..at].to_vec();
    let mut entries = Vec::new();
    while word(at) != u32::MAX {
        let length = word(at + 62) as usize;
        entries.push(Entry {
            register: word(at),
            kind: word(at + 4),
            digest: log[at + 14..at + 62].to_vec(),
            data: log[at + 66..at + 66 + length].to_vec(),
        });
        at += 66 + length;
    }
    (header, entries)
}

fn vector(name: &str) -> Option<Vec<u8>> {
    let shared = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors");
    let path = std::env::var_os("CHRYSALIS_VECTORS").map_or(shared, PathBuf::from).join(name);
    let found = std::fs::read(&path).ok();
    if found.is_none() {
        println!("SKIPPED: {name} is not among the test vectors");
    }
    found
}
