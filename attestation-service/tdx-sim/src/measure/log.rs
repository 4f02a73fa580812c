// SPDX-License-Identifier: Apache-2.0
//! The event log in memory (CCEL): TCG's crypto-agile format with SHA-384 alone (TCG PC Client Platform Firmware
//! Profile, section 10.2; UEFI 2.10, section 38).

use super::BootEvent;

/// The header and the events.
pub(super) fn write(events: &[BootEvent]) -> Vec<u8> {
    let mut out = header();
    for BootEvent { rtmr, kind, digest, data } in events {
        out.extend((rtmr + 1).to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend(1_u32.to_le_bytes());
        out.extend(ALGORITHM_SHA384.to_le_bytes());
        out.extend(digest.as_bytes());
        out.extend((data.len() as u32).to_le_bytes());
        out.extend(data);
    }
    out
}

/// The log area of OVMF: 64 KiB, filled up with 0xFF.
pub(super) fn fill_up(mut log: Vec<u8>) -> Vec<u8> {
    if log.len() < AREA {
        log.resize(AREA, 0xff);
    }
    log
}

/// The first entry: which algorithms the others use.
fn header() -> Vec<u8> {
    let mut event = b"Spec ID Event03\0".to_vec();
    event.extend([0; 4]); // platform class
    event.extend([0, 2, 0, 2]); // version 2.0, errata 0, size of UINTN
    event.extend(1_u32.to_le_bytes());
    event.extend(ALGORITHM_SHA384.to_le_bytes());
    event.extend(48_u16.to_le_bytes());
    event.push(0); // no vendor information
    let mut out = 1_u32.to_le_bytes().to_vec();
    out.extend(EV_NO_ACTION.to_le_bytes());
    out.extend([0; 20]);
    out.extend((event.len() as u32).to_le_bytes());
    out.extend(event);
    out
}

const AREA: usize = 64 * 1024;
const EV_NO_ACTION: u32 = 3;
const ALGORITHM_SHA384: u16 = 0xc;
