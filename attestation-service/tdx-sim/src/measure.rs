// SPDX-License-Identifier: Apache-2.0
//! Measures what was really launched: the command line that QEMU got and the files that it names.
//!
//! This is an implementation of MRTD and RTMR0–2 of its own; it shares nothing with the calculator that predicts them.
//! It covers direct boot of a Linux kernel by OVMF as of edk2 2025.02 without Secure Boot. What QEMU serves to the
//! firmware (ACPI tables, kernel with its header as QEMU patches it, initrd, memory map) is read from a *twin*: the
//! same program with the same machine, run until the firmware has read the tables.

mod argv;
mod boot;
mod control;
mod error;
mod log;
mod pe;
mod tdvf;
mod twin;

use types::{Registers, Sha384Digest};

pub use argv::Launch;
pub use boot::BootEvent;
pub use error::MeasureError;
pub use twin::Served;

use crate::TdParams;

/// The registers that a launch gives a TD before its guest runs, with the log that firmware would write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measurement {
    /// SHA-384 over the pages that the creator adds and measures.
    pub mr_td: Sha384Digest,
    /// All events of RTMR0 to RTMR2, in the order of the log.
    pub events: Vec<BootEvent>,
}

/// Measures a launch. Runs a second QEMU for some seconds.
///
/// # Errors
/// [`MeasureError`] names the file, option or rule.
pub fn measure(launch: &Launch) -> Result<Measurement, MeasureError> {
    let firmware = launch.firmware()?;
    let served = twin::serve(launch)?;
    measure_served(&firmware, &served)
}

/// Measures from a firmware image and what QEMU serves to it.
///
/// # Errors
/// [`MeasureError`] names the file or rule.
pub fn measure_served(firmware: &[u8], served: &Served) -> Result<Measurement, MeasureError> {
    let volume = tdvf::Firmware::parse(firmware)?;
    volume.refuse_variables()?;
    let hand_off = volume.hand_off_block(&served.ram)?;
    Ok(Measurement { mr_td: volume.mr_td()?, events: boot::events(&volume, &hand_off, served)? })
}

impl Measurement {
    /// The value of RTMR `index` (0 to 2) after all events.
    #[must_use]
    pub fn rtmr(&self, index: u32) -> Sha384Digest {
        self.events
            .iter()
            .filter(|event| event.rtmr == index)
            .fold(Sha384Digest::ZERO, |register, event| register.extend(&event.digest))
    }

    /// All registers of the TD at the moment when its guest begins.
    #[must_use]
    pub fn registers(&self, params: &TdParams) -> Registers {
        Registers {
            mr_td: self.mr_td,
            rtmr_0: self.rtmr(0),
            rtmr_1: self.rtmr(1),
            rtmr_2: self.rtmr(2),
            rtmr_3: Sha384Digest::ZERO,
            mr_config_id: params.mr_config_id,
            mr_owner: params.mr_owner,
            mr_owner_config: params.mr_owner_config,
        }
    }

    /// The event log as it stands in memory after boot (64 KiB, the rest is 0xFF).
    #[must_use]
    pub fn event_log(&self) -> Vec<u8> {
        log::fill_up(log::write(&self.events))
    }

    /// The event log without what follows the last event.
    #[must_use]
    pub fn events_logged(&self) -> Vec<u8> {
        log::write(&self.events)
    }
}

#[cfg(test)]
mod tests;
