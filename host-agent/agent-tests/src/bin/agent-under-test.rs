// SPDX-License-Identifier: Apache-2.0
//! `host-agent`, as it is released.

use std::process::ExitCode;

fn main() -> ExitCode {
    host_agent::run(std::env::args_os())
}
