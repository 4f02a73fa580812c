// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask soak NAME`: load for a long time, in target/bench/soak-NAME.json.

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::{guest_programs, process, workspace};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cargo xtask soak inference\n  cargo xtask soak inference --minutes 3 --seed 7 --json\n\nThe exit \
                  code is 2 where a check failed."
)]
pub(crate) struct SoakArgs {
    /// What is put under load.
    #[arg(value_enum)]
    name: Soaked,
    /// How long.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_080))]
    minutes: u32,
    /// Of what the clients do; drawn and shown where it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// The image's profile that the engine is compiled for: `cpu` is faster, and needs a processor with AVX-512.
    #[arg(long, default_value = "sim")]
    profile: String,
    /// Print one JSON document as the last line of standard output.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Soaked {
    /// serve, the engine with a real model and the attester over a simulated device, as processes of this machine; clients
    /// that leave, that are killed, and that ask for what is refused.
    Inference,
}

/// Gives whether all checks hold.
pub(crate) fn run(args: &SoakArgs) -> anyhow::Result<bool> {
    let Soaked::Inference = args.name;
    let (engine, model) = (guest_programs::engine(&args.profile, &["--bin", "engine"])?, guest_programs::model()?);
    let mut build = process::command("cargo");
    build.args(["build", "--locked", "--package", "inference-bench", "--package", "serve", "--bins"]);
    process::run("build of the soak", build.current_dir(workspace::root()?))?;
    let target = workspace::target()?;
    let programs = target.join("debug");
    // As it was when the run began: somebody may build it again meanwhile.
    let room = tempfile::tempdir().context("temporary directory")?;
    let own = room.path().join("engine");
    std::fs::copy(engine.join("engine"), &own).context("the engine's program")?;
    let mut soak = process::command(programs.join("inference-bench"));
    soak.arg("soak").arg("--engine").arg(own).arg("--serve").arg(programs.join("serve")).arg("--model").arg(model);
    soak.args(["--minutes", &args.minutes.to_string()]);
    soak.args(args.seed.map(|seed| format!("--seed={seed}")));
    let (text, status) = process::output("soak", &mut soak)?;
    let line = text.lines().last().with_context(|| format!("soak: ended with {status}"))?;
    let document: Value = serde_json::from_str(line).context("soak: its last line is no JSON")?;
    let accepted = document.get("accepted").and_then(Value::as_bool).context("soak: no verdict")?;
    anyhow::ensure!(accepted == status.success(), "soak: its verdict and {status} do not agree");
    write(&target.join("bench"), "soak-inference.json", line)?;
    if args.json {
        println!("{line}");
    }
    Ok(accepted)
}

fn write(directory: &std::path::Path, name: &str, text: &str) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).context("directory of results")?;
    let (path, temporary) = (directory.join(name), directory.join(format!("{name}.new")));
    std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, &path)).context("result")?;
    eprintln!("written to {}", path.display());
    Ok(())
}
