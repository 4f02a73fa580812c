// SPDX-License-Identifier: Apache-2.0
//! Modes against the model of a device: golden traces, what is in force after a reset, and devices that misbehave.
//!
//! The golden traces were compared, write by write, with what NVIDIA's own tool does to the same model. They are equal, but
//! for a question at its beginning whose answer the tool only shows, and for `off` on Hopper, which here ends Protected
//! PCIe, too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::time::Duration;

use gpu_mode::{
    AccessError, CcState, Chip, Knob, Mode, ModeError, Reading, RegisterSpace, Rehearsal, knob_steps, planned, query,
    set, verify,
};

const CHIPS: [Chip; 4] = [Chip::Hopper, Chip::Blackwell100, Chip::Blackwell200, Chip::NvSwitch3];
const MODES: [Mode; 4] = [Mode::Off, Mode::On, Mode::DevTools, Mode::Ppcie];

#[test]
fn traces_are_golden() {
    for (chip, mode, golden) in [
        (Chip::Hopper, Mode::On, include_str!("golden/hopper-on.trace")),
        (Chip::Hopper, Mode::DevTools, include_str!("golden/hopper-devtools.trace")),
        (Chip::Hopper, Mode::Off, include_str!("golden/hopper-off.trace")),
        (Chip::Hopper, Mode::Ppcie, include_str!("golden/hopper-ppcie.trace")),
        (Chip::Blackwell100, Mode::On, include_str!("golden/blackwell100-on.trace")),
        (Chip::Blackwell200, Mode::Off, include_str!("golden/blackwell200-off.trace")),
        (Chip::NvSwitch3, Mode::Ppcie, include_str!("golden/nvswitch3-ppcie.trace")),
        (Chip::NvSwitch3, Mode::Off, include_str!("golden/nvswitch3-off.trace")),
    ] {
        let trace = planned(chip, mode).unwrap();
        let lines: Vec<String> = trace.iter().map(ToString::to_string).collect();
        let expected: Vec<&str> = golden.lines().collect();
        for (number, (found, wanted)) in lines.iter().zip(&expected).enumerate() {
            assert_eq!(found, wanted, "{chip:?} {mode}, line {}", number + 1);
        }
        assert_eq!(lines.len(), expected.len(), "{chip:?} {mode}");
    }
}

#[test]
fn every_mode_is_in_force_after_a_reset_and_not_before() {
    for chip in CHIPS {
        for before in MODES {
            for mode in MODES {
                let mut device = Rehearsal::new(chip);
                if knob_steps(chip, before).is_err() {
                    assert_eq!(planned(chip, before), Err(ModeError::Unsupported { chip, mode: before }));
                    continue;
                }
                set(&mut device, chip, before).unwrap();
                device.reset();
                if knob_steps(chip, mode).is_err() {
                    assert_eq!(set(&mut device, chip, mode), Err(ModeError::Unsupported { chip, mode }));
                    continue;
                }
                let changed = set(&mut device, chip, mode).unwrap();
                assert_eq!(changed.is_empty(), mode == before, "{chip:?} {before} to {mode}");
                assert_eq!(query(&mut device, chip).unwrap().mode(), Some(before));
                device.reset();
                assert_eq!(verify(&mut device, chip, mode).unwrap().mode(), Some(mode));
                assert!(set(&mut device, chip, mode).unwrap().is_empty(), "nothing is left to change");
            }
        }
    }
}

#[test]
fn a_mode_that_did_not_take_is_named() {
    let mut device = Rehearsal::new(Chip::Hopper);
    set(&mut device, Chip::Hopper, Mode::Off).unwrap();
    device.reset();
    set(&mut device, Chip::Hopper, Mode::On).unwrap();
    let found = Reading { cc: CcState::Off, ppcie: Some(false) };
    assert_eq!(verify(&mut device, Chip::Hopper, Mode::On), Err(ModeError::NotInForce { wanted: Mode::On, found }));
}

#[test]
fn tools_for_development_are_never_on_alone() {
    for chip in [Chip::Hopper, Chip::Blackwell100, Chip::Blackwell200] {
        for mode in MODES {
            let Ok(steps) = knob_steps(chip, mode) else { continue };
            let cc = steps.iter().position(|step| step.knob == Knob::Cc).unwrap();
            let tools = steps.iter().position(|step| step.knob == Knob::DevTools).unwrap();
            let goes_on = matches!(mode, Mode::On | Mode::DevTools);
            assert_eq!(cc < tools, goes_on, "{chip:?} {mode}");
        }
    }
    let mut device = Rehearsal::new(Chip::Hopper);
    device.set_register(0x11_82cc, 0b10);
    let reading = query(&mut device, Chip::Hopper).unwrap();
    assert_eq!((reading.cc, reading.mode()), (CcState::Invalid, None));
    device.set_register(0x11_82cc, 0b10_0001);
    assert_eq!(query(&mut device, Chip::Hopper).unwrap().mode(), None, "both modes at once are none");
}

#[test]
fn firmware_without_ppcie_does_without_it_on_a_gpu_only() {
    let mut device = Rehearsal::new(Chip::Hopper);
    device.set_knob(Knob::Ppcie, None);
    let changed = set(&mut device, Chip::Hopper, Mode::On).unwrap();
    assert!(changed.iter().all(|step| step.knob != Knob::Ppcie));
    device.reset();
    assert_eq!(query(&mut device, Chip::Hopper).unwrap().mode(), Some(Mode::On));
    assert_eq!(set(&mut device, Chip::Hopper, Mode::Ppcie), Err(ModeError::Firmware { status: 0x1e3 }));
    let mut switch = Rehearsal::new(Chip::NvSwitch3);
    switch.set_knob(Knob::Ppcie, None);
    assert_eq!(set(&mut switch, Chip::NvSwitch3, Mode::Off), Err(ModeError::Firmware { status: 0x1e3 }));
    let mut other = Rehearsal::new(Chip::Hopper);
    other.set_knob(Knob::Cc, None);
    assert_eq!(set(&mut other, Chip::Hopper, Mode::On), Err(ModeError::Firmware { status: 0x1e3 }));
}

#[test]
fn devices_that_do_not_start_or_refuse_are_named() {
    let mut asleep = Rehearsal::new(Chip::Hopper);
    asleep.set_register(0x2_00bc, 0xffff_ffff);
    let not_started = ModeError::NotStarted { offset: 0x2_00bc, value: 0xffff_ffff };
    assert_eq!(query(&mut asleep, Chip::Hopper), Err(not_started.clone()));
    assert_eq!(set(&mut asleep, Chip::Hopper, Mode::On), Err(not_started));
    let mut guarded = Rehearsal::new(Chip::Hopper);
    guarded.set_register(0x11_82cc, 0xbadf_5040);
    let refused = ModeError::Refused { offset: 0x11_82cc, value: 0xbadf_5040 };
    assert_eq!(query(&mut guarded, Chip::Hopper), Err(refused));
}

#[test]
fn a_queue_that_somebody_left_filled_is_emptied_first() {
    let mut device = Rehearsal::new(Chip::Hopper);
    device.set_register(0x8f_2c94, 0x820);
    set(&mut device, Chip::Hopper, Mode::On).unwrap();
    device.reset();
    assert_eq!(query(&mut device, Chip::Hopper).unwrap().mode(), Some(Mode::On));
}

/// A device whose reads of one register are falsified after so many.
struct Liar {
    device: Rehearsal,
    register: u32,
    value: u32,
    after: usize,
}

impl RegisterSpace for Liar {
    fn read(&mut self, offset: u32) -> Result<u32, AccessError> {
        let value = self.device.read(offset)?;
        if offset != self.register {
            return Ok(value);
        }
        if self.after == 0 {
            return Ok(self.value);
        }
        self.after -= 1;
        Ok(value)
    }

    fn write(&mut self, offset: u32, value: u32) -> Result<(), AccessError> {
        self.device.write(offset, value)
    }

    fn pause(&mut self, time: Duration) {
        self.device.pause(time);
    }
}

fn lie(chip: Chip, register: u32, value: u32, after: usize) -> ModeError {
    let device = Rehearsal::new(chip);
    set(&mut Liar { device, register, value, after }, chip, Mode::On).unwrap_err()
}

#[test]
fn answers_that_make_no_sense_are_refused() {
    let hopper = |register, value, after| lie(Chip::Hopper, register, value, after);
    // The queue of answers: never filled, too long, not a multiple of four, backwards.
    assert_eq!(hopper(0x8f_2c94, 0x800, 1), ModeError::Silent { what: "an answer" });
    assert_eq!(hopper(0x8f_2c94, 0x800 + 1024, 1), ModeError::Queue { head: 0x800, tail: 0xc00 });
    assert_eq!(hopper(0x8f_2c94, 0x802, 1), ModeError::Queue { head: 0x800, tail: 0x802 });
    assert_eq!(hopper(0x8f_2c94, 0x4, 1), ModeError::Queue { head: 0x800, tail: 4 });
    assert_eq!(hopper(0x8f_2c94, 0xffff_fffc, 1), ModeError::Queue { head: 0x800, tail: 0xffff_fffc });
    // The queue of questions never empties.
    assert_eq!(hopper(0x8f_2c14, 0x808, 1), ModeError::Silent { what: "an empty queue" });
    // The answer's words: all are the same, so that type and question are wrong.
    assert_eq!(hopper(0x8f_2ad4, 0, 0), ModeError::Answer { words: 6 });
    assert_eq!(hopper(0x8f_2ad4, 0x1510_de7e, 0), ModeError::Answer { words: 6 });
    // The type is right, the rest is another's answer.
    assert_eq!(hopper(0x8f_2ad4, 0x14, 3), ModeError::Answer { words: 6 });
    assert_eq!(hopper(0x8f_2ad4, 0x13, 4), ModeError::Firmware { status: 0x13 });
    // Blackwell's mailboxes: a fault at once, no room, a fault instead of an answer, an endless answer.
    let blackwell = |register, value, after| lie(Chip::Blackwell100, register, value, after);
    let (from, to) = (0x8f_1f04, 0x8f_1f84);
    assert_eq!(blackwell(to, 1 << 25, 0), ModeError::Mailbox { offset: to, value: 1 << 25 });
    assert_eq!(blackwell(to, 0, 0), ModeError::Silent { what: "a free mailbox" });
    assert_eq!(blackwell(to, 1 << 24, 0), ModeError::Silent { what: "credits" });
    assert_eq!(blackwell(from, 0, 0), ModeError::Silent { what: "an answer" });
    assert_eq!(blackwell(from, 1 << 25, 0), ModeError::Mailbox { offset: from, value: 1 << 25 });
    assert_eq!(blackwell(from, 0x010f_ffff, 0), ModeError::Queue { head: 0, tail: 0xf_ffff });
    assert_eq!(blackwell(from, 0x0100_0004, 0), ModeError::Answer { words: 1 });
}
