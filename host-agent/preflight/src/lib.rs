// SPDX-License-Identifier: Apache-2.0
//! What a host has and lacks for TDX guests with GPUs: a fixed list of checks, each with what was read and where, and the
//! command that mends it.
//!
//! All is read below a root, so that the recorded tree of another machine gives the report that the machine gave. A host
//! that passes can start guests; it proves nothing to anybody, for which there is attestation.

mod checks;
mod host;
mod pccs;
mod probes;
mod qgs;
mod recording;
mod report;

pub use checks::{check_ids, run};
pub use host::{Host, Settings};
pub use probes::{Answer, GpuModeProbe, LiveProbes, Probes, Question, RecordedProbes};
pub use recording::{LEFT_OUT, RecordError, record};
pub use report::{Check, Evidence, Report, Status};
