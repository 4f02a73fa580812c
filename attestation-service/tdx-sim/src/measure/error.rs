// SPDX-License-Identifier: Apache-2.0
//! Why a launch could not be measured.

use std::path::PathBuf;

/// Why a launch could not be measured. Each message names the file, option or rule.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is larger than anything that this measures.
    #[error("{0} is larger than 1 GiB")]
    TooLarge(PathBuf),
    /// QEMU's command line has an option whose effect on the measurements is not known here.
    #[error("option {0:?} of QEMU is not known to the simulator")]
    UnknownOption(String),
    /// QEMU's command line lacks an option.
    #[error("QEMU's command line lacks {0}")]
    MissingOption(&'static str),
    /// An option has no value or one that can't be read.
    #[error("option {0:?} of QEMU has no usable value")]
    BadOption(String),
    /// A network card without `romfile=` brings an option ROM, which firmware measures.
    #[error("device {0:?} brings an option ROM: give it an empty romfile=")]
    OptionRom(String),
    /// The firmware is not a TDVF that can be measured.
    #[error("firmware: {0}")]
    Firmware(&'static str),
    /// The kernel is not a PE image.
    #[error("kernel: {0}")]
    Kernel(&'static str),
    /// The second QEMU did not start or ended too early.
    #[error("second QEMU: {0}")]
    Twin(String),
    /// The second QEMU answered something else than its control protocols say.
    #[error("second QEMU: {0} is malformed or missing")]
    Answer(&'static str),
    /// The connection to the second QEMU failed.
    #[error("second QEMU: {0}")]
    Control(#[from] std::io::Error),
    /// The firmware did not read its tables in time.
    #[error("second QEMU: the firmware did not read the ACPI tables within {0} s")]
    TimeOut(u64),
}
