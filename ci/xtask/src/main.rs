// SPDX-License-Identifier: Apache-2.0
//! Tasks of this repository: set-up, demo, test, bench, soak, fuzz.

mod bench;
mod demo;
mod fuzz;
mod guest_programs;
mod labels;
mod layers;
mod openai_clients;
mod packages;
mod process;
mod programs;
mod purity;
mod repro;
mod schemathesis;
mod setup;
mod soak;
mod stock_verifier;
mod test;
mod wasm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of this repository.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo --keep\n  cargo xtask test\n  cargo xtask bench measure\n  cargo xtask soak inference --minutes 30\n  cargo xtask fuzz quote --seconds 600\n  cargo xtask wasm --release"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what building and running need; without root print the one command that does.
    Setup,
    /// Build the image, boot it, release a key to it, ask it a question, and show what is refused.
    Demo(demo::DemoArgs),
    /// Formatting, lints, layers, unit, integration and end-to-end tests.
    Test(test::TestArgs),
    /// Check that crates depend only on lower layers, and that the verifying core has no effects.
    Layers,
    /// Have npm's @sigstore/verify judge a bundle made here, and changed copies of it.
    StockVerifier,
    /// Have schemathesis hold the running attestation service against its OpenAPI description.
    Schemathesis,
    /// Build the page verifier for WebAssembly, and hold it against native code.
    Wasm(wasm::WasmArgs),
    /// Measure, and write target/bench/NAME.json.
    Bench(bench::BenchArgs),
    /// Put load of all kinds on a guest's processes for some minutes, and look at what must have stayed as it was.
    Soak(soak::SoakArgs),
    /// Build images twice with everything different that must not matter, and compare every byte.
    Repro(repro::ReproArgs),
    /// Give invented bytes to every reader of hostile bytes, for so much processor time each.
    Fuzz(fuzz::FuzzArgs),
}

fn main() -> ExitCode {
    process::watch_for_interrupts();
    let result = match Cli::parse().task {
        Task::Setup => setup::run(),
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Layers => layers::run(),
        Task::StockVerifier => stock_verifier::run(),
        Task::Schemathesis => schemathesis::run(),
        Task::Wasm(args) => wasm::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Soak(args) => match soak::run(&args) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::from(REFUSED),
            Err(error) => Err(error),
        },
        Task::Repro(args) => match repro::run(&args) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::from(REFUSED),
            Err(error) => Err(error),
        },
        Task::Fuzz(args) => fuzz::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What was judged and refused, as everywhere.
const REFUSED: u8 = 2;
