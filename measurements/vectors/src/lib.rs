// SPDX-License-Identifier: Apache-2.0
//! Attacks on measurements, releases and logs as committed bytes: one directory per attack under `attacks`, with the
//! refusal that it must meet. `docs/threat-model.md` numbers the attacks.
//!
//! The bytes are our own: made by [`generate::generate`] on simulated hardware, with keys that nobody has any more.
//! They are committed so that a later change of a check or a format meets inputs that it did not make itself.

pub mod case;
pub mod generate;
mod verifier;
