// SPDX-License-Identifier: Apache-2.0
//! SIGKILL at random moments: a plan that follows from the seed, and what came of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::client;
use super::holdings::Holdings;
use super::processes::{self, Kind};
use super::rig::{GUESTS, Rig};

/// One kill that is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Planned {
    kind: Kind,
    guest: &'static str,
    /// Before it.
    pause: Duration,
    /// Until the next daemon, where it is killed.
    without_daemon: Duration,
}

/// A kill.
#[derive(Debug, Serialize)]
pub(super) struct Killed {
    target: Kind,
    /// `None` for the daemon.
    guest: Option<&'static str>,
    /// What the guest, or the daemon, was doing.
    pub(super) moment: &'static str,
}

/// Everything as declared again.
#[derive(Debug, Serialize)]
pub(super) struct Convergence {
    after_kills: u32,
    /// Until both guests served as declared.
    serving_seconds: f64,
    /// Of each guest's attested answer.
    answer_seconds: Vec<f64>,
    /// What was too much or missing.
    pub(super) leaks: Vec<String>,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Outcome {
    pub(super) kills: Vec<Killed>,
    pub(super) convergences: Vec<Convergence>,
}

impl Outcome {
    /// Kills by target.
    pub(super) fn by_target(&self) -> BTreeMap<&'static str, u32> {
        sum(self.kills.iter().map(|killed| killed.target.as_str()))
    }

    /// Kills by target and moment.
    pub(super) fn by_moment(&self) -> BTreeMap<String, u32> {
        sum(self.kills.iter().map(|killed| format!("{} {}", killed.target.as_str(), killed.moment)))
    }
}

fn sum<T: Ord>(names: impl Iterator<Item = T>) -> BTreeMap<T, u32> {
    let mut sums = BTreeMap::new();
    for name in names {
        *sums.entry(name).or_default() += 1;
    }
    sums
}

/// Kills so often, or until the deadline, and checks in between.
pub(super) fn run(
    rig: &mut Rig<'_>,
    baseline: &Holdings,
    kills: u32,
    seed: u64,
    deadline: Instant,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    for (planned, number) in plan(seed, kills).into_iter().zip(1..) {
        if Instant::now() > deadline {
            eprintln!("the time is over after {} kills", outcome.kills.len());
            break;
        }
        rig.pause(planned.pause)?;
        outcome.kills.push(kill(rig, &planned)?);
        if number % BETWEEN == 0 && number != kills {
            outcome.convergences.push(converge(rig, baseline, number)?);
        }
    }
    let done = u32::try_from(outcome.kills.len()).unwrap_or(u32::MAX);
    outcome.convergences.push(converge(rig, baseline, done)?);
    Ok(())
}

/// Waits until everything is as declared, and looks.
pub(super) fn converge(rig: &mut Rig<'_>, baseline: &Holdings, after_kills: u32) -> anyhow::Result<Convergence> {
    let start = Instant::now();
    rig.wait_serving(CONVERGENCE).with_context(|| format!("after {after_kills} kills"))?;
    let serving_seconds = start.elapsed().as_secs_f64();
    let answers = GUESTS.iter().map(|guest| client::verified_answer(rig, guest));
    let answer_seconds =
        answers.collect::<anyhow::Result<Vec<_>>>().with_context(|| format!("after {after_kills} kills"))?;
    let (_, leaks) = rig.settle(Some(baseline), SETTLE)?;
    eprintln!(
        "after {after_kills} kills both serve again: {serving_seconds:.1} s; answers {answer_seconds:.1?} s; leaks: {leaks:?}"
    );
    Ok(Convergence { after_kills, serving_seconds, answer_seconds, leaks })
}

/// Waits until there is such a process, and kills it.
fn kill(rig: &mut Rig<'_>, planned: &Planned) -> anyhow::Result<Killed> {
    let Planned { kind, guest, .. } = *planned;
    if kind == Kind::Daemon {
        let moment = if rig.started.elapsed() < STARTING { "starting" } else { "running" };
        rig.kill_daemon()?;
        rig.pause(planned.without_daemon)?;
        rig.start()?;
        return Ok(Killed { target: kind, guest: None, moment });
    }
    let start = Instant::now();
    loop {
        rig.check_daemon()?;
        let found = processes::descendants();
        let target = found.iter().find(|process| process.kind == kind && process.guest.as_deref() == Some(guest));
        if let Some(target) = target.filter(|target| !target.zombie) {
            let moment = moment(rig, guest);
            if target.kill() {
                return Ok(Killed { target: kind, guest: Some(guest), moment });
            }
        }
        let what = kind.as_str();
        anyhow::ensure!(
            start.elapsed() < COMES_BACK,
            "{what} of {guest} did not come back in {} s",
            COMES_BACK.as_secs()
        );
        rig.pause(Duration::from_millis(50))?;
    }
}

/// What a guest is doing, by what its keeper wrote down.
fn moment(rig: &Rig<'_>, guest: &str) -> &'static str {
    let Some(progress) = rig.progress(guest) else { return "starting" };
    let field = |name: &str| progress.get(name).filter(|value| !value.is_null());
    match (field("serving"), field("qemu_pid")) {
        (Some(_), _) => "serving",
        (None, Some(_)) => "booting",
        (None, None) => "starting",
    }
}

/// Draws so many kills: QEMU, `vhost-device-vsock` and the daemon a quarter each, keepers and fronts the rest.
fn plan(seed: u64, kills: u32) -> Vec<Planned> {
    let mut kinds: Vec<(u64, Kind)> = (0..kills)
        .map(|number| {
            let place = usize::try_from(number).unwrap_or(0) % SHARES.len();
            (draw(seed, number, "order"), SHARES.get(place).copied().unwrap_or(Kind::Qemu))
        })
        .collect();
    kinds.sort_unstable();
    let planned = |(number, (_, kind)): (u32, (u64, Kind))| {
        let milliseconds = |most: u64, what| Duration::from_millis(draw(seed, number, what) % most);
        let longest = match draw(seed, number, "haste") % 4 {
            0 => 400,
            1 => 5_000,
            2 => 15_000,
            _ => 30_000,
        };
        let guest = if draw(seed, number, "guest").is_multiple_of(2) { "one" } else { "two" };
        Planned { kind, guest, pause: milliseconds(longest, "pause"), without_daemon: milliseconds(1_000, "without") }
    };
    (0..kills).zip(kinds).map(planned).collect()
}

/// A number that follows from all three.
fn draw(seed: u64, number: u32, what: &str) -> u64 {
    let digest = Sha256::digest(format!("{seed} {number} {what}"));
    digest.iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

/// Shares of eight kills.
const SHARES: [Kind; 8] =
    [Kind::Qemu, Kind::Vsock, Kind::Daemon, Kind::Keeper, Kind::Qemu, Kind::Vsock, Kind::Daemon, Kind::Front];
/// Kills between two checks.
const BETWEEN: u32 = 10;
/// A daemon is starting for so long.
const STARTING: Duration = Duration::from_secs(1);
/// A machine with other work boots two emulated guests in less.
pub(super) const CONVERGENCE: Duration = Duration::from_secs(420);
const COMES_BACK: Duration = Duration::from_secs(180);
/// The daemon looks for what was left behind once a minute.
pub(super) const SETTLE: Duration = Duration::from_secs(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_follows_from_its_seed_and_has_all_targets() {
        let first = plan(7, 100);
        assert_eq!(first, plan(7, 100));
        assert_ne!(first, plan(8, 100));
        let of = |kind| first.iter().filter(|planned| planned.kind == kind).count();
        assert_eq!([Kind::Qemu, Kind::Vsock, Kind::Daemon].map(of), [25, 25, 25]);
        assert_eq!(of(Kind::Keeper) + of(Kind::Front), 25);
        let short = first.iter().filter(|planned| planned.pause < Duration::from_millis(400)).count();
        let long = first.iter().filter(|planned| planned.pause > Duration::from_secs(5)).count();
        assert!(short > 10 && long > 10, "{short} {long}");
        assert!(GUESTS.iter().all(|guest| first.iter().filter(|planned| planned.guest == *guest).count() > 30));
    }
}
