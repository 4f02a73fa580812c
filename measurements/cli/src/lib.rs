// SPDX-License-Identifier: Apache-2.0
//! Command line to compute, replay, explain and publish measurements.
//!
//! The library part is what other programs need too: reading ACPI tables out of a QEMU that never runs a
//! guest ([`acpi`]).

pub mod acpi;
