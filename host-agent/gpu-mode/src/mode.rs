// SPDX-License-Identifier: Apache-2.0
//! Modes, and the knobs that make them.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::chip::Chip;
use crate::fsp::{Fsp, read, wait_for_boot};
use crate::registers::{Access, AccessError, RegisterSpace, Traced};
use crate::rehearsal::Rehearsal;

/// A mode that a device can be put into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// No protection.
    Off,
    /// Confidential computing of one GPU.
    On,
    /// Confidential computing with debugging and profiling: no protection of the guest's data. Guests refuse it.
    DevTools,
    /// Protected PCIe: all GPUs and NVSwitches of a board in one guest.
    Ppcie,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::On),
            "devtools" => Ok(Self::DevTools),
            "ppcie" => Ok(Self::Ppcie),
            _ => Err("the mode is one of off, on, devtools, ppcie".to_owned()),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::On => "on",
            Self::DevTools => "devtools",
            Self::Ppcie => "ppcie",
        })
    }
}

/// The confidential computing part of a mode register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CcState {
    /// Neither bit.
    Off,
    /// On.
    On,
    /// On, with tools for development.
    DevTools,
    /// Tools for development without confidential computing: set a mode anew.
    Invalid,
    /// The device has no such mode.
    None,
}

/// What mode is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// Confidential computing.
    pub cc: CcState,
    /// Protected PCIe; `None` where the device has no such mode.
    pub ppcie: Option<bool>,
}

impl Reading {
    /// The mode, if the two parts make one.
    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        match (self.cc, self.ppcie) {
            (CcState::Off | CcState::None, Some(true)) => Some(Mode::Ppcie),
            (CcState::Off | CcState::None, _) => Some(Mode::Off),
            (CcState::On, None | Some(false)) => Some(Mode::On),
            (CcState::DevTools, None | Some(false)) => Some(Mode::DevTools),
            _ => None,
        }
    }
}

/// A setting that the security processor keeps over resets. Numbers without a name are not explained by NVIDIA; its tools
/// turn them off before a mode goes on, and so do we.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Knob {
    /// Number 2.
    Number2,
    /// Number 4.
    Number4,
    /// Number 34.
    Number34,
    /// Tools for development in confidential computing mode.
    DevTools,
    /// Confidential computing mode.
    Cc,
    /// Keeps the host from the GPU's registers.
    Bar0Decoupler,
    /// Protected PCIe.
    Ppcie,
}

impl Knob {
    /// Its number in the firmware.
    #[must_use]
    pub fn id(self) -> u8 {
        match self {
            Self::Number2 => 2,
            Self::Number4 => 4,
            Self::DevTools => 6,
            Self::Cc => 8,
            Self::Bar0Decoupler => 10,
            Self::Number34 => 34,
            Self::Ppcie => 45,
        }
    }
}

/// One knob and the value that it shall have; it is written only if it has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct KnobStep {
    /// Which.
    pub knob: Knob,
    /// The value.
    pub value: u16,
    /// Older firmware does not know the knob: then the step is left out.
    pub optional: bool,
}

/// Why a mode could not be asked or set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModeError {
    /// The device has no such mode.
    #[error("a {chip:?} has no mode {mode}")]
    Unsupported {
        /// The device.
        chip: Chip,
        /// The mode.
        mode: Mode,
    },
    /// Outside of the registers.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The device refused a read.
    #[error("the register {offset:#x} cannot be read: {value:#x}")]
    Refused {
        /// Byte offset.
        offset: u32,
        /// The device's reason.
        value: u32,
    },
    /// The device did not start within ten seconds.
    #[error("the device has not started: register {offset:#x} is {value:#x}")]
    NotStarted {
        /// Byte offset.
        offset: u32,
        /// The last value.
        value: u32,
    },
    /// The security processor does not answer.
    #[error("waited in vain for {what} of the security processor")]
    Silent {
        /// What for.
        what: &'static str,
    },
    /// The queue's ends make no sense.
    #[error("the queue of answers reaches from {head:#x} to {tail:#x}")]
    Queue {
        /// Its head.
        head: u32,
        /// Its tail.
        tail: u32,
    },
    /// The mailbox reports a fault.
    #[error("the mailbox {offset:#x} reports a fault: {value:#x}")]
    Mailbox {
        /// Byte offset.
        offset: u32,
        /// Its value.
        value: u32,
    },
    /// The answer is not one to the question.
    #[error("the security processor's answer of {words} words is none to the question")]
    Answer {
        /// Its length.
        words: usize,
    },
    /// The firmware refused.
    #[error("the security processor refused with status {status:#x}")]
    Firmware {
        /// Its status; 0x1e3 for a knob that it does not know.
        status: u32,
    },
    /// After the reset another mode is in force.
    #[error("the mode is {found:?} where {wanted} was set")]
    NotInForce {
        /// What was set.
        wanted: Mode,
        /// What is in force.
        found: Reading,
    },
}

/// What mode is in force. Only reads registers.
///
/// # Errors
/// [`ModeError`].
pub fn query(space: &mut dyn RegisterSpace, chip: Chip) -> Result<Reading, ModeError> {
    wait_for_boot(space, chip)?;
    let value = read(space, chip.mode_register())?;
    let cc = match value & 0b11 {
        _ if !chip.has_cc() => CcState::None,
        0 => CcState::Off,
        1 => CcState::On,
        3 => CcState::DevTools,
        _ => CcState::Invalid,
    };
    Ok(Reading { cc, ppcie: chip.ppcie_bit().map(|bit| value & bit != 0) })
}

/// The knobs of a mode in the order in which they are set. Confidential computing goes on before, and off after, its tools
/// for development, so that no interruption leaves the tools on alone.
///
/// # Errors
/// [`ModeError::Unsupported`].
pub fn knob_steps(chip: Chip, mode: Mode) -> Result<Vec<KnobStep>, ModeError> {
    let supported = match mode {
        Mode::Off => true,
        Mode::On | Mode::DevTools => chip.has_cc(),
        Mode::Ppcie => chip.has_ppcie(),
    };
    if !supported {
        return Err(ModeError::Unsupported { chip, mode });
    }
    let step = |knob, value| KnobStep { knob, value, optional: false };
    let mut steps = Vec::new();
    if mode != Mode::Off {
        steps.extend([Knob::Number2, Knob::Number4, Knob::Number34].map(|knob| step(knob, 0)));
    }
    let no_ppcie = KnobStep { optional: chip == Chip::Hopper, ..step(Knob::Ppcie, 0) };
    let no_ppcie = chip.has_ppcie().then_some(no_ppcie);
    let decoupler = match (chip, mode) {
        (Chip::Hopper, Mode::On | Mode::Ppcie) => Some(DECOUPLED),
        (Chip::Hopper | Chip::NvSwitch3, _) => Some(0),
        (Chip::Blackwell100 | Chip::Blackwell200, _) => None,
    };
    let decoupler = decoupler.map(|value| step(Knob::Bar0Decoupler, value));
    match mode {
        Mode::On | Mode::DevTools => {
            steps.extend(no_ppcie);
            steps.extend(decoupler);
            steps.push(step(Knob::Cc, 1));
            steps.push(step(Knob::DevTools, u16::from(mode == Mode::DevTools)));
        }
        Mode::Off => {
            steps.extend(decoupler);
            steps.extend(no_ppcie);
            if chip.has_cc() {
                steps.extend([step(Knob::DevTools, 0), step(Knob::Cc, 0)]);
            }
        }
        Mode::Ppcie => {
            steps.extend([step(Knob::DevTools, 0), step(Knob::Cc, 0)]);
            steps.extend(decoupler);
            steps.push(step(Knob::Ppcie, 1));
        }
    }
    Ok(steps)
}

/// Sets the knobs of a mode and returns those that were changed. The mode is in force after the device's next reset; until
/// then [`query`] gives the old one.
///
/// The device must be unused: no driver but `vfio-pci`, nobody who has it open.
///
/// # Errors
/// [`ModeError`]; knobs that were set before the error stay set.
pub fn set(space: &mut dyn RegisterSpace, chip: Chip, mode: Mode) -> Result<Vec<KnobStep>, ModeError> {
    let steps = knob_steps(chip, mode)?;
    let mut fsp = Fsp::open(space, chip)?;
    let mut changed = Vec::new();
    for step in steps {
        let value = match fsp.knob(step.knob.id()) {
            Err(ModeError::Firmware { status: UNKNOWN_KNOB }) if step.optional => continue,
            value => value?,
        };
        if value != step.value {
            fsp.set_knob(step.knob.id(), step.value)?;
            changed.push(step);
        }
    }
    Ok(changed)
}

/// After a reset: whether the mode is in force.
///
/// # Errors
/// [`ModeError::NotInForce`], or why it could not be asked.
pub fn verify(space: &mut dyn RegisterSpace, chip: Chip, mode: Mode) -> Result<Reading, ModeError> {
    let found = query(space, chip)?;
    if found.mode() == Some(mode) { Ok(found) } else { Err(ModeError::NotInForce { wanted: mode, found }) }
}

/// The register accesses of [`set`] against a model of the device in which every knob has another value. A real device
/// may need more looks while it works, and fewer writes.
///
/// # Errors
/// [`ModeError::Unsupported`].
pub fn planned(chip: Chip, mode: Mode) -> Result<Vec<Access>, ModeError> {
    let mut space = Traced::new(Rehearsal::new(chip));
    set(&mut space, chip, mode)?;
    Ok(space.into_parts().0)
}

/// The firmware's status for a knob that it does not know.
pub(crate) const UNKNOWN_KNOB: u32 = 0x1e3;
/// The value of the decoupler that keeps the host out.
const DECOUPLED: u16 = 2;
