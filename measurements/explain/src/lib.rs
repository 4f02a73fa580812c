// SPDX-License-Identifier: Apache-2.0
//! Says why the registers of a quote are not those that a release leads to.
//!
//! [`explain`] compares each register with what the image of a release gives on a machine, event by event where
//! there is a log, and names causes: another command line, another size of memory, another QEMU. A cause is
//! named only where a digest equals the one of a known alternative, or where everything else is ruled out; each
//! [`Finding`] says which ([`Basis`]).
//!
//! Without a log the same alternatives are tried on whole registers. How many are tried is bounded
//! ([`limits`]).
//!
//! What this does not establish: that the quote is authentic (`tdx-verify`), that the release was published
//! (`release`), or that a guest may have a key (`appraise`). An explanation that matches is no appraisal. Inputs
//! are bytes; nothing here reads a file, a clock or the network.

mod align;
mod causes;
mod document;
mod input;
pub mod limits;
mod model;
mod nearest;
mod session;
mod table;

pub use document::{
    Basis, Change, EventExplanation, EventVerdict, ExpectedValue, Explanation, Finding, LogStanding, Nearest,
    RegisterExplanation, RegisterLog, SCHEMA, Searched, ShapeSource, Standing, Verdict,
};
pub use input::{FirmwareLog, Input, Knowledge, Reference, Runtime};
pub use session::explain;
