// SPDX-License-Identifier: Apache-2.0
//! Measures what attestation, encryption and TLS cost an answer, and prints it as one JSON document;
//! `cargo xtask bench inference` runs it and judges.
//!
//! The guest's processes are the real ones, but the attester's quote device: it is simulated, makes one quote after the
//! other, and takes 40 ms for each. The peer without attestation is a plain HTTP server over the same engine program.
//! Clients verify everything that a client verifies, on the same cores.
//!
//! The same guest stands mixed load for as long as one likes, with clients that leave, that are killed and that ask for
//! what is refused; then what must have stayed as it was is looked at. `cargo xtask soak inference` runs that.

mod channel;
mod guest;
mod plain;
mod policy;
mod programs;
mod soak;
mod weights;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    after_help = "Examples:\n  inference-bench measure --engine engine --serve serve --model model.gguf --quick\n  \
                  inference-bench soak --engine engine --serve serve --model model.gguf --minutes 3 --seed 7\n\nThe exit \
                  code of soak is 2 where a check failed."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure all of it.
    Measure(Measure),
    /// Load of all kinds for some minutes, and what must be true afterwards.
    Soak(soak::Soak),
    /// One client that asks until it is killed.
    #[command(hide = true)]
    Client {
        /// Where the simulated platform's collateral is.
        #[arg(long)]
        directory: PathBuf,
        /// The guest.
        #[arg(long)]
        upstream: SocketAddr,
        /// Of what it asks.
        #[arg(long)]
        seed: u64,
    },
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

/// What the guest is made of.
#[derive(Debug, clap::Args)]
struct Binaries {
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
}

#[derive(Debug, clap::Args)]
struct Measure {
    #[command(flatten)]
    binaries: Binaries,
    /// Only see that it runs: few rounds, few connections, a small pack.
    #[arg(long)]
    quick: bool,
    /// These parts alone.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
}

/// Of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Weights,
    FirstToken,
    Throughput,
    Challenges,
}

impl Measure {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Measure(arguments) => measure(&arguments)?,
        Command::Attester { directory } => guest::attester(&directory)?,
        Command::Plain { engine_socket } => runtime()?.block_on(plain::serve(&engine_socket))?,
        Command::Client { directory, upstream, seed } => {
            runtime()?.block_on(soak::client(&directory, upstream, seed))?;
        }
        Command::Soak(arguments) => {
            if !runtime()?.block_on(soak::run(&arguments))? {
                return Ok(ExitCode::from(REFUSED));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// With as many workers as `serve` has.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

fn measure(arguments: &Measure) -> anyhow::Result<()> {
    let mut document = serde_json::Map::new();
    if arguments.wants(Part::Weights) {
        document.insert("weights".to_owned(), weights::measure(arguments.quick)?);
    }
    if arguments.only != [Part::Weights] {
        runtime()?.block_on(channel::measure(arguments, &mut document))?;
    }
    println!("{}", serde_json::Value::Object(document));
    Ok(())
}

const REFUSED: u8 = 2;
