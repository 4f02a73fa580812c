// SPDX-License-Identifier: Apache-2.0
//! Explanations of quotes that do not match: from any log, events and command line, bounded and never a match that is none.

use std::sync::OnceLock;

use calculator::ImageMeasurements;
use event_log::{EventLog, Indexing};
use explain::{FirmwareLog, Input, Knowledge, Reference, Runtime, Standing, explain};
use sample_release::Hardware;
use types::{EventName, MachineShape, RegisterName, Registers, RuntimeEvent, Sha384Digest};

use crate::seeds;

/// A byte of choices, a byte for the register that differs, the length of a command line and the line, then a
/// firmware's log.
pub fn explanation(bytes: &[u8]) -> bool {
    let [choices, register, len, rest @ ..] = bytes else { return false };
    let Some((line, log)) = rest.split_at_checked(usize::from(*len)) else { return false };
    let Ok(line) = std::str::from_utf8(line) else { return false };
    let good = good();
    let mut registers = good.registers.clone();
    let differs = choices & 1 != 0;
    if differs {
        set(&mut registers, *register);
    }
    let parsed = EventLog::parse(log).ok();
    let indexing = if choices & 2 == 0 { Indexing::MeasurementRegister } else { Indexing::Pcr };
    let claimed: Vec<RuntimeEvent> = EventName::ALL
        .iter()
        .take(usize::from(choices >> 4))
        .filter_map(|name| Some(RuntimeEvent { name: *name, payload: types::Base64::new(line.into())? }))
        .collect();
    let command_lines = [line.to_owned()];
    let input = Input {
        registers: &registers,
        quote: Standing::Verified,
        reference: Reference { standing: Standing::Verified, image: &good.image, acpi: &[], shapes: &good.shapes },
        shape: (choices & 4 == 0).then_some(&good.shapes[0]),
        log: parsed.as_ref().map(|log| FirmwareLog { log, indexing }),
        runtime: (choices & 8 != 0).then_some(Runtime { claimed: &claimed, expected: &[] }),
        configuration: Some(line.as_bytes()),
        knowledge: Knowledge { command_lines: &command_lines, ..Knowledge::default() },
    };
    let explanation = explain(&input);
    let written = serde_json::to_vec(&explanation).expect("an explanation is JSON");
    assert!(written.len() <= MAX_EXPLANATION + 16 * bytes.len(), "an explanation of {} bytes", written.len());
    assert_eq!(explanation.registers.len(), RegisterName::ALL.len(), "every register once");
    if differs {
        assert!(!explanation.matches && !explanation.reasons().is_empty(), "a difference that is not told");
    }
    parsed.is_some()
}

struct Good {
    image: ImageMeasurements,
    shapes: Vec<MachineShape>,
    registers: Registers,
}

fn good() -> &'static Good {
    static GOOD: OnceLock<Good> = OnceLock::new();
    GOOD.get_or_init(|| {
        let shapes = vec![seeds::machine()];
        let statement = sample_release::statement(Hardware::Tdx, &shapes, seeds::NOW);
        let registers = sample_release::registers(&statement.predicate, &shapes[0], Sha384Digest::of(b"config"));
        Good { image: sample_release::image(), shapes, registers }
    })
}

/// Another value than any that is known.
fn set(registers: &mut Registers, which: u8) {
    let other = Sha384Digest::of(b"nobody measured this");
    match which % 4 {
        0 => registers.mr_td = other,
        1 => registers.rtmr_0 = other,
        2 => registers.rtmr_1 = other,
        _ => registers.rtmr_2 = other,
    }
}

const MAX_EXPLANATION: usize = 512 * 1024;
