// SPDX-License-Identifier: Apache-2.0
//! Logs that lie: refused by rule and offset, in bounded memory and time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use event_log::{EventLog, Indexing, LogError, MAX_LOG_LEN, ReplayError, replay};
use proptest::prelude::*;
use tdx_spec::ReadError;

fn header() -> Vec<u8> {
    let mut bytes = [&1_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), &[0; 20], &33_u32.to_le_bytes()].concat();
    bytes.extend(b"Spec ID Event03\0");
    bytes.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0xc, 0, 48, 0, 0]);
    bytes
}

fn event(index: u32, event_type: u32, claimed_len: u32, data: &[u8]) -> Vec<u8> {
    let numbers = [index, event_type, 1].map(u32::to_le_bytes).concat();
    [&numbers[..], &[0xc, 0], &[7; 48], &claimed_len.to_le_bytes(), data].concat()
}

fn with(events: &[u8]) -> Vec<u8> {
    [&header()[..], events].concat()
}

#[test]
fn an_event_that_claims_more_than_there_is_names_its_offset() {
    let start = header().len();
    for claimed in [5, 0x7fff_ffff, u32::MAX] {
        let bytes = with(&event(1, 4, claimed, &[0; 4]));
        let error = EventLog::parse(&bytes).unwrap_err();
        let LogError::Read(ReadError::Truncated { field, offset, left, .. }) = error else { panic!("{error}") };
        assert_eq!((field, offset, left), ("event", start + 66, 4));
    }
}

#[test]
fn a_log_of_too_many_events_is_refused_and_the_most_is_read() {
    let one = event(1, 4, 0, &[]);
    assert_eq!(EventLog::parse(&with(&one.repeat(4096))).unwrap().events.len(), 4096);
    assert_eq!(EventLog::parse(&with(&one.repeat(4097))), Err(LogError::TooManyEvents));
    let full = with(&one.repeat(MAX_LOG_LEN / one.len() + 1));
    assert_eq!(EventLog::parse(&full), Err(LogError::TooLarge(full.len())));
}

#[test]
fn an_event_as_large_as_the_log_is_not_copied() {
    let data = vec![0x5a; MAX_LOG_LEN - header().len() - 66];
    let bytes = with(&event(1, 4, u32::try_from(data.len()).unwrap(), &data));
    let log = EventLog::parse(&bytes).unwrap();
    assert!(bytes.as_ptr_range().contains(&log.events[0].data.as_ptr()));
}

#[test]
fn a_log_inside_of_an_event_is_only_data() {
    let inner = with(&event(2, 4, 0, &[]));
    let bytes = with(&event(1, 0x6, u32::try_from(inner.len()).unwrap(), &inner));
    let log = EventLog::parse(&bytes).unwrap();
    assert_eq!((log.events.len(), log.events[0].index), (1, 1));
}

#[test]
fn a_second_header_or_other_registers_cannot_be_replayed() {
    let again = with(&[event(1, 4, 0, &[]), header()].concat());
    assert!(EventLog::parse(&again).is_err(), "a header is no event of the new format");
    let bytes = with(&event(9, 4, 0, &[]));
    let log = EventLog::parse(&bytes).unwrap();
    assert_eq!(replay(&log, Indexing::MeasurementRegister), Err(ReplayError::Index { event: 0, index: 9 }));
}

#[test]
fn vendor_information_and_algorithms_may_not_overrun_the_header() {
    let at = |offset: usize, value: u8| {
        let mut bytes = header();
        bytes[offset] = value;
        EventLog::parse(&bytes).unwrap_err()
    };
    assert!(matches!(at(64, 1), LogError::Read(ReadError::Truncated { .. })), "vendor information");
    assert!(matches!(at(56, 2), LogError::Read(ReadError::Truncated { .. })), "a second algorithm");
    assert!(matches!(at(56, 9), LogError::Header(_)), "nine algorithms");
    assert!(matches!(at(28, 34), LogError::Read(ReadError::Truncated { .. })), "a longer header");
    assert!(matches!(at(28, 32), LogError::Read(_)), "a shorter header");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn labels_of_arbitrary_events_are_short_and_printable(
        event_type in prop_oneof![0_u32..0x12, 0x8000_0000_u32..0x8000_0010, Just(0x8000_00e0_u32), any::<u32>()],
        data in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let bytes = with(&event(1, event_type, u32::try_from(data.len()).unwrap(), &data));
        if let Ok(log) = EventLog::parse(&bytes) {
            for event in &log.events {
                let text = event.label().text;
                prop_assert!(text.len() <= event_log::MAX_LABEL);
                prop_assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
                let _ = (event.binding(), event.command_line());
            }
        }
    }
}
