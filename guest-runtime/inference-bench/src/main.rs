// SPDX-License-Identifier: Apache-2.0
//! Measures what attestation, encryption and TLS cost an answer, and prints it as one JSON document;
//! `cargo xtask bench inference` runs it and judges.
//!
//! The guest's processes are the real ones, but the attester's quote device: it is simulated, makes one quote after the
//! other, and takes 40 ms for each. The peer without attestation is a plain HTTP server over the same engine program.
//! Clients verify everything that a client verifies, on the same cores.

mod channel;
mod guest;
mod plain;
mod policy;
mod programs;
mod weights;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(after_help = "Example:\n  inference-bench measure --engine engine --serve serve --model model.gguf --quick")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure all of it.
    Measure(Measure),
    /// A guest's attester over a simulated device, until standard input ends.
    #[command(hide = true)]
    Attester {
        /// Where its socket and the simulated platform's collateral go.
        #[arg(long)]
        directory: PathBuf,
    },
    /// The peer: plain HTTP over an engine, until standard input ends.
    #[command(hide = true)]
    Plain {
        /// The engine's socket.
        #[arg(long)]
        engine_socket: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Measure {
    /// The engine's program.
    #[arg(long)]
    engine: PathBuf,
    /// The API's program.
    #[arg(long)]
    serve: PathBuf,
    /// A GGUF file.
    #[arg(long)]
    model: PathBuf,
    /// Threads of the engine.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=512))]
    threads: u16,
    /// Only see that it runs: few rounds, few connections, a small pack.
    #[arg(long)]
    quick: bool,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Measure(arguments) => measure(&arguments),
        Command::Attester { directory } => guest::attester(&directory),
        Command::Plain { engine_socket } => {
            // As many workers as `serve` has.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(plain::serve(&engine_socket))
        }
    }
}

fn measure(arguments: &Measure) -> anyhow::Result<()> {
    let weights = weights::measure(arguments.quick)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut document = runtime.block_on(channel::measure(arguments))?;
    if let Some(fields) = document.as_object_mut() {
        fields.insert("weights".to_owned(), weights);
    }
    println!("{document}");
    Ok(())
}
