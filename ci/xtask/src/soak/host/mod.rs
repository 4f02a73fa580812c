// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask soak host`: the agent with two booted guests and a real attestation service. Processes are killed at random;
//! it must always come back to what is declared, and leave nothing over. Then an upgrade and its rollback under load.
//!
//! The guests are emulated, on simulated hardware, without GPUs: it shows nothing of KVM, VFIO or the kernel's vsock.

mod client;
mod holdings;
mod kills;
mod processes;
mod releases;
mod rig;
mod upgrade;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use crate::bench;
use crate::demo::programs::Programs;
use crate::demo::report::Report;
use crate::demo::scene::{Machine, Purpose, Scene};
use crate::{process, setup};
use rig::Rig;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cargo xtask soak host\n  cargo xtask soak host --kills 20 --seed 7 --json\n  cargo xtask soak \
                  host --kills 0 --upgrade"
)]
pub(super) struct HostArgs {
    /// How many processes are killed.
    #[arg(long, default_value_t = 100)]
    kills: u32,
    /// Of what is killed and when; drawn and shown where it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Kill for so long at most. What was not killed then fails a check.
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u32).range(1..=10_080))]
    minutes: u32,
    /// Exchange the release under load afterwards, have one fail to come up, and go back.
    #[arg(long)]
    upgrade: bool,
    /// Print one JSON document as the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// Gives whether all checks hold.
pub(super) fn run(args: &HostArgs) -> anyhow::Result<bool> {
    setup::check_platform()?;
    let mut report = Report::new(true);
    let programs = Programs::build(&mut report)?;
    let scene = Scene::prepare(&programs, &mut report, &[Machine::DEMO], Purpose::Answers)?;
    let seed = args.seed.unwrap_or_else(|| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) >> 16);
    eprintln!("seed {seed}");
    let document = soak(args, seed, &programs, &scene);
    if document.is_err() && process::check_interrupt().is_ok() {
        eprintln!("logs are kept in {}", scene.keep().display());
    }
    let document = document?;
    let accepted = document.get("accepted") == Some(&Value::Bool(true));
    super::write("soak-host.json", &document.to_string())?;
    for (name, holds) in document.get("checks").and_then(Value::as_object).into_iter().flatten() {
        eprintln!("{name:<24} {}", if *holds == Value::Bool(true) { "holds" } else { "FAILED" });
    }
    if args.json {
        println!("{document}");
    }
    if !accepted {
        eprintln!("logs are kept in {}", scene.keep().display());
    }
    Ok(accepted)
}

fn soak(args: &HostArgs, seed: u64, programs: &Programs, scene: &Scene) -> anyhow::Result<Value> {
    let start = Instant::now();
    let machine = bench::machine();
    processes::adopt_orphans()?;
    let mut rig = Rig::new(programs, scene, releases::first(scene))?;
    rig.start()?;
    rig.wait_serving(kills::CONVERGENCE).context("the first boot")?;
    let boot_seconds = start.elapsed().as_secs_f64();
    for guest in rig::GUESTS {
        client::verified_answer(&rig, guest)?;
    }
    let (baseline, wrong) = rig.settle(None, kills::SETTLE)?;
    anyhow::ensure!(wrong.is_empty(), "before the first kill: {wrong:?}");
    eprintln!("both guests serve after {boot_seconds:.1} s");
    let mut killed = kills::Outcome::default();
    if args.kills > 0 {
        let deadline = Instant::now() + Duration::from_secs(60) * args.minutes;
        let done = kills::run(&mut rig, &baseline, args.kills, seed, deadline, &mut killed);
        done.with_context(|| format!("seed {seed}, kills {:?}", killed.by_target()))?;
    }
    let upgraded = args.upgrade.then(|| upgrade::run(&mut rig)).transpose().context("upgrade under load")?;
    let (_, after_upgrade) = rig.settle(Some(&baseline), kills::SETTLE)?;
    let left = rig.stop_all()?;
    let killed_by = killed.by_target();
    let failed = upgraded.as_ref().map(upgrade::Upgraded::failed);
    let checks = json!({
        "kills_done": killed.kills.len() == usize::try_from(args.kills).unwrap_or(usize::MAX),
        "nothing_leaked": killed.convergences.iter().all(|convergence| convergence.leaks.is_empty()) && after_upgrade.is_empty(),
        "no_request_failed": failed.is_none_or(|(failed, _)| failed == 0),
        "one_guest_at_a_time": upgraded.as_ref().is_none_or(|upgraded| upgraded.at_once == 0),
        "releases_as_declared": upgraded.as_ref().is_none_or(|upgraded| upgraded.wrong.is_empty()),
        "nothing_left_over": left.is_empty(),
    });
    let accepted = checks.as_object().is_some_and(|checks| checks.values().all(|holds| *holds == Value::Bool(true)));
    let load_after = bench::machine();
    Ok(json!({
        "accepted": accepted, "hardware": "simulated", "seed": seed, "checks": checks,
        "minutes": start.elapsed().as_secs_f64() / 60.0, "boot_seconds": boot_seconds,
        "kills": killed_by, "moments": killed.by_moment(), "convergences": killed.convergences,
        "upgrade": upgraded, "requests_failed_of": failed, "leaks_at_the_end": after_upgrade, "left_over": left,
        "machine": machine, "load_after": load_after.get("load"),
    }))
}
