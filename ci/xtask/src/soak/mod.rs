// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask soak NAME`: load and deaths for a long time, in target/bench/soak-NAME.json.

mod host;
mod inference;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use crate::workspace;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cargo xtask soak inference\n  cargo xtask soak inference --minutes 3 --seed 7 --json\n  cargo \
                  xtask soak host --kills 100 --upgrade\n\nThe exit code is 2 where a check failed."
)]
pub(crate) struct SoakArgs {
    #[command(subcommand)]
    name: Soaked,
}

#[derive(Debug, Subcommand)]
enum Soaked {
    /// serve, the engine with a real model and the attester over a simulated device, as processes of this machine; clients
    /// that leave, that are killed, and that ask for what is refused.
    Inference(inference::InferenceArgs),
    /// The host agent's daemon with two booted guests on simulated hardware, whose processes and its own are killed at random;
    /// an upgrade under load.
    Host(host::HostArgs),
}

/// Gives whether all checks hold.
pub(crate) fn run(args: &SoakArgs) -> anyhow::Result<bool> {
    match &args.name {
        Soaked::Inference(args) => inference::run(args),
        Soaked::Host(args) => host::run(args),
    }
}

/// Writes a result to target/bench, whole or not at all.
fn write(name: &str, text: &str) -> anyhow::Result<()> {
    let directory = workspace::target()?.join("bench");
    std::fs::create_dir_all(&directory).context("directory of results")?;
    let (path, temporary) = (directory.join(name), directory.join(format!("{name}.new")));
    std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, &path)).context("result")?;
    eprintln!("written to {}", path.display());
    Ok(())
}
