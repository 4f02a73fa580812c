// SPDX-License-Identifier: Apache-2.0
//! Command line to compute, replay, explain and publish measurements.

mod bundle_cmd;
mod clock;
mod commands;
mod input;
mod key_file;
mod log_cmd;
mod measured;
mod output;
mod release_cmd;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use commands::{acpi, compute, diff, explain, replay};

/// Computes and compares the measurements of TDX guests.
///
/// Exit status: 0 accepted, 2 refused (with reasons), 64 wrong usage, 1 anything else.
#[derive(Parser)]
#[command(name = "measure", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Compute(compute::Arguments),
    Replay(replay::Arguments),
    Explain(explain::Arguments),
    Diff(diff::Arguments),
    Acpi(acpi::Arguments),
    Release(release_cmd::Arguments),
    Bundle(bundle_cmd::Arguments),
    Log(log_cmd::Arguments),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return output::usage(&error),
    };
    match arguments.command {
        Command::Compute(arguments) => output::finish(arguments.json, compute::run(&arguments)),
        Command::Replay(arguments) => output::finish(arguments.json, replay::run(&arguments)),
        Command::Explain(arguments) => explain::finish(&arguments),
        Command::Diff(arguments) => output::finish(arguments.json, diff::run(&arguments)),
        Command::Acpi(arguments) => output::finish(arguments.json(), acpi::run(&arguments)),
        Command::Release(arguments) => output::finish(arguments.json, release_cmd::run(&arguments)),
        Command::Bundle(arguments) => output::finish(arguments.json, bundle_cmd::run(&arguments)),
        Command::Log(arguments) => output::finish(arguments.json, log_cmd::run(&arguments)),
    }
}
