// SPDX-License-Identifier: Apache-2.0
//! The attestation service: appraises guests, releases model keys to them, and logs each release before it happens.
//!
//! [`run`] is the whole program. Which hardware is believed is its argument: the release binary passes Intel's root,
//! and no flag, file or environment variable changes that.

mod activity;
mod body;
mod cli;
mod codes;
mod command;
mod demand;
pub mod gpu_files;
mod grounds;
mod http_api;
pub mod identity;
mod input;
pub mod limits;
pub mod listen;
mod memory;
pub mod metrics;
mod openapi;
mod outcome;
mod place;
pub mod reply;
mod routes;
pub mod service;
mod shares;
mod successors;
mod tally;
mod tokens;

use std::{ffi::OsString, process::ExitCode};

use clap::Parser as _;
use gpu_verify::GpuAnchors;
use tdx_verify::TrustAnchors;

pub use demand::DemandError;
pub use identity::Identity;
pub use limits::Limits;
pub use listen::listen;
pub use service::Service;

/// [`run_with`], with NVIDIA's roots for GPUs.
pub fn run(anchors: &TrustAnchors, args: impl IntoIterator<Item = OsString>) -> ExitCode {
    run_with(anchors, &GpuAnchors::nvidia(), args)
}

/// Runs the program with the arguments `args` (the program's name first). Results go to standard output, everything
/// else to standard error. Exit codes: 0 accepted, 2 refused, 64 wrong usage, 1 anything else.
pub fn run_with(anchors: &TrustAnchors, gpu: &GpuAnchors, args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match cli::Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; they go to standard output.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("CHRYSALIS_LOG").unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // Where the log's disk is full, its complaint about that would end in a panic; and a second subscriber in one
    // process is refused: the first one goes on.
    let _ = log.log_internal_errors(false).try_init();
    match command::run(cli.command, anchors, gpu) {
        Ok(outcome) => outcome.report(cli.json),
        Err(error) => outcome::failed(&error, cli.json),
    }
}

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;
