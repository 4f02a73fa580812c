// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask soak inference`: the load is that of `inference-bench soak`.

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;

use crate::guest_programs::Compiled;
use crate::{guest_programs, process, programs};

#[derive(Debug, Args)]
pub(super) struct InferenceArgs {
    /// How long.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_080))]
    minutes: u32,
    /// Of what the clients do; drawn and shown where it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// How the engine is compiled; without it the fastest that this processor runs.
    #[arg(long, value_enum)]
    compiled: Option<Compiled>,
    /// Threads of the engine; without it one less than there are processors. Its threads wait for each other without sleeping:
    /// where all processors are its own, whatever else runs stops all of them.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=512))]
    threads: Option<u16>,
    /// Print one JSON document as the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// Gives whether all checks hold.
pub(super) fn run(args: &InferenceArgs) -> anyhow::Result<bool> {
    let compiled = args.compiled.unwrap_or_else(Compiled::for_this_processor);
    let (engine, model) = (guest_programs::engine(compiled, &["--bin", "engine"])?, guest_programs::model()?);
    let programs = programs::build(&["inference-bench", "serve"])?;
    // As it was when the run began: somebody may build it again meanwhile.
    let room = tempfile::tempdir().context("temporary directory")?;
    let own = room.path().join("engine");
    std::fs::copy(engine.join("engine"), &own).context("the engine's program")?;
    let mut soak = process::command(programs.join("inference-bench"));
    soak.arg("soak").arg("--engine").arg(own).arg("--serve").arg(programs.join("serve")).arg("--model").arg(model);
    soak.args(["--minutes", &args.minutes.to_string()]);
    let processors =
        std::thread::available_parallelism().map_or(1, |count| u16::try_from(count.get()).unwrap_or(u16::MAX));
    let threads = args.threads.unwrap_or(processors.saturating_sub(1).max(1));
    soak.args(["--threads", &threads.to_string()]);
    soak.args(args.seed.map(|seed| format!("--seed={seed}")));
    let (text, status) = process::output("soak", &mut soak)?;
    let line = text.lines().last().with_context(|| format!("soak: ended with {status}"))?;
    let document: Value = serde_json::from_str(line).context("soak: its last line is no JSON")?;
    let accepted = document.get("accepted").and_then(Value::as_bool).context("soak: no verdict")?;
    anyhow::ensure!(accepted == status.success(), "soak: its verdict and {status} do not agree");
    super::write("soak-inference.json", line)?;
    if args.json {
        println!("{line}");
    }
    Ok(accepted)
}
