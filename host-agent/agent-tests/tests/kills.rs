// SPDX-License-Identifier: Apache-2.0
//! Random deaths of everything that runs on a host: it always comes back to what was declared, and nothing is left over.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rig::Rig;

#[test]
fn a_hundred_kills_converge() {
    let mut rig = Rig::new(&["a", "b"]);
    rig.start();
    rig.wait_serving();
    let killed = kill_at_random(&mut rig, 100);
    println!("killed: {killed:?}");
    // Whatever was drawn, each kind died often.
    for kind in KINDS {
        assert!(killed.get(kind).is_some_and(|count| *count >= 100 / SHARE), "{kind}: {killed:?}");
    }
    assert_eq!(killed.values().sum::<u32>(), 100, "{killed:?}");
    rig.wait_serving();
    rig.assert_no_leak();
    let sockets = |name: &str| {
        let entries = std::fs::read_dir(rig.root.join("s/guests").join(name)).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".sock")).count()
    };
    assert_eq!((sockets("a"), sockets("b")), (1, 1), "one front each");
    for name in ["a", "b"] {
        let number = rig.guest(name)["active"]["number"].as_u64().unwrap();
        let scratch = rig.root.join(format!("s/guests/{name}/g{number}/t"));
        assert_eq!(std::fs::read_dir(scratch).unwrap().count(), 1, "of the simulator that runs");
    }
    assert_eq!(std::fs::read_dir(rig.root.join("s/releases")).unwrap().count(), 1);
}

/// The same with GPUs that the daemon binds and gives back meanwhile: no binding is left over, and none is missing.
#[test]
fn kills_leave_no_gpu_bound() {
    let mut rig = Rig::new(&["a", "b"]);
    rig.with_gpus();
    let before = rig.bindings();
    rig.guests[0].more = "gpus = [\"0000:17:00.0\"]\nunpublished_shape = true".to_owned();
    rig.guests[1].more = "gpus = [\"0000:3d:00.0\"]\nunpublished_shape = true".to_owned();
    rig.start();
    rig.wait_serving();
    let bound = vec![("vfio-pci".to_owned(), "vfio-pci".to_owned()); 3];
    assert_eq!(rig.bindings(), bound);
    let mut killed = BTreeMap::new();
    for _ in 0..8 {
        // While the first guest's GPU comes and goes; whoever is asked may be dead at the moment.
        let _ = rig.tell(&["stop", "a"]);
        add(&mut killed, kill_at_random(&mut rig, 3));
        rig.wait("a daemon", |rig| rig.tell(&["restart", "a"]).0 == 0);
        add(&mut killed, kill_at_random(&mut rig, 2));
    }
    println!("killed: {killed:?}");
    rig.wait("a daemon", |rig| rig.tell(&["restart", "a"]).0 == 0);
    rig.wait_serving();
    rig.assert_no_leak();
    rig.wait("both bound", |rig| rig.bindings() == bound);
    rig.wait("the end of a", |rig| rig.tell(&["stop", "a"]).0 == 0);
    rig.wait("a's GPU to come back", |rig| rig.bindings() == [&before[..2], &bound[..1]].concat());
    rig.wait("the end of all", |rig| rig.tell(&["stop", "--all"]).0 == 0);
    rig.wait("no process", |rig| rig.processes().is_empty());
    assert_eq!(rig.bindings(), before);
}

fn add(sum: &mut BTreeMap<String, u32>, more: BTreeMap<String, u32>) {
    for (kind, count) in more {
        *sum.entry(kind).or_default() += count;
    }
}

/// Kills so many processes of the rig, with pauses; a daemon that was killed is started again. Each kind has its share;
/// what is left over after that can be any.
fn kill_at_random(rig: &mut Rig, kills: u32) -> BTreeMap<String, u32> {
    let seed = std::env::var("CHRYSALIS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()) ^ SEED.fetch_add(1 << 20, Ordering::Relaxed));
    let mut random = Random(seed | 1);
    println!("CHRYSALIS_SEED={}", random.0);
    let mut killed: BTreeMap<String, u32> = BTreeMap::new();
    let (mut done, mut last) = (0, Instant::now());
    while done < kills {
        rig.keep_daemon();
        let had = |kind: &str| killed.get(kind).copied().unwrap_or(0);
        let owed = |kind: &str| if KINDS.contains(&kind) { (kills / SHARE).saturating_sub(had(kind)) } else { 0 };
        let mut processes = rig.processes();
        let waited = last.elapsed();
        assert!(
            waited < PATIENCE,
            "{done} of {kills}, then none to kill: {killed:?}, seed {seed}, running: {processes:?}"
        );
        // A guest's processes are away half of the time, the daemon never: so the kind is drawn first.
        let mut kinds: BTreeSet<String> = processes.iter().map(|(_, kind)| kind.clone()).collect();
        let no_more = KINDS.into_iter().map(owed).sum::<u32>() >= kills - done;
        if no_more || kinds.iter().any(|kind| owed(kind) > 0) {
            kinds.retain(|kind| owed(kind) > 0);
        }
        let drawn = kinds.iter().nth(random.below(kinds.len().max(1)));
        processes.retain(|(_, kind)| Some(kind) == drawn);
        if processes.is_empty() {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        let (pid, kind) = processes[random.below(processes.len())].clone();
        if kind == "agent" {
            rig.signal_daemon(Signal::SIGKILL);
            rig.start();
        } else if kill(Pid::from_raw(pid), Signal::SIGKILL).is_err() {
            continue;
        }
        (done, last) = (done + 1, Instant::now());
        *killed.entry(kind).or_default() += 1;
        std::thread::sleep(Duration::from_millis(u64::try_from(random.below(250)).unwrap()));
    }
    killed
}

/// All that runs on a host, as the rig calls it: daemon, keeper, front, QEMU, `vhost-device-vsock`, the simulator.
const KINDS: [&str; 6] = ["agent", "start", "front", "qemu", "vsock", "simulator"];
/// Each kind dies at least once in so many kills.
const SHARE: u32 = 10;

/// Something dies at least this often, on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes each call another one.
static SEED: AtomicU64 = AtomicU64::new(0);

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(limit).unwrap()).unwrap()
    }
}
