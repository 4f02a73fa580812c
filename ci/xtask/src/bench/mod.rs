// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench [NAME]`: figures as ratios against a limit or a peer of the same run, in target/bench/NAME.json.

mod attestation;
mod demo;
mod figure;
mod host;
mod image;
mod inference;
mod measure;
mod plot;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{bench::figure::Figure, workspace};

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure; everything, one after another, when it is left out.
    #[arg(value_enum)]
    name: Option<Bench>,
    /// Build the image with an empty cache, and measure that, too: a quarter of an hour.
    #[arg(long)]
    cold: bool,
    /// Of `host` and `inference`: only try that it runs, with programs as they are built for tests.
    #[arg(long)]
    quick: bool,
    /// Of `inference`: build what it runs, and stop.
    #[arg(long)]
    prepare: bool,
    /// Of `host`: only the boots, with programs as they are built for tests.
    #[arg(long, conflicts_with = "quick")]
    boots: bool,
    /// Of `inference` and `host`: write its plots to docs/img, too.
    #[arg(long)]
    publish: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Registers, replay and release verification, in one process on one core.
    Measure,
    /// The image: building it, its size, booting it on machines of several shapes.
    Image,
    /// The attestation service: appraisal against `dcap-qvl`, releases under load, memory.
    Attestation,
    /// The demo: its phases, the image's size, the guest's memory.
    Demo,
    /// The engine against llama.cpp called plainly; what attestation, encryption and TLS cost.
    Inference,
    /// The host agent: launches, its idle daemon, filling the model cache, boots by memory and vCPUs.
    Host,
}

/// Figures, and whatever else says what was measured.
struct Outcome {
    figures: Vec<Figure>,
    details: serde_json::Map<String, Value>,
}

/// Measures and writes the figures. A goal that is missed is shown, not an error: machines are noisy.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let benches = args.name.map_or_else(|| Bench::value_variants().to_vec(), |name| vec![name]);
    benches.into_iter().try_for_each(|bench| bench.run(args))
}

impl Bench {
    fn run(self, args: &BenchArgs) -> anyhow::Result<()> {
        let name = match self {
            Self::Measure => "measure",
            Self::Image => "image",
            Self::Attestation => "attestation",
            Self::Demo => "demo",
            Self::Host => "host",
            Self::Inference => "inference",
        };
        let Outcome { figures, mut details } = match self {
            Self::Measure => measure::run()?,
            Self::Image => image::run(args.cold)?,
            Self::Attestation => attestation::run()?,
            Self::Demo => demo::run()?,
            Self::Host => {
                let BenchArgs { quick, boots, publish, .. } = *args;
                host::run(host::Manner { quick, boots, publish })?
            }
            Self::Inference => {
                let BenchArgs { quick, prepare, publish, .. } = *args;
                inference::run(inference::Manner { quick, prepare, publish })?
            }
        };
        for figure in &figures {
            eprintln!("{}", figure.line());
        }
        let figures: Vec<_> = figures.iter().map(Figure::document).collect();
        details.insert("figures".to_owned(), figures.into());
        details.insert("machine".to_owned(), machine());
        write(name, &Value::Object(details))
    }
}

/// Writes target/bench/NAME.json, and the document as the last line of the output.
fn write(name: &str, result: &Value) -> anyhow::Result<()> {
    let directory = workspace::target()?.join("bench");
    std::fs::create_dir_all(&directory).context("bench directory")?;
    let path = directory.join(format!("{name}.json"));
    let temporary = path.with_extension("json.new");
    std::fs::write(&temporary, format!("{result:#}\n"))
        .and_then(|()| std::fs::rename(&temporary, &path))
        .context("bench result")?;
    println!("{result}");
    eprintln!("written to {}", path.display());
    Ok(())
}

/// What the figures were measured on, without names of hosts or users.
pub(crate) fn machine() -> Value {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    json!({ "processor": model, "cores": cores, "load": load, "accelerator": "tcg", "hardware": "simulated" })
}
