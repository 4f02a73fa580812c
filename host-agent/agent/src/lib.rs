// SPDX-License-Identifier: Apache-2.0
//! Prepares a host and runs guests on it.
//!
//! Nothing here is trusted by anybody: a guest, a service and a client check all they need by themselves. The agent's
//! duty is that a launch works, or says why it does not, and leaves nothing behind.

mod account;
mod cache;
mod claim;
mod cli;
mod daemon;
mod door;
mod events;
mod files;
mod front;
mod gpu;
mod image;
mod launch;
mod limits;
mod log;
mod manage;
mod manual;
mod metrics;
mod numa;
mod orphans;
mod pid;
mod preflight;
mod prepare;
mod process;
mod progress;
mod pulse;
mod qmp;
mod record;
mod report;
mod top;

pub use cli::{Surroundings, run};
pub use events::Event;
pub use gpu::passing::OpenSysfs;
