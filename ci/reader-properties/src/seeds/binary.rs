// SPDX-License-Identifier: Apache-2.0
//! Quotes, logs, kernels and firmware, as small as their readers allow.

use super::Seed;

pub(super) fn all() -> Vec<Seed> {
    let seed = |target, name, bytes| Seed { target, name, bytes };
    vec![
        seed("quote", "version-4", quote(4, None)),
        seed("quote", "version-5-tdx-1.0", quote(5, Some((2, 584)))),
        seed("quote", "version-5-tdx-1.5", quote(5, Some((3, 648)))),
        seed("quote", "version-5-extended", quote(5, Some((4, 885)))),
        seed("quote", "td-report", td_report()),
        seed("event_log", "ccel", log(false)),
        seed("event_log", "tcg2", log(true)),
        seed("kernel", "plain", kernel(0)),
        seed("kernel", "signed", kernel(8)),
        seed("firmware", "two-volumes", firmware()),
    ]
}

/// The logs of the target `event_log`.
pub(super) fn log(tcg2: bool) -> Vec<u8> {
    if tcg2 { event_log(&[(0xb, 32), (0xc, 48)], &[1, 4, 7, 8]) } else { event_log(&[(0xc, 48)], &[1, 2, 3, 4, 1]) }
}

/// `len` bytes that differ by position.
fn pattern(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

fn quote(version: u8, described: Option<(u16, u32)>) -> Vec<u8> {
    let mut bytes = pattern(48);
    bytes.splice(..8, [version, 0, 2, 0, 0x81, 0, 0, 0]);
    if let Some((kind, size)) = described {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(size.to_le_bytes());
    }
    bytes.extend(pattern(described.map_or(584, |(_, size)| usize::try_from(size).unwrap_or(0))));
    bytes.extend([3, 0, 0, 0, b's', b'i', b'g']);
    bytes
}

fn td_report() -> Vec<u8> {
    let mut bytes = pattern(1024);
    bytes.splice(..4, [0x81, 0, 1, 0]);
    bytes
}

fn event_log(algorithms: &[(u16, u16)], indexes: &[u32]) -> Vec<u8> {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    let mut header = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02".to_vec();
    header.extend(count(algorithms.len()));
    for (algorithm, size) in algorithms {
        header.extend([algorithm.to_le_bytes(), size.to_le_bytes()].concat());
    }
    header.push(0);
    let mut log = [[0, 0, 0, 0, 3, 0, 0, 0].as_slice(), &[0; 20], &count(header.len()), &header].concat();
    for (number, index) in indexes.iter().enumerate() {
        let (event_type, data) = EVENTS[number % EVENTS.len()];
        log.extend([index.to_le_bytes(), u32::to_le_bytes(event_type), count(algorithms.len())].concat());
        for (algorithm, size) in algorithms {
            log.extend(algorithm.to_le_bytes());
            log.extend(pattern(usize::from(*size)));
        }
        log.extend(count(data.len()));
        log.extend(data);
    }
    log.extend([0xff; 32]);
    log
}

/// A PE32+ image with two sections that is also a bzImage, as far as readers look.
fn kernel(certificates: u8) -> Vec<u8> {
    let mut pe = vec![0_u8; 0x300];
    let mut put = |at: usize, bytes: &[u8]| drop(pe.splice(at..at + bytes.len(), bytes.iter().copied()));
    put(0, b"MZ");
    put(0x3c, &[0x40]);
    put(0x40, b"PE\0\0");
    put(0x46, &[2]);
    put(0x54, &[0xf0]);
    put(0x58, &0x20b_u16.to_le_bytes());
    put(0x58 + 60, &0x300_u32.to_le_bytes());
    put(0x58 + 64, &[0xcc; 4]);
    put(0x58 + 108, &[16]);
    put(0x58 + 112 + 36, &[certificates]);
    for (index, (start, len)) in [(0x380_u32, 0x40_u32), (0x300, 0x80)].into_iter().enumerate() {
        let at = 0x58 + 0xf0 + 40 * index;
        put(at + 16, &len.to_le_bytes());
        put(at + 20, &start.to_le_bytes());
    }
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &[3]);
    pe.extend(pattern(0xc0 + 13));
    pe
}

/// A configuration volume with an empty variable store and a page of code, with the metadata of a TDVF behind them.
fn firmware() -> Vec<u8> {
    let mut file = vec![0_u8; 0x1000];
    let mut put = |at: usize, bytes: &[u8]| drop(file.splice(at..at + bytes.len(), bytes.iter().copied()));
    put(40, b"_FVH");
    put(48, &[72]);
    put(72, &AUTHENTICATED_VARIABLES);
    put(88, &100_u32.to_le_bytes());
    put(92, &[0x5a, 0xfe]);
    put(100, &[0xff; 72]);
    file.extend(pattern(0x1000));
    let descriptor = file.len();
    let sections: [(u32, u32, u64, u64, u32, u32); 4] = [
        (0x1000, 0x1000, 0xffff_f000, 0x1000, 0, 1),
        (0, 0x1000, 0xffff_e000, 0x1000, 1, 0),
        (0, 0, 0x80_9000, 0x2000, 2, 0),
        (0, 0, 0x80_b000, 0x1000, 3, 0),
    ];
    file.extend([b"TDVF".as_slice(), &144_u32.to_le_bytes(), &1_u32.to_le_bytes(), &4_u32.to_le_bytes()].concat());
    for (raw, raw_len, address, len, kind, attributes) in sections {
        let (raw, memory) = ([raw, raw_len].map(u32::to_le_bytes), [address, len].map(u64::to_le_bytes));
        let tail = [kind, attributes].map(u32::to_le_bytes);
        file.extend([raw.as_flattened(), memory.as_flattened(), tail.as_flattened()].concat());
    }
    let from_end = u32::try_from(file.len() - descriptor + 22 + 18 + 32).unwrap_or(0);
    file.extend([from_end.to_le_bytes().as_slice(), &22_u16.to_le_bytes(), &METADATA_OFFSET_GUID].concat());
    file.extend([40_u16.to_le_bytes().as_slice(), &TABLE_FOOTER_GUID, &[0x90; 32]].concat());
    file
}

/// Events whose data a reader puts into words: separator, action, EFI variable, command line, firmware blob.
const EVENTS: [(u32, &[u8]); 5] = [
    (4, &[0, 0, 0, 0]),
    (0x8000_0007, b"Calling EFI Application from Boot Option"),
    (0x8000_0001, VARIABLE),
    (6, b"\x18\xbc\xe5\xec\x10\0\0\0LOADED_IMAGE::LoadOptions\0c\0o\0n\0s\0o\0l\0e\0\0\0"),
    (0x8000_000a, b"\x03CFV\0\0\xc0\xff\0\0\0\0\0\x40\x08\0\0\0\0\0"),
];
/// `UEFI_VARIABLE_DATA`: vendor, name length 10, data length 1, "SecureBoot", one byte.
const VARIABLE: &[u8] = b"\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c\
    \x0a\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0S\0e\0c\0u\0r\0e\0B\0o\0o\0t\0\0";
/// As in `tdx_spec::tdvf`, written down again so that a typing error there is seen.
const METADATA_OFFSET_GUID: [u8; 16] =
    [0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2];
const TABLE_FOOTER_GUID: [u8; 16] =
    [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d];
const AUTHENTICATED_VARIABLES: [u8; 16] =
    [0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92];
