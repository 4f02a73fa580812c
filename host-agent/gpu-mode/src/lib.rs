// SPDX-License-Identifier: Apache-2.0
//! The confidential computing mode of NVIDIA GPUs and NVSwitches: asked and set over the registers behind BAR0.
//!
//! Registers, knob numbers and the order of steps are those that NVIDIA publishes in its tools for administrators
//! (`gpu-admin-tools`, MIT licence; read, not copied). None of it ran on hardware here: traces against a model of the
//! device are all that the tests show. What a mode means for a guest is for the GPU's attestation report to say.

mod bar0;
mod chip;
mod fsp;
mod mode;
mod registers;
mod rehearsal;

pub use bar0::{Bar0, Bar0Error};
pub use chip::Chip;
pub use mode::{CcState, Knob, KnobStep, Mode, ModeError, Reading, knob_steps, planned, query, set, verify};
pub use registers::{Access, AccessError, RegisterSpace, Traced};
pub use rehearsal::Rehearsal;
