// SPDX-License-Identifier: Apache-2.0
//! What an explanation is made from.

use calculator::{AcpiReference, ImageMeasurements};
use event_log::{EventLog, Indexing};
use types::{MachineShape, Registers, RuntimeEvent};

use crate::document::Standing;

/// Everything that is known. Only registers and a reference are needed; each further part lets more be said.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// The registers of the quote.
    pub registers: &'a Registers,
    /// Whether the caller verified the quote.
    pub quote: Standing,
    /// The reference values.
    pub reference: Reference<'a>,
    /// The machine that the guest's configuration, or the caller, names.
    pub shape: Option<&'a MachineShape>,
    /// The firmware's log.
    pub log: Option<FirmwareLog<'a>>,
    /// The events of RTMR3.
    pub runtime: Option<Runtime<'a>>,
    /// The exact bytes of the guest's configuration, as claimed.
    pub configuration: Option<&'a [u8]>,
    /// Further things that the guest may have been made from.
    pub knowledge: Knowledge<'a>,
}

/// What a release says.
#[derive(Debug, Clone)]
pub struct Reference<'a> {
    /// Whether the release was verified.
    pub standing: Standing,
    /// Measurements of its image.
    pub image: &'a ImageMeasurements,
    /// ACPI files of machines; the first that fits a machine is taken.
    pub acpi: &'a [AcpiReference],
    /// The machines that it lists.
    pub shapes: &'a [MachineShape],
}

/// A firmware log.
#[derive(Debug, Clone, Copy)]
pub struct FirmwareLog<'a> {
    /// The log.
    pub log: &'a EventLog<'a>,
    /// What its indexes count.
    pub indexing: Indexing,
}

/// The events of RTMR3.
#[derive(Debug, Clone, Copy)]
pub struct Runtime<'a> {
    /// As the guest lists them.
    pub claimed: &'a [RuntimeEvent],
    /// Those of a complete boot with the claimed facts, in order; empty when the facts are not known.
    pub expected: &'a [RuntimeEvent],
}

/// Alternatives to compare with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Knowledge<'a> {
    /// Images of other releases, by name.
    pub images: &'a [(String, &'a ImageMeasurements)],
    /// ACPI files of further machines: they name causes, they make no expectation.
    pub acpi: &'a [AcpiReference],
    /// Command lines.
    pub command_lines: &'a [String],
    /// Configurations, by name.
    pub configurations: &'a [(String, &'a [u8])],
}
