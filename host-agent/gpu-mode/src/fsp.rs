// SPDX-License-Identifier: Apache-2.0
//! Questions to the device's security processor (FSP): MCTP packets with NVIDIA's vendor-defined messages, through one of
//! two kinds of mailboxes.

use std::time::Duration;

use crate::chip::{BOOTED, Chip};
use crate::mode::ModeError;
use crate::registers::RegisterSpace;

/// A connection to the security processor of a device that has started.
pub(crate) struct Fsp<'a> {
    space: &'a mut dyn RegisterSpace,
    mailbox: Mailbox,
}

#[derive(Clone, Copy)]
enum Mailbox {
    /// Hopper and NVSwitch: a memory window with two queues.
    Emem,
    /// Blackwell: a pair of FIFOs.
    Mnoc,
}

/// Reads a register; values of the form `0xbadfxxxx` mean that the device refused.
pub(crate) fn read(space: &mut dyn RegisterSpace, offset: u32) -> Result<u32, ModeError> {
    let value = space.read(offset)?;
    if value >> 16 == 0xbadf { Err(ModeError::Refused { offset, value }) } else { Ok(value) }
}

/// Waits until the device has started.
pub(crate) fn wait_for_boot(space: &mut dyn RegisterSpace, chip: Chip) -> Result<(), ModeError> {
    let register = chip.boot_register();
    let mut last = 0;
    for _ in 0..BOOT_LOOKS {
        // Blackwell answers 0xbadf.... until then.
        last = space.read(register)?;
        if last == BOOTED {
            return Ok(());
        }
        space.pause(LOOK);
    }
    Err(ModeError::NotStarted { offset: register, value: last })
}

impl<'a> Fsp<'a> {
    pub(crate) fn open(space: &'a mut dyn RegisterSpace, chip: Chip) -> Result<Self, ModeError> {
        wait_for_boot(space, chip)?;
        let mailbox = match chip {
            Chip::Hopper | Chip::NvSwitch3 => Mailbox::Emem,
            Chip::Blackwell100 | Chip::Blackwell200 => Mailbox::Mnoc,
        };
        let mut fsp = Self { space, mailbox };
        if matches!(mailbox, Mailbox::Emem) {
            fsp.settle()?;
        }
        Ok(fsp)
    }

    /// Reads a knob; 16 bits.
    pub(crate) fn knob(&mut self, id: u8) -> Result<u16, ModeError> {
        let answer = self.ask(&[READ_KNOB | u32::from(id) << 16])?;
        match answer.as_slice() {
            // The upper half is not initialised by the firmware.
            [value] => Ok(u16::try_from(value & 0xffff).unwrap_or(u16::MAX)),
            _ => Err(ModeError::Answer { words: answer.len() }),
        }
    }

    /// Writes a knob. It takes effect with the next reset.
    pub(crate) fn set_knob(&mut self, id: u8, value: u16) -> Result<(), ModeError> {
        let answer = self.ask(&[WRITE_KNOB | u32::from(id) << 16, u32::from(value)])?;
        if answer.is_empty() { Ok(()) } else { Err(ModeError::Answer { words: answer.len() }) }
    }

    /// Sends a message of the type for product reconfiguration and returns what follows the answer's status.
    fn ask(&mut self, message: &[u32]) -> Result<Vec<u32>, ModeError> {
        let mut packet = vec![MCTP_SINGLE_PACKET, MCTP_VENDOR_MESSAGE | RECONFIGURATION << 24];
        packet.extend_from_slice(message);
        let answer = match self.mailbox {
            Mailbox::Emem => {
                self.emem_send(&packet)?;
                self.emem_receive()?
            }
            Mailbox::Mnoc => {
                self.mnoc_send(&packet)?;
                self.mnoc_receive()?
            }
        };
        match answer.as_slice() {
            [_, header, _, asked, status, rest @ ..] if header >> 24 == ANSWER && *asked == RECONFIGURATION => {
                if *status == 0 {
                    Ok(rest.to_vec())
                } else {
                    Err(ModeError::Firmware { status: *status })
                }
            }
            _ => Err(ModeError::Answer { words: answer.len() }),
        }
    }

    /// Empties both queues, which an earlier user may have left filled.
    fn settle(&mut self) -> Result<(), ModeError> {
        if self.queue_is_empty()? && self.answers()?.is_none() {
            return Ok(());
        }
        for _ in 0..ANSWER_LOOKS {
            if self.answers()?.is_some() {
                break;
            }
            self.space.pause(LOOK);
        }
        for register in [QUEUE_TAIL, QUEUE_HEAD, ANSWER_TAIL, ANSWER_HEAD] {
            self.space.write(register, EMEM_BASE)?;
        }
        Ok(())
    }

    fn emem_send(&mut self, packet: &[u32]) -> Result<(), ModeError> {
        self.wait("an empty queue", QUEUE_LOOKS, SHORT_LOOK, Self::queue_is_empty)?;
        self.space.write(EMEM_CONTROL, EMEM_BASE | EMEM_COUNT_UP)?;
        for word in packet {
            self.space.write(EMEM_DATA, *word)?;
        }
        let words = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        let last = words.saturating_sub(1).saturating_mul(4).saturating_add(EMEM_BASE);
        self.space.write(QUEUE_TAIL, last)?;
        self.space.write(QUEUE_HEAD, EMEM_BASE)?;
        Ok(())
    }

    fn emem_receive(&mut self) -> Result<Vec<u32>, ModeError> {
        self.wait("an answer", ANSWER_LOOKS, LOOK, |fsp| Ok(fsp.answers()?.is_some()))?;
        let (head, tail) = self.answers()?.ok_or(ModeError::Answer { words: 0 })?;
        // Head and tail are the device's word: what would not fit its window is none.
        let bytes = tail.checked_sub(head).and_then(|length| length.checked_add(4));
        let words = bytes.filter(|bytes| bytes.is_multiple_of(4) && *bytes <= EMEM_BYTES).map(|bytes| bytes / 4);
        let words = words.ok_or(ModeError::Queue { head, tail })?;
        self.space.write(EMEM_CONTROL, EMEM_BASE | EMEM_COUNT_UP)?;
        // Content may look like a refusal: it is read as it is.
        let answer = (0..words).map(|_| self.space.read(EMEM_DATA)).collect::<Result<Vec<u32>, _>>()?;
        self.space.write(ANSWER_TAIL, head)?;
        Ok(answer)
    }

    fn queue_is_empty(&mut self) -> Result<bool, ModeError> {
        Ok(read(self.space, QUEUE_HEAD)? == read(self.space, QUEUE_TAIL)?)
    }

    /// Head and tail of the queue of answers, if there is one.
    fn answers(&mut self) -> Result<Option<(u32, u32)>, ModeError> {
        let (head, tail) = (read(self.space, ANSWER_HEAD)?, read(self.space, ANSWER_TAIL)?);
        Ok((head != tail).then_some((head, tail)))
    }

    fn mnoc_send(&mut self, packet: &[u32]) -> Result<(), ModeError> {
        self.mnoc_check(MNOC_TO_DEVICE)?;
        self.wait("a free mailbox", ANSWER_LOOKS * 10, SHORT_LOOK, |fsp| fsp.bit(MNOC_TO_DEVICE, MNOC_READY))?;
        let bytes = u32::try_from(packet.len()).unwrap_or(u32::MAX).saturating_mul(4);
        self.space.write(MNOC_TO_DEVICE, bytes | MNOC_BEGIN)?;
        for (index, word) in packet.iter().enumerate() {
            if index % MNOC_CREDIT_WORDS == 0 {
                self.wait("credits", QUEUE_LOOKS, SHORT_LOOK, |fsp| fsp.bit(MNOC_TO_DEVICE, MNOC_CREDITS))?;
            }
            self.space.write(MNOC_TO_DEVICE + 4, *word)?;
        }
        self.mnoc_check(MNOC_TO_DEVICE)
    }

    fn mnoc_receive(&mut self) -> Result<Vec<u32>, ModeError> {
        let ready = |fsp: &mut Self| fsp.bit(MNOC_FROM_DEVICE, MNOC_READY);
        if let Err(error) = self.wait("an answer", ANSWER_LOOKS * 10, SHORT_LOOK, ready) {
            // A fault of the mailbox explains the silence better.
            self.mnoc_check(MNOC_FROM_DEVICE)?;
            return Err(error);
        }
        let bytes = read(self.space, MNOC_FROM_DEVICE)? & MNOC_SIZE;
        if bytes > MNOC_BYTES {
            return Err(ModeError::Queue { head: 0, tail: bytes });
        }
        let words = bytes.div_ceil(4);
        let answer = (0..words).map(|_| self.space.read(MNOC_FROM_DEVICE + 4)).collect::<Result<Vec<u32>, _>>()?;
        self.mnoc_check(MNOC_FROM_DEVICE)?;
        Ok(answer)
    }

    fn mnoc_check(&mut self, register: u32) -> Result<(), ModeError> {
        let value = read(self.space, register)?;
        if value & MNOC_FAULT == 0 { Ok(()) } else { Err(ModeError::Mailbox { offset: register, value }) }
    }

    fn bit(&mut self, register: u32, bit: u32) -> Result<bool, ModeError> {
        Ok(read(self.space, register)? & bit != 0)
    }

    fn wait(
        &mut self,
        what: &'static str,
        looks: u32,
        between: Duration,
        mut done: impl FnMut(&mut Self) -> Result<bool, ModeError>,
    ) -> Result<(), ModeError> {
        for _ in 0..looks {
            if done(self)? {
                return Ok(());
            }
            self.space.pause(between);
        }
        Err(ModeError::Silent { what })
    }
}

/// MCTP header: first and last packet, all else 0.
pub(crate) const MCTP_SINGLE_PACKET: u32 = 0xc000_0000;
/// MCTP message: vendor-defined by PCI identifier (0x7e), NVIDIA (0x10de); the uppermost byte is NVIDIA's type.
pub(crate) const MCTP_VENDOR_MESSAGE: u32 = 0x0010_de7e;
/// NVIDIA's type for product reconfiguration (PRC).
pub(crate) const RECONFIGURATION: u32 = 0x13;
/// NVIDIA's type of an answer.
pub(crate) const ANSWER: u32 = 0x15;
/// Read a knob; the second byte is 2, the knob's number stands in the upper half.
pub(crate) const READ_KNOB: u32 = 0x020c;
/// Write a knob; likewise. The next word is the value.
pub(crate) const WRITE_KNOB: u32 = 0x020d;

/// The channel that is used of the FSP's memory window, and its part of the window: one KiB each.
const CHANNEL: u32 = 2;
pub(crate) const EMEM_BYTES: u32 = 1024;
pub(crate) const EMEM_BASE: u32 = CHANNEL * EMEM_BYTES;
pub(crate) const EMEM_CONTROL: u32 = 0x8f_2ac0 + CHANNEL * 8;
pub(crate) const EMEM_DATA: u32 = EMEM_CONTROL + 4;
/// Count up after writes (bit 24) and after reads (bit 25).
pub(crate) const EMEM_COUNT_UP: u32 = 0b11 << 24;
pub(crate) const QUEUE_HEAD: u32 = 0x8f_2c00 + CHANNEL * 8;
pub(crate) const QUEUE_TAIL: u32 = QUEUE_HEAD + 4;
pub(crate) const ANSWER_HEAD: u32 = 0x8f_2c80 + CHANNEL * 8;
pub(crate) const ANSWER_TAIL: u32 = ANSWER_HEAD + 4;

/// The FSP's mailboxes on Blackwell, port 0; the data register follows each.
pub(crate) const MNOC_FROM_DEVICE: u32 = 0x8f_1e00 + 0x104;
pub(crate) const MNOC_TO_DEVICE: u32 = 0x8f_1e00 + 0x184;
pub(crate) const MNOC_BEGIN: u32 = 1 << 20;
pub(crate) const MNOC_READY: u32 = 1 << 24;
pub(crate) const MNOC_FAULT: u32 = 1 << 25;
pub(crate) const MNOC_CREDITS: u32 = 1 << 26;
pub(crate) const MNOC_SIZE: u32 = 0xf_ffff;
const MNOC_BYTES: u32 = 4160;
/// Credits are asked for every 64 bytes.
const MNOC_CREDIT_WORDS: usize = 16;

/// Ten seconds for a start, five for an answer, one for a queue.
const BOOT_LOOKS: u32 = 1000;
const ANSWER_LOOKS: u32 = 500;
const QUEUE_LOOKS: u32 = 1000;
const LOOK: Duration = Duration::from_millis(10);
const SHORT_LOOK: Duration = Duration::from_millis(1);
