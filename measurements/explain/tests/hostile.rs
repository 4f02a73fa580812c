// SPDX-License-Identifier: Apache-2.0
//! Arbitrary logs and quotes: explained or refused, never a panic, and in bounded size.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    dead_code,
    reason = "tests fail loudly"
)]

mod world;

use event_log::{EventLog, Indexing};
use explain::{FirmwareLog, Input, Knowledge, Reference, Runtime, Standing, explain};
use proptest::prelude::*;
use types::{EventName, Registers, RuntimeEvent, Sha384Digest};
use world::{Guest, Logged, Question, all_acpi, image, shape};

fn any_event() -> impl Strategy<Value = Logged> {
    let kinds = prop_oneof![
        Just(4_u32),
        Just(6),
        Just(0xa),
        Just(0xd),
        0x8000_0001_u32..0x8000_000d,
        Just(0x8000_00e0),
        any::<u32>()
    ];
    let register = prop_oneof![
        Just(types::RegisterName::Rtmr0),
        Just(types::RegisterName::Rtmr1),
        Just(types::RegisterName::Rtmr2),
        Just(types::RegisterName::Rtmr3)
    ];
    (register, kinds, any::<[u8; 4]>(), proptest::collection::vec(any::<u8>(), 0..80)).prop_map(
        |(register, event_type, seed, data)| Logged { register, event_type, digest: Sha384Digest::of(&seed), data },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_log_and_any_quote_are_explained(
        events in proptest::collection::vec(any_event(), 0..40),
        noise in any::<[u8; 8]>(),
        replays in any::<bool>(),
        runtime in proptest::collection::vec(0_usize..11, 0..16),
    ) {
        let mut guest = Guest::new(&image(), &shape(|_| ()));
        guest.events = events;
        guest.runtime =
            runtime.iter().map(|at| RuntimeEvent::new(EventName::ALL[*at], &noise).unwrap()).collect();
        if replays {
            guest.measure();
        } else {
            guest.registers.rtmr_0 = Sha384Digest::of(&noise);
            guest.registers.rtmr_2 = Sha384Digest::of(&noise);
        }
        let explanation = Question::new(&guest).ask();
        prop_assert!(!explanation.matches);
        let text = serde_json::to_string(&explanation).unwrap();
        prop_assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "labels are escaped");
    }
}

#[test]
fn a_log_of_four_thousand_events_stays_small() {
    let mut guest = Guest::new(&image(), &shape(|_| ()));
    let event = guest.events[0].clone();
    guest.events.extend(std::iter::repeat_n(event, 4000));
    guest.measure();
    let explanation = Question::new(&guest).ask();
    let rtmr_0 = explanation.register(types::RegisterName::Rtmr0).unwrap();
    assert_eq!((rtmr_0.events.len(), rtmr_0.events_left_out), (256, 4013 - 256));
    assert!(serde_json::to_vec(&explanation).unwrap().len() < 400_000);
}

#[test]
fn a_log_that_cannot_be_replayed_is_a_finding() {
    let guest = Guest::new(&image(), &shape(|_| ()));
    let mut bytes = guest.log();
    let at = bytes.len() - 4 - 48 - 2 - 12 - guest.events.last().unwrap().data.len();
    bytes[at] = 9;
    let log = EventLog::parse(&bytes).unwrap();
    let image = image();
    let explanation = explain(&Input {
        registers: &guest.registers,
        quote: Standing::Verified,
        reference: Reference { standing: Standing::Verified, image: &image, acpi: &all_acpi(), shapes: &[] },
        shape: Some(&shape(|_| ())),
        log: Some(FirmwareLog { log: &log, indexing: Indexing::MeasurementRegister }),
        runtime: None,
        configuration: None,
        knowledge: Knowledge::default(),
    });
    assert_eq!(explanation.findings[0].code, "log_unusable");
    assert!(explanation.findings[0].detail.contains("index 9"));
}

#[test]
fn nothing_known_is_nothing_claimed() {
    let zero = Sha384Digest::ZERO;
    let registers = Registers {
        mr_td: zero,
        rtmr_0: Sha384Digest::of(b"x"),
        rtmr_1: zero,
        rtmr_2: zero,
        rtmr_3: zero,
        mr_config_id: zero,
        mr_owner: zero,
        mr_owner_config: zero,
    };
    let image = image();
    let explanation = explain(&Input {
        registers: &registers,
        quote: Standing::Unverified,
        reference: Reference { standing: Standing::Unverified, image: &image, acpi: &[], shapes: &[] },
        shape: None,
        log: None,
        runtime: Some(Runtime { claimed: &[], expected: &[] }),
        configuration: None,
        knowledge: Knowledge::default(),
    });
    assert!(!explanation.matches);
    assert_eq!(explanation.shape, None);
    assert!(explanation.limits.len() >= 5);
}
