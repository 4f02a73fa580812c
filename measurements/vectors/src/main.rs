// SPDX-License-Identifier: Apache-2.0
//! Makes test data.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use release::Hardware;
use types::{Device, MachineShape, QemuVersion, shape::ShapeFacts};

/// Makes test data.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  cargo run -p vectors -- generate --out attacks\n  cargo run -p vectors -- statement --profile sample --out statement.json"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make all attacks anew, with new keys. To replace the committed ones, move the directory `attacks` away first.
    Generate {
        /// Directory to make.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Write a release statement about a small image, valid now.
    Statement {
        /// Name of the profile that the statement speaks of.
        #[arg(long)]
        profile: String,
        /// Where it goes.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Generate { out } => {
            let count = vectors::generate::generate(&out)?;
            println!("made {count} cases in {}", out.display());
            Ok(())
        }
        Command::Statement { profile, out } => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
            let qemu = QemuVersion { major: 10, minor: 1 };
            let devices = vec![Device::ConfigDisk, Device::Vsock];
            let shape = MachineShape::new(ShapeFacts { vcpus: 2, memory_mib: 2048, physical_bits: 46, qemu, devices })?;
            let mut statement = sample_release::statement(Hardware::Simulated, &[shape], now);
            statement.predicate.profile = profile;
            std::fs::write(&out, statement.to_canonical()?).with_context(|| out.display().to_string())
        }
    }
}
