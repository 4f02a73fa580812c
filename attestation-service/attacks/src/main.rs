// SPDX-License-Identifier: Apache-2.0
//! Makes the committed cases.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Makes the committed attacks.
#[derive(Parser)]
#[command(after_help = "Examples:\n  cargo run -p attacks -- quotes --out attestation-service/attacks/vectors")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the cases of quotes and collateral anew, with new keys, over those that are there.
    Quotes {
        /// Directory of all cases.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    let Command::Quotes { out } = Cli::parse().command;
    let count = attacks::generate::quotes(&out)?;
    println!("made {count} cases in {}", out.display());
    Ok(())
}
