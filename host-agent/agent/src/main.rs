// SPDX-License-Identifier: Apache-2.0
//! `host-agent`: prepares a host and runs guests on it.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    host_agent::run(host_agent::Cli::parse())
}
