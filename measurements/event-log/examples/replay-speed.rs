// SPDX-License-Identifier: Apache-2.0
//! Prints how many megabytes of log one core parses and replays in a second: `cargo run --release -p event-log
//! --example replay-speed [CCEL]`. Without a log it makes one of the shape that a direct boot leaves.

use std::{hint::black_box, time::Instant};

use event_log::{EventLog, Indexing, replay};

fn main() {
    let bytes = match std::env::args_os().nth(1).map(std::fs::read) {
        Some(Ok(bytes)) => bytes,
        Some(Err(error)) => return eprintln!("cannot read the log: {error}"),
        None => made(),
    };
    let mut rounds = 0_u32;
    let start = Instant::now();
    while start.elapsed().as_secs() < 2 {
        let Ok(log) = EventLog::parse(black_box(&bytes)) else { return eprintln!("the log is malformed") };
        black_box(replay(&log, Indexing::MeasurementRegister).is_ok());
        rounds = rounds.saturating_add(1);
    }
    let megabytes = f64::from(rounds) * f64::from(u32::try_from(bytes.len()).unwrap_or(u32::MAX)) / 1e6;
    println!("{:.0} MB/s ({} bytes of log)", megabytes / start.elapsed().as_secs_f64(), bytes.len());
}

/// 4,000 events with 40 bytes of data each.
fn made() -> Vec<u8> {
    let mut bytes = [&1_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), &[0; 20], &33_u32.to_le_bytes()].concat();
    bytes.extend(b"Spec ID Event03\0");
    bytes.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0xc, 0, 48, 0, 0]);
    for index in 0..4000_u32 {
        let numbers = [index % 3 + 1, 6, 1].map(u32::to_le_bytes).concat();
        bytes.extend([&numbers[..], &[0xc, 0], &[7; 48], &40_u32.to_le_bytes(), &[0x41; 40]].concat());
    }
    bytes
}
