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
    Quotes(Out),
    /// Make the cases of GPUs anew.
    Gpus(Out),
    /// Make the cases of model packs anew.
    Models(Out),
    /// Print the page that lists all cases (`docs/attacks.md`).
    Page,
}

#[derive(clap::Args)]
struct Out {
    /// Directory of all cases.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let (count, out) = match Cli::parse().command {
        Command::Quotes(Out { out }) => (attacks::generate::quotes(&out)?, out),
        Command::Gpus(Out { out }) => (attacks::generate::gpus(&out)?, out),
        Command::Models(Out { out }) => (attacks::generate::models(&out)?, out),
        Command::Page => {
            print!("{}", attacks::page::render(&attacks::case::committed())?);
            return Ok(());
        }
    };
    println!("made {count} cases in {}", out.display());
    Ok(())
}
