// SPDX-License-Identifier: Apache-2.0
//! `host-agent`: prepares a host and runs guests on it.

use std::process::ExitCode;

fn main() -> ExitCode {
    host_agent::run(&host_agent::Surroundings::real(), std::env::args_os())
}
