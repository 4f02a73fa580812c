// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask fuzz [TARGET]`: builds the fuzz targets, runs them one after another for so much processor time each,
//! and prints a table. What a run finds out stays in target/fuzz, so that the next one goes on from there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;

use crate::{process, workspace};

#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// One target; all, one after another, when it is left out.
    target: Option<String>,
    /// Seconds of processor time for each target.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Print one JSON document as the last line.
    #[arg(long)]
    json: bool,
}

/// Runs the targets; fails after the first that crashes, with the place of the input that did it.
pub(crate) fn run(args: &FuzzArgs) -> anyhow::Result<()> {
    let targets = match &args.target {
        None => TARGETS.to_vec(),
        Some(name) => {
            let known = TARGETS.iter().find(|target| target.name == name);
            vec![*known.with_context(|| format!("no fuzz target {name}; there are {}", names()))?]
        }
    };
    let places = Places::new()?;
    build(&places)?;
    let mut rows = Vec::new();
    for target in targets {
        eprintln!("== {}", target.name);
        let row = fuzz(&places, target, args.seconds).with_context(|| target.name)?;
        eprintln!("{}", row.line());
        rows.push(row);
    }
    eprintln!("\n{:<12} {:>9} {:>14} {:>9} {:>9}", "target", "CPU s", "executions", "coverage", "inputs");
    rows.iter().for_each(|row| eprintln!("{}", row.line()));
    if args.json {
        let rows: Vec<_> = rows.iter().map(Row::document).collect();
        println!("{}", json!({ "targets": rows }));
    }
    Ok(())
}

/// A target and the longest input that is worth its time.
#[derive(Debug, Clone, Copy)]
struct Target {
    name: &'static str,
    max_len: u32,
}

struct Places {
    root: PathBuf,
    /// Committed first inputs.
    corpus: PathBuf,
    /// Build output and what runs find out.
    work: PathBuf,
    tools: PathBuf,
}

impl Places {
    fn new() -> anyhow::Result<Self> {
        let (root, target) = (workspace::root()?, workspace::target()?);
        Ok(Self { corpus: root.join("ci/fuzz/corpus"), work: target.join("fuzz"), tools: target.join("tools"), root })
    }

    fn binary(&self, target: Target) -> PathBuf {
        self.work.join("build").join(TRIPLE).join("release").join(target.name)
    }
}

/// What one target's run came to.
#[derive(Debug, Default)]
struct Row {
    target: String,
    cpu: Duration,
    executions: u64,
    coverage: u64,
    inputs: u64,
}

impl Row {
    fn line(&self) -> String {
        let Self { target, cpu, executions, coverage, inputs } = self;
        format!("{target:<12} {:>9.1} {executions:>14} {coverage:>9} {inputs:>9}", cpu.as_secs_f64())
    }

    fn document(&self) -> serde_json::Value {
        let Self { target, cpu, executions, coverage, inputs } = self;
        let cpu = cpu.as_secs_f64();
        json!({ "target": target, "cpu_seconds": cpu, "executions": executions, "coverage": coverage, "inputs": inputs })
    }

    /// Takes libFuzzer's own words: `cov: N ft: N corp: N/..` and `stat::number_of_executed_units: N`.
    fn add(&mut self, log: &str) {
        let words: Vec<&str> = log.split_whitespace().collect();
        for pair in words.windows(2) {
            let [key, value] = pair else { continue };
            let digits = value.split('/').next().unwrap_or_default();
            let Ok(number) = digits.parse::<u64>() else { continue };
            match *key {
                "cov:" => self.coverage = number,
                "corp:" => self.inputs = number,
                "stat::number_of_executed_units:" => self.executions += number,
                _ => {}
            }
        }
    }
}

/// Runs one target in turns until it had its processor time.
fn fuzz(places: &Places, target: Target, seconds: u64) -> anyhow::Result<Row> {
    let [grown, artifacts] = ["corpus", "artifacts"].map(|name| places.work.join(name).join(target.name));
    for directory in [&grown, &artifacts] {
        std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    let limit = Duration::from_secs(seconds);
    let mut row = Row { target: target.name.to_owned(), ..Row::default() };
    while row.cpu < limit {
        let turn = (limit - row.cpu).as_secs().clamp(MIN_TURN, MAX_TURN);
        let mut log = tempfile::tempfile().context("log")?;
        let mut command = process::command(places.binary(target));
        command.arg(&grown).arg(places.corpus.join(target.name)).args(LIMITS);
        command.arg(format!("-max_len={}", target.max_len)).arg(format!("-max_total_time={turn}"));
        command.arg(format!("-artifact_prefix={}/", artifacts.display()));
        command.stdout(Stdio::null()).stderr(log.try_clone().context("log")?).env("ASAN_OPTIONS", ASAN);
        let before = children_cpu()?;
        let mut child = command.spawn().context("cannot start the fuzz target")?;
        let status = process::wait(&mut child, None)?;
        row.cpu += children_cpu()?.saturating_sub(before);
        std::io::Seek::rewind(&mut log).context("log")?;
        let log = std::io::read_to_string(log).context("log")?;
        row.add(&log);
        if !status.success() {
            let tail: Vec<&str> = log.lines().rev().take(TAIL).collect();
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
            anyhow::bail!("crashed ({status}); the input is in {}", artifacts.display());
        }
    }
    Ok(row)
}

/// Processor time of all ended children.
fn children_cpu() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    let of = |time: nix::sys::time::TimeVal| -> anyhow::Result<Duration> {
        Ok(Duration::from_secs(time.tv_sec().try_into()?) + Duration::from_micros(time.tv_usec().try_into()?))
    };
    Ok(of(usage.user_time())? + of(usage.system_time())?)
}

/// Builds all targets with the nightly toolchain, whose libFuzzer and sanitizer they need.
fn build(places: &Places) -> anyhow::Result<()> {
    let nightly = Command::new("cargo").arg("+nightly").arg("--version").output();
    anyhow::ensure!(
        nightly.is_ok_and(|output| output.status.success()),
        "fuzzing needs the nightly toolchain: rustup toolchain install nightly --profile minimal"
    );
    let cargo_fuzz = cargo_fuzz(&places.tools)?;
    let mut command = process::command(cargo_fuzz);
    command.args(["fuzz", "build", "--fuzz-dir", "ci/fuzz", "--target", TRIPLE, "--target-dir"]);
    command.arg(places.work.join("build")).current_dir(&places.root).env("RUSTUP_TOOLCHAIN", "nightly");
    process::run("build of the fuzz targets", &mut command)
}

/// The program cargo-fuzz, installed for this repository alone where it is missing.
fn cargo_fuzz(tools: &Path) -> anyhow::Result<PathBuf> {
    let own = tools.join("bin/cargo-fuzz");
    if own.is_file() {
        return Ok(own);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|directory| directory.join("cargo-fuzz")).find(|p| p.is_file());
    if let Some(installed) = installed {
        return Ok(installed);
    }
    eprintln!("installing cargo-fuzz {CARGO_FUZZ} below {}", tools.display());
    let mut install = process::command("cargo");
    install.args(["install", "cargo-fuzz", "--version", CARGO_FUZZ, "--locked", "--root"]).arg(tools);
    process::run("installation of cargo-fuzz", &mut install)?;
    Ok(own)
}

fn names() -> String {
    TARGETS.map(|target| target.name).join(", ")
}

const TARGETS: [Target; 25] = [
    Target { name: "quote", max_len: 6000 },
    Target { name: "event_log", max_len: 8192 },
    Target { name: "kernel", max_len: 4096 },
    Target { name: "firmware", max_len: 12_288 },
    Target { name: "tile_log", max_len: 4096 },
    Target { name: "document", max_len: 8192 },
    Target { name: "statement", max_len: 16_384 },
    Target { name: "bundle", max_len: 24_576 },
    Target { name: "verification", max_len: 120 },
    Target { name: "collateral", max_len: 12_288 },
    Target { name: "service", max_len: 8192 },
    Target { name: "policy", max_len: 4096 },
    Target { name: "explanation", max_len: 4096 },
    Target { name: "gpu", max_len: 6144 },
    Target { name: "answers", max_len: 4096 },
    Target { name: "audit", max_len: 4096 },
    Target { name: "archive", max_len: 121 },
    Target { name: "ear", max_len: 4096 },
    Target { name: "rules", max_len: 2048 },
    Target { name: "wrapping", max_len: 2048 },
    Target { name: "api", max_len: 4096 },
    Target { name: "pack", max_len: 4096 },
    Target { name: "certificate", max_len: 4096 },
    Target { name: "frames", max_len: 4096 },
    Target { name: "stream", max_len: 4096 },
];
/// An input may take 20 s, 1 GiB in all and 256 MiB at once.
const LIMITS: [&str; 4] = ["-timeout=20", "-rss_limit_mb=1024", "-malloc_limit_mb=256", "-print_final_stats=1"];
/// The embedded database has a table of one name in two functions, which the sanitizer takes for two of one object.
const ASAN: &str = "detect_odr_violation=0";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const CARGO_FUZZ: &str = "0.13.2";
/// A turn's seconds: libFuzzer counts real time, and other programs may have the processor.
const MIN_TURN: u64 = 2;
const MAX_TURN: u64 = 120;
/// Lines of a crash that are shown.
const TAIL: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_adds_up_turns() {
        let mut row = Row::default();
        row.add("#2 INITED cov: 10 ft: 11 corp: 3/45b exec/s: 0\n#9 DONE   cov: 12 ft: 13 corp: 4/50b\nstat::number_of_executed_units: 9");
        row.add("stat::number_of_executed_units: 5");
        assert_eq!((row.coverage, row.inputs, row.executions), (12, 4, 14));
    }

    #[test]
    fn every_target_of_the_fuzz_workspace_is_listed() {
        let manifest = std::fs::read_to_string(workspace::root().unwrap().join("ci/fuzz/Cargo.toml")).unwrap();
        let listed: Vec<_> = manifest.lines().filter(|line| line.starts_with("path = \"fuzz_targets/")).collect();
        assert_eq!(listed.len(), TARGETS.len());
        for target in TARGETS {
            assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
        }
    }
}
