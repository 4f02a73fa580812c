// SPDX-License-Identifier: Apache-2.0
//! Measures what `cargo xtask bench attestation` reports and prints it as one JSON document:
//! `{figures: [{name, value, unit, against, ratio, goal, holds}], …}`.
//!
//! The appraisal is measured in one thread, in processor time, in turns with `dcap-qvl`'s own verification of the same
//! quote. The service is measured as a program of its own, over TLS on loopback, with its files on a real disk; the
//! guests that ask run on the same cores, so what it could do alone is told from its processor time. One guest for each
//! running service opens its key and verifies its entry's proof; those that make the load look at the status alone.

mod appraisal;
mod caller;
mod figure;
mod gpu;
mod load;

use std::path::PathBuf;

use clap::Parser;
use serde_json::json;

#[derive(Debug, Parser)]
struct Arguments {
    /// The service's program (`attestation-bench-service`).
    #[arg(long)]
    service: PathBuf,
    /// Where the store is made: on the disk that is to be measured.
    #[arg(long)]
    directory: PathBuf,
    /// Seconds for each load.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Rounds of the appraisal; figures are medians.
    #[arg(long, default_value_t = 1001, value_parser = clap::value_parser!(u16).range(3..=10_000))]
    rounds: u16,
    /// The directory of recorded evidence; what needs it is left out where there is none.
    #[arg(long)]
    vectors: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let scene = attestation_bench::Scene::new_in(&arguments.directory)?;
    let mut figures = appraisal::measure(&scene, arguments.rounds)?;
    figures.append(&mut gpu::measure(&arguments.vectors, arguments.rounds)?);
    let (mut measured, growth) = load::measure(&scene, arguments.service, arguments.seconds)?;
    figures.append(&mut measured);
    let figures: Vec<_> = figures.iter().map(figure::Figure::document).collect();
    println!(
        "{}",
        json!({
            "figures": figures, "clients": growth, "clients_verify": false, "seconds": arguments.seconds,
            "rounds": arguments.rounds,
        })
    );
    Ok(())
}
