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

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rig::Rig;

#[test]
fn a_hundred_kills_converge() {
    let mut rig = Rig::new(&["a", "b"]);
    rig.start();
    rig.wait_serving();
    let seed = std::env::var("CHRYSALIS_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut random = Random(seed.unwrap_or_else(|| u64::from(std::process::id()) | 1));
    println!("CHRYSALIS_SEED={}", random.0);
    let mut killed: BTreeMap<String, u32> = BTreeMap::new();
    let mut kills = 0;
    while kills < 100 {
        let processes = rig.processes();
        let (pid, kind) = processes[random.below(processes.len())].clone();
        if kind == "agent" {
            rig.signal_daemon(Signal::SIGKILL);
            rig.start();
        } else if kill(Pid::from_raw(pid), Signal::SIGKILL).is_err() {
            continue;
        }
        kills += 1;
        *killed.entry(kind).or_default() += 1;
        std::thread::sleep(Duration::from_millis(u64::try_from(random.below(250)).unwrap()));
    }
    println!("killed: {killed:?}");
    rig.wait_serving();
    rig.assert_no_leak();
    let sockets = |name: &str| {
        let entries = std::fs::read_dir(rig.root.join("s/guests").join(name)).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".sock")).count()
    };
    assert_eq!((sockets("a"), sockets("b")), (1, 1), "one front each");
    assert_eq!(std::fs::read_dir(rig.root.join("s/releases")).unwrap().count(), 1);
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(limit).unwrap()).unwrap()
    }
}
