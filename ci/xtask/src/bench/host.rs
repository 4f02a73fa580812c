// SPDX-License-Identifier: Apache-2.0
//! The figures of the host agent: what `agent-tests`' program measures with stand-ins for QEMU, and boots of the image
//! on machines of several sizes.

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Figure, Outcome, image};
use crate::demo::scene::Machine;
use crate::{process, workspace};

/// What the program prints.
#[derive(Deserialize)]
struct Document {
    figures: Vec<Figure>,
    guests: Value,
    rounds: Value,
    quick: Value,
}

/// `quick`: programs as they are built for tests, few rounds, no boots. Shows that it runs; its figures are none.
pub(super) fn run(quick: bool) -> anyhow::Result<Outcome> {
    let mut build = process::command("cargo");
    build.args(["build", "--locked", "--package", "agent-tests", "--bins"]).current_dir(workspace::root()?);
    if !quick {
        build.arg("--release");
    }
    process::run("build of the bench", &mut build)?;
    let target = workspace::target()?;
    let programs = target.join(if quick { "debug" } else { "release" });
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
    let mut details: Map<String, Value> = details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    if !quick {
        details.insert("boots".to_owned(), image::boots(&MACHINES)?.into());
    }
    Ok(Outcome { figures, details })
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
