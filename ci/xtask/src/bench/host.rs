// SPDX-License-Identifier: Apache-2.0
//! The figures of the host agent: what `agent-tests`' program measures with stand-ins for QEMU, and boots of the image
//! on machines of several sizes.

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::plot::{Chart, places};
use super::{Figure, Outcome, image};
use crate::demo::scene::Machine;
use crate::{process, programs, workspace};

/// What the program prints.
#[derive(Deserialize)]
struct Document {
    figures: Vec<Figure>,
    guests: Value,
    rounds: Value,
    quick: Value,
}

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// Programs as they are built for tests, few rounds, no boots. Shows that it runs; its figures are none.
    pub(super) quick: bool,
    /// The boots alone.
    pub(super) boots: bool,
    /// Plots go to docs/img, too.
    pub(super) publish: bool,
}

pub(super) fn run(manner: Manner) -> anyhow::Result<Outcome> {
    let Manner { quick, boots, publish } = manner;
    let Outcome { figures, mut details } =
        if boots { Outcome { figures: Vec::new(), details: Map::new() } } else { costs(quick)? };
    if !quick {
        let boots = image::boots(&MACHINES)?;
        plots(&boots, publish)?;
        details.insert("boots".to_owned(), boots.into());
    }
    Ok(Outcome { figures, details })
}

/// What the agent itself costs.
fn costs(quick: bool) -> anyhow::Result<Outcome> {
    let names = ["host-bench", "agent-under-test", "stand-in"];
    let programs = if quick { programs::build(&names)? } else { programs::release(&names)? };
    let target = workspace::target()?;
    let mut bench = process::command(programs.join("host-bench"));
    // On the disk that the workspace is on: a temporary directory may be memory, which syncs for nothing.
    bench.arg("--directory").arg(&target);
    if quick {
        bench.arg("--quick");
    }
    let document = process::json_with_progress("host-bench", &mut bench)?;
    let Document { figures, guests, rounds, quick: hurried } =
        serde_json::from_value(document).context("host-bench")?;
    let details = [("guests", guests), ("rounds", rounds), ("quick", hurried)];
    let details = details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Ok(Outcome { figures, details })
}

/// Charts of the boots that came to serving: by memory, and by vCPUs.
fn plots(boots: &[Value], publish: bool) -> anyhow::Result<()> {
    let places = places(publish)?;
    let charts = [
        (
            "host-boot-memory.svg",
            "Boot by memory",
            "GiB, 2 vCPUs",
            column(boots, |m| m.vcpus == 2, |m| f64::from(m.memory_mib) / 1024.0),
        ),
        (
            "host-boot-vcpus.svg",
            "Boot by vCPUs",
            "vCPUs, 1 GiB",
            column(boots, |m| m.memory_mib == 1024, |m| f64::from(m.vcpus)),
        ),
    ];
    for (file, title, x_label, points) in charts {
        let (x, seconds): (Vec<f64>, Vec<f64>) = points.into_iter().unzip();
        let title = format!("{title} (emulated, simulated hardware)");
        let chart = Chart { title: &title, x_label, y_label: "s until it serves", x, lines: vec![("sim", seconds)] };
        chart.save(file, &places)?;
    }
    Ok(())
}

/// What differs between machines of a sort, in order, and the seconds until each served.
fn column(boots: &[Value], sort: impl Fn(&Machine) -> bool, of: impl Fn(&Machine) -> f64) -> Vec<(f64, f64)> {
    let seconds = |machine: &Machine| {
        let has = |boot: &Value, name: &str, value: u64| boot.get(name).and_then(Value::as_u64) == Some(value);
        let Machine { vcpus, memory_mib } = *machine;
        let same = |boot: &&Value| has(boot, "vcpus", vcpus.into()) && has(boot, "memory_mib", memory_mib.into());
        boots.iter().find(same)?.get("serving_after_seconds")?.as_f64()
    };
    let machines = MACHINES.iter().filter(|machine| sort(machine));
    let mut points: Vec<_> = machines.filter_map(|machine| Some((of(machine), seconds(machine)?))).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// More memory with two vCPUs, then more vCPUs with 1 GiB.
const MACHINES: [Machine; 8] = [
    Machine { vcpus: 2, memory_mib: 1024 },
    Machine { vcpus: 2, memory_mib: 2048 },
    Machine { vcpus: 2, memory_mib: 4096 },
    Machine { vcpus: 2, memory_mib: 8192 },
    Machine { vcpus: 2, memory_mib: 16_384 },
    Machine { vcpus: 1, memory_mib: 1024 },
    Machine { vcpus: 4, memory_mib: 1024 },
    Machine { vcpus: 8, memory_mib: 1024 },
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_chart_has_the_machines_that_served() {
        let boot = |vcpus, memory, seconds: Option<f64>| json!({ "vcpus": vcpus, "memory_mib": memory, "serving_after_seconds": seconds });
        let boots = [boot(2, 1024, Some(20.5)), boot(2, 2048, None), boot(1, 1024, Some(30.0))];
        assert_eq!(column(&boots, |m| m.vcpus == 2, |m| f64::from(m.memory_mib)), [(1024.0, 20.5)]);
        assert_eq!(column(&boots, |m| m.memory_mib == 1024, |m| f64::from(m.vcpus)), [(1.0, 30.0), (2.0, 20.5)]);
    }
}
