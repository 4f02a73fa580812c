// SPDX-License-Identifier: Apache-2.0
//! Reads the ACPI files that a QEMU gives to the firmware, without running a guest.
//!
//! QEMU builds `etc/acpi/tables` anew at the moment when the firmware first selects one of the files, from
//! what the firmware programmed until then. So the same is programmed here first: PCIEXBAR (for MCFG), the ports of
//! power management (for FADT) and the place of the 64-bit window (for `_CRS`). The machine stays stopped; commands go
//! over QEMU's qtest protocol.
//!
//! What this does not establish: that the QEMU on another host builds the same tables. It is the *expected*
//! value for this version, and RTMR0 in a quote shows whether it was met.

mod fw_cfg;
mod pci;
mod program;
mod publish;
mod qtest;
mod windows;

use std::{path::Path, time::Duration};

use calculator::AcpiDigests;
use types::Sha384Digest;

pub use program::Program;
pub use publish::{PublishError, publish};
pub use windows::PhysicalBits;

/// The three files, as the firmware reads and measures them.
#[derive(Clone, PartialEq, Eq)]
pub struct AcpiFiles {
    /// `etc/table-loader`.
    pub loader: Vec<u8>,
    /// `etc/acpi/rsdp`.
    pub rsdp: Vec<u8>,
    /// `etc/acpi/tables`.
    pub tables: Vec<u8>,
}

/// Why the tables could not be read.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// QEMU could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The program is no QEMU that says its version.
    #[error("{program} --version does not name a version")]
    NoVersion {
        /// The program.
        program: String,
    },
    /// QEMU ended or closed its pipe; with the first line that it wrote to stderr.
    #[error("QEMU ended early: {message}")]
    Ended {
        /// What it said, at most 200 characters.
        message: String,
    },
    /// QEMU did not answer in time and was ended.
    #[error("QEMU did not answer within {} seconds", TIME_LIMIT.as_secs())]
    TimeOut,
    /// An answer is not of the qtest protocol.
    #[error("QEMU's answer to the qtest command {command} is malformed")]
    Protocol {
        /// First word of the command.
        command: &'static str,
    },
    /// fw_cfg refused a read.
    #[error("fw_cfg: {0}")]
    FwCfg(&'static str),
    /// A file is missing: a machine without ACPI.
    #[error("this machine has no fw_cfg file {0}")]
    Missing(&'static str),
    /// A file is larger than 4 MiB.
    #[error("the fw_cfg file {0} is too large")]
    TooLarge(&'static str),
    /// The machine has no room for a 64-bit window.
    #[error("the machine's memory leaves no room for 64-bit PCI addresses within {0} physical bits")]
    NoWindow(u8),
}

impl AcpiFiles {
    /// Digests of the files, as they are measured.
    #[must_use]
    pub fn digests(&self) -> AcpiDigests {
        AcpiDigests {
            loader: Sha384Digest::of(&self.loader),
            rsdp: Sha384Digest::of(&self.rsdp),
            tables: Sha384Digest::of(&self.tables),
        }
    }
}

impl core::fmt::Debug for AcpiFiles {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.digests().fmt(f)
    }
}

/// Starts `qemu` with `arguments` (see `qemu::table_arguments`; no device may need a running backend), reads
/// the files and ends the process. Takes about half a second.
///
/// `bits` is the width of physical addresses that the guest's processor reports: it decides where the
/// firmware puts 64-bit PCI addresses.
///
/// # Errors
/// [`AcpiError`].
pub fn read(qemu: &Path, arguments: &[String], bits: PhysicalBits) -> Result<AcpiFiles, AcpiError> {
    let mut machine = qtest::Machine::start(qemu, arguments, TIME_LIMIT)?;
    let directory = fw_cfg::Directory::read(&mut machine)?;
    let window = windows::base(&mut machine, &directory, bits)?;
    pci::program(&mut machine, window)?;
    Ok(AcpiFiles {
        loader: directory.file(&mut machine, LOADER)?,
        rsdp: directory.file(&mut machine, RSDP)?,
        tables: directory.file(&mut machine, TABLES)?,
    })
}

const LOADER: &str = "etc/table-loader";
const RSDP: &str = "etc/acpi/rsdp";
const TABLES: &str = "etc/acpi/tables";
const TIME_LIMIT: Duration = Duration::from_secs(60);
