// SPDX-License-Identifier: Apache-2.0
//! Computes the expected TDX registers of an image for a machine shape.
//!
//! Two steps. [`ImageMeasurements::of`] hashes the image's files once, where they are at hand; the result is
//! small and is what a release publishes. [`registers`] then computes MRTD and RTMR0 to RTMR2 for any
//! [`types::MachineShape`], with the list of events behind them, so that a difference can be explained.
//!
//! What this does not establish: that a quote is authentic, that ACPI tables are harmless, or that a release
//! was published. Inputs are bytes; nothing here reads a file, a clock or the network.

pub mod authenticode;
mod events;
mod firmware;
mod image;
mod kernel;
mod memory;
mod mrtd;
mod reference;
mod registers;
mod td_hob;
mod uefi;

pub use events::{Dependency, ExpectedEvent};
pub use firmware::{
    FirmwareError, FirmwareGeneration, FirmwareMeasurements, InitrdWord, MemoryRange, UnsupportedGeneration,
};
pub use image::{CommandLineError, ImageBytes, ImageError, ImageMeasurements, load_options};
pub use kernel::{KernelError, KernelMeasurements, PatchedKernel, patched_by_qemu};
pub use reference::{AcpiFact, AcpiReference, MemorySpan};
pub use registers::{AcpiDigests, AllowedValue, CalculateError, ExpectedRegisters, registers};
