// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench NAME`: figures as ratios against a limit or a peer of the same run, in target/bench/NAME.json.

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{process, workspace};

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure.
    #[arg(value_enum, default_value_t = Bench::Demo)]
    name: Bench,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// The demo: its phases, the image's size, the guest's memory.
    Demo,
}

/// Measures and writes the figures. A goal that is missed is shown, not an error: machines are noisy.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let Bench::Demo = args.name;
    let mut demo = process::command(std::env::current_exe().context("this program")?);
    let document = process::json("demo", demo.args(["demo", "--json"]))?;
    let figures = demo_figures(&document)?;
    for figure in &figures {
        eprintln!("{}", figure.line());
    }
    let figures: Vec<_> = figures.iter().map(Figure::document).collect();
    let result = json!({ "figures": figures, "machine": machine() });
    let directory = workspace::target()?.join("bench");
    std::fs::create_dir_all(&directory).context("bench directory")?;
    let (path, temporary) = (directory.join("demo.json"), directory.join("demo.json.new"));
    std::fs::write(&temporary, format!("{result:#}\n"))
        .and_then(|()| std::fs::rename(&temporary, &path))
        .context("bench result")?;
    println!("{result}");
    eprintln!("written to {}", path.display());
    Ok(())
}

struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    against: &'static str,
    ratio: Option<f64>,
    goal: Option<f64>,
}

impl Figure {
    fn holds(&self) -> Option<bool> {
        self.ratio.zip(self.goal).map(|(ratio, goal)| ratio <= goal)
    }

    fn line(&self) -> String {
        let verdict = match self.holds() {
            Some(true) => "holds",
            Some(false) => "MISSED",
            None => "",
        };
        let ratio = self.ratio.map(|r| format!("{r:.2} × {}", self.against)).unwrap_or_default();
        format!("{:<36} {:>10.1} {:<4} {ratio} {verdict}", self.name, self.value, self.unit)
    }

    fn document(&self) -> Value {
        json!({
            "name": self.name, "value": self.value, "unit": self.unit, "against": self.against,
            "ratio": self.ratio, "goal": self.goal, "holds": self.holds(),
        })
    }
}

fn demo_figures(document: &Value) -> anyhow::Result<Vec<Figure>> {
    let number = |pointer: &str| {
        document.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("demo: no {pointer}"))
    };
    let limit = |name: &str, value: f64, unit, against, max: f64| Figure {
        name: name.to_owned(),
        value,
        unit,
        against,
        ratio: Some(value / max),
        goal: Some(1.0),
    };
    let mut figures = vec![Figure {
        name: "warm run".to_owned(),
        value: number("/milliseconds")? / 1000.0,
        unit: "s",
        against: "sum of its parts",
        ratio: Some(number("/milliseconds")? / number("/parts_milliseconds")?.max(1.0)),
        goal: Some(1.3),
    }];
    figures.push(limit("kernel and initrd", number("/image/kernel_and_initrd_bytes")? / MIB, "MiB", "40 MiB", 40.0));
    figures.push(limit(
        "guest memory without the model",
        number("/guest_overhead_kib")? / 1024.0,
        "MiB",
        "150 MiB",
        150.0,
    ));
    for part in document.get("parts").and_then(Value::as_array).into_iter().flatten() {
        let name = part.get("name").and_then(Value::as_str).unwrap_or_default();
        let value = part.get("milliseconds").and_then(Value::as_f64).unwrap_or_default() / 1000.0;
        figures.push(Figure { name: name.to_owned(), value, unit: "s", against: "", ratio: None, goal: None });
    }
    Ok(figures)
}

/// What the figures were measured on, without names of hosts or users.
fn machine() -> Value {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    json!({ "processor": model, "cores": cores, "accelerator": "tcg", "hardware": "simulated" })
}

const MIB: f64 = 1024.0 * 1024.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_goal_is_shown_as_missed() {
        let document = json!({
            "milliseconds": 200, "parts_milliseconds": 100, "guest_overhead_kib": 1024,
            "image": { "kernel_and_initrd_bytes": 1 << 20 }, "parts": [{ "name": "boot", "milliseconds": 100 }],
        });
        let figures = demo_figures(&document).unwrap();
        assert_eq!(figures[0].holds(), Some(false));
        assert_eq!(figures[1].holds(), Some(true));
        assert_eq!(figures[3].holds(), None);
        assert!(demo_figures(&json!({})).is_err());
    }
}
