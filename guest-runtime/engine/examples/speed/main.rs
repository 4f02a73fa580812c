// SPDX-License-Identifier: Apache-2.0
//! Measures the engine against llama.cpp called plainly: one process, the same library, weights, threads and prompts, in
//! turns. Prints one JSON document; `cargo xtask bench inference` runs it as the image's profile compiles it, and judges.
//!
//! All rates are tokens a second and medians over rounds. The engine's include everything but the socket: tokens of the
//! text, its scheduler, its sampler. llama.cpp's begin with tokens.

mod measures;
mod ours;
mod peer;
mod run;
mod work;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use engine::Weights;

#[derive(Debug, Parser)]
#[command(after_help = "Example:\n  speed --model model.gguf --threads 2 --quick")]
struct Arguments {
    /// A GGUF file; without it, the one that CHRYSALIS_TEST_MODEL names.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Threads, of both sides, for prompts and answers.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=512))]
    threads: u16,
    /// Only see that it runs: one round, short answers.
    #[arg(long)]
    quick: bool,
    /// Rounds of each measurement.
    #[arg(long, conflicts_with = "quick", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// These measurements alone, by the names of their fields.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let Arguments { model, threads, quick, rounds, only } = Arguments::parse();
    let model = model.or_else(|| std::env::var_os("CHRYSALIS_TEST_MODEL").map(PathBuf::from));
    let weights = Weights::load(&model.context("no --model and no CHRYSALIS_TEST_MODEL")?)?;
    let document = measures::Bench::new(&weights, threads, rounds, quick).measure(&only)?;
    println!("{document}");
    Ok(())
}
