// SPDX-License-Identifier: Apache-2.0
//! ACPI digests from the guest's own event log: the weaker rule that a policy may name.
//!
//! The log is the guest's word. Replaying to the quoted registers proves that these digests were extended, and the
//! release still fixes every other event; it does not say which ACPI tables the host gave.

use calculator::{AcpiDigests, ExpectedRegisters};
use event_log::{EventLog, Indexing, register_of, replay};
use release::ReferenceValues;
use tdx_verify::VerifiedQuote;
use types::{MachineShape, RegisterName, Sha384Digest};

/// The digests that were extended into RTMR0, in order.
#[derive(Debug, Clone)]
pub(crate) struct ExtendedEvents(Vec<Sha384Digest>);

impl ExtendedEvents {
    /// Reads a log that replays to RTMR0, RTMR1 and RTMR2 of the quote.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn read(log: Option<&[u8]>, quote: &VerifiedQuote) -> Result<Self, &'static str> {
        let log = log.ok_or("the evidence has no firmware event log")?;
        let log = EventLog::parse(log).map_err(|_| "the firmware event log is malformed")?;
        let index = Indexing::MeasurementRegister;
        let replayed = replay(&log, index).map_err(|_| "the firmware event log cannot be replayed")?;
        for name in [RegisterName::Rtmr0, RegisterName::Rtmr1, RegisterName::Rtmr2] {
            if replayed.value(name) != Some(quote.registers().value(name)) {
                return Err("the firmware event log does not replay to the quoted registers");
            }
        }
        let own = |event: &&event_log::Event<'_>| {
            event.is_extended() && register_of(event, index) == Some(RegisterName::Rtmr0)
        };
        let digests: Option<_> = log.events.iter().filter(own).map(event_log::Event::sha384).collect();
        digests.map(Self).ok_or("an event of the firmware event log has no SHA-384 digest")
    }

    /// The release's registers for the shape, with the log's digests in the places of the ACPI events.
    pub(crate) fn expected(&self, values: &ReferenceValues, shape: &MachineShape) -> Option<ExpectedRegisters> {
        let zero = Sha384Digest::ZERO;
        let acpi = AcpiDigests { loader: zero, rsdp: zero, tables: zero };
        let without = values.registers_with(shape, &acpi).ok()?;
        let own: Vec<_> = without.events.iter().filter(|event| event.register == RegisterName::Rtmr0).collect();
        if own.len() != self.0.len() {
            return None;
        }
        let logged = |name: &str| {
            let place = own.iter().position(|event| event.name == name)?;
            self.0.get(place).copied()
        };
        let acpi =
            AcpiDigests { loader: logged("ACPI loader")?, rsdp: logged("ACPI RSDP")?, tables: logged("ACPI tables")? };
        values.registers_with(shape, &acpi).ok()
    }
}
