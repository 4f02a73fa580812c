// SPDX-License-Identifier: Apache-2.0
//! The daemon: guests as they were declared, whatever dies.
//!
//! One loop: look at the host, let [`fleet`] say what follows, write the state down, act. Guests run under keepers and
//! fronts of their own, which go on when the daemon ends; the next daemon finds them by the directories that they hold.

mod compose;
pub(crate) mod config;
pub(crate) mod control;
mod declare;
mod effects;
mod gpus;
mod host;
mod keeper;
mod memory;
mod paths;
mod release;
mod run;
pub(crate) mod state_file;
pub(crate) mod status;
pub(crate) mod tcb;
mod telling;

use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use run::{DaemonArgs, run};

fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
