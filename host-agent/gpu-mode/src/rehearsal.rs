// SPDX-License-Identifier: Apache-2.0
//! A model of a device's security processor, for dry runs and tests. It is no proof of how a real one behaves.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::chip::{BOOTED, Chip};
use crate::fsp::{
    ANSWER, ANSWER_HEAD, ANSWER_TAIL, EMEM_BASE, EMEM_BYTES, EMEM_CONTROL, EMEM_DATA, MCTP_SINGLE_PACKET,
    MCTP_VENDOR_MESSAGE, MNOC_BEGIN, MNOC_CREDITS, MNOC_FROM_DEVICE, MNOC_READY, MNOC_SIZE, MNOC_TO_DEVICE, QUEUE_HEAD,
    QUEUE_TAIL, READ_KNOB, RECONFIGURATION, WRITE_KNOB,
};
use crate::mode::{Knob, UNKNOWN_KNOB};
use crate::registers::{AccessError, RegisterSpace};

/// The model: registers, knobs, and the two mailboxes.
#[derive(Debug, Clone)]
pub struct Rehearsal {
    chip: Chip,
    knobs: BTreeMap<u8, u16>,
    registers: BTreeMap<u32, u32>,
    memory: Vec<u32>,
    cursor: u32,
    incoming: Vec<u32>,
    expected: u32,
    outgoing: VecDeque<u32>,
    outgoing_bytes: u32,
}

impl Rehearsal {
    /// A started device whose knobs all have a value that no mode wants.
    #[must_use]
    pub fn new(chip: Chip) -> Self {
        let knobs =
            [Knob::Number2, Knob::Number4, Knob::Number34, Knob::DevTools, Knob::Cc, Knob::Bar0Decoupler, Knob::Ppcie];
        let words = usize::try_from(EMEM_BYTES / 4).unwrap_or(0);
        Self {
            chip,
            knobs: knobs.into_iter().map(|knob| (knob.id(), u16::MAX)).collect(),
            registers: BTreeMap::from([
                (chip.boot_register(), BOOTED),
                (QUEUE_HEAD, EMEM_BASE),
                (QUEUE_TAIL, EMEM_BASE),
                (ANSWER_HEAD, EMEM_BASE),
                (ANSWER_TAIL, EMEM_BASE),
            ]),
            memory: vec![0; words],
            cursor: 0,
            incoming: Vec::new(),
            expected: 0,
            outgoing: VecDeque::new(),
            outgoing_bytes: 0,
        }
    }

    /// Gives a knob a value; `None` makes firmware that does not know it.
    pub fn set_knob(&mut self, knob: Knob, value: Option<u16>) {
        match value {
            Some(value) => self.knobs.insert(knob.id(), value),
            None => self.knobs.remove(&knob.id()),
        };
    }

    /// A knob's value.
    #[must_use]
    pub fn knob(&self, knob: Knob) -> Option<u16> {
        self.knobs.get(&knob.id()).copied()
    }

    /// Gives a register a value that reads return.
    pub fn set_register(&mut self, offset: u32, value: u32) {
        self.registers.insert(offset, value);
    }

    /// A reset: knobs become the mode in force.
    pub fn reset(&mut self) {
        let on = |knob: Knob| u32::from(self.knob(knob) == Some(1));
        let cc = if self.chip.has_cc() { on(Knob::Cc) | on(Knob::DevTools) << 1 } else { 0 };
        let ppcie = self.chip.ppcie_bit().map_or(0, |bit| bit * on(Knob::Ppcie));
        self.registers.insert(self.chip.mode_register(), cc | ppcie);
    }

    /// The security processor's answer to a packet.
    fn answer(&mut self, packet: &[u32]) -> Vec<u32> {
        let (status, data) = match packet {
            [_, _, question] if question & 0xffff == READ_KNOB => match self.knobs.get(&number(*question)) {
                // The upper half is noise, as NVIDIA's tools say.
                Some(value) => (0, Some(0xa5a5_0000 | u32::from(*value))),
                None => (UNKNOWN_KNOB, None),
            },
            [_, _, question, value] if question & 0xffff == WRITE_KNOB => {
                match self.knobs.get_mut(&number(*question)) {
                    Some(knob) => {
                        *knob = u16::try_from(*value).unwrap_or(u16::MAX);
                        (0, None)
                    }
                    None => (UNKNOWN_KNOB, None),
                }
            }
            _ => (1, None),
        };
        let mut answer = vec![MCTP_SINGLE_PACKET, MCTP_VENDOR_MESSAGE | ANSWER << 24, 0, RECONFIGURATION, status];
        answer.extend(data);
        answer
    }

    fn register(&self, offset: u32) -> u32 {
        self.registers.get(&offset).copied().unwrap_or(0)
    }

    fn slot(&mut self) -> Option<&mut u32> {
        let index = usize::try_from(self.cursor.checked_sub(EMEM_BASE)? / 4).ok()?;
        self.cursor += 4;
        self.memory.get_mut(index)
    }

    /// The head was written: the packet is complete.
    fn take_from_memory(&mut self) {
        let length = self.register(QUEUE_TAIL).saturating_sub(self.register(QUEUE_HEAD)) / 4 + 1;
        let words = usize::try_from(length).unwrap_or(0);
        let packet: Vec<u32> = self.memory.iter().take(words).copied().collect();
        let answer = self.answer(&packet);
        for (slot, word) in self.memory.iter_mut().zip(&answer) {
            *slot = *word;
        }
        let last = u32::try_from(answer.len().saturating_sub(1)).unwrap_or(0) * 4;
        self.registers.insert(QUEUE_HEAD, EMEM_BASE);
        self.registers.insert(QUEUE_TAIL, EMEM_BASE);
        self.registers.insert(ANSWER_TAIL, EMEM_BASE + last);
    }

    fn take_word(&mut self, word: u32) {
        self.incoming.push(word);
        if u32::try_from(self.incoming.len()).unwrap_or(u32::MAX).saturating_mul(4) >= self.expected {
            let packet = std::mem::take(&mut self.incoming);
            let answer = self.answer(&packet);
            self.outgoing_bytes = u32::try_from(answer.len()).unwrap_or(0) * 4;
            self.outgoing = answer.into();
        }
    }
}

impl RegisterSpace for Rehearsal {
    fn read(&mut self, offset: u32) -> Result<u32, AccessError> {
        Ok(match offset {
            EMEM_DATA => self.slot().copied().unwrap_or(0),
            MNOC_TO_DEVICE if !self.registers.contains_key(&offset) => MNOC_READY | MNOC_CREDITS,
            MNOC_FROM_DEVICE if !self.registers.contains_key(&offset) => {
                if self.outgoing.is_empty() {
                    0
                } else {
                    MNOC_READY | self.outgoing_bytes
                }
            }
            offset if offset == MNOC_FROM_DEVICE + 4 => self.outgoing.pop_front().unwrap_or(0),
            _ => self.register(offset),
        })
    }

    fn write(&mut self, offset: u32, value: u32) -> Result<(), AccessError> {
        match offset {
            EMEM_CONTROL => self.cursor = value & 0xff_ffff,
            EMEM_DATA => {
                if let Some(slot) = self.slot() {
                    *slot = value;
                }
            }
            MNOC_TO_DEVICE => {
                self.expected = if value & MNOC_BEGIN == 0 { 0 } else { value & MNOC_SIZE };
                self.incoming.clear();
            }
            offset if offset == MNOC_TO_DEVICE + 4 => self.take_word(value),
            _ => {
                self.registers.insert(offset, value);
                if offset == QUEUE_HEAD && self.register(QUEUE_TAIL) != value {
                    self.take_from_memory();
                }
            }
        }
        Ok(())
    }

    fn pause(&mut self, _time: Duration) {}
}

fn number(question: u32) -> u8 {
    u8::try_from(question >> 16).unwrap_or(0)
}
