// SPDX-License-Identifier: Apache-2.0
//! Guests have control groups with limits, in a tree of files: made before a guest runs, kept over daemons, removed with
//! it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod rig;

use std::path::PathBuf;

use nix::sys::signal::Signal;
use rig::Rig;

#[test]
fn each_generation_has_its_group_for_as_long_as_it_is_there() {
    let mut rig = Rig::new(&["a", "b"]);
    let base = delegated(&rig);
    rig.agent = "guest_limits = \"require\"".to_owned();
    rig.start();
    rig.wait_serving();
    for name in ["guest-a-g1", "guest-b-g1"] {
        // What the keeper's first process wrote there: itself.
        assert_eq!(std::fs::read_to_string(base.join(name).join("cgroup.procs")).unwrap(), "0\n", "{name}");
        let memory: u64 = std::fs::read_to_string(base.join(name).join("memory.max")).unwrap().parse().unwrap();
        assert!(memory > 1024 << 20 && memory < 4096 << 20, "{memory}");
    }
    // An adopted guest keeps its own: nobody writes there.
    let made = |name: &str| base.join(name).join("memory.max").metadata().unwrap().modified().unwrap();
    let before = made("guest-a-g1");
    rig.signal_daemon(Signal::SIGKILL);
    rig.start();
    rig.wait_serving();
    assert_eq!(made("guest-a-g1"), before);
    // An upgrade: the new generation has another, and that of the old one goes with it.
    rig.guests[0].context = 256;
    rig.write();
    assert_eq!(rig.tell(&["reload"]).0, 0);
    rig.wait("the next generation", |rig| rig.guest("a")["active"]["number"] == 2 && rig.serves("a"));
    rig.wait("the group of the first to go", |_| !base.join("guest-a-g1").exists());
    assert!(base.join("guest-a-g2").is_dir() && base.join("guest-b-g1").is_dir());
    rig.wait("the end of all", |rig| rig.tell(&["stop", "--all"]).0 == 0);
    rig.wait("no process", |rig| rig.processes().is_empty());
    let left = |name: &str| base.join(name).exists();
    assert!(!left("guest-a-g2") && !left("guest-b-g1") && left("daemon"));
}

#[test]
fn a_host_without_groups_starts_guests_unless_limits_are_required() {
    let mut rig = Rig::new(&["a"]);
    rig.start();
    rig.wait_serving();
    let log = std::fs::read_to_string(rig.root.join("agent.log")).unwrap();
    assert!(log.contains("guest_limits_unavailable") && log.contains("a guest has no limits"), "{log}");
    drop(rig);
    let mut rig = Rig::new(&["a"]);
    rig.agent = "guest_limits = \"require\"".to_owned();
    rig.start();
    rig.wait("a refusal", |rig| rig.guest("a").to_string().contains("\"guest_limits_unavailable\""));
    assert!(rig.processes().iter().all(|(_, kind)| kind != "qemu"));
}

#[test]
fn a_guest_runs_on_the_node_that_it_is_told() {
    let mut rig = Rig::new(&["a"]);
    let node = rig.root.join("tree/sys/devices/system/node/node0");
    std::fs::create_dir_all(&node).unwrap();
    // One that this test may use: not always the first.
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let cpu = (0..nix::sched::CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap();
    std::fs::write(node.join("cpulist"), format!("{cpu}\n")).unwrap();
    rig.guests[0].more = "numa_node = 1".to_owned();
    rig.start();
    rig.wait("a refusal", |rig| rig.guest("a").to_string().contains("\"numa_node_unusable\""));
    rig.guests[0].more = "numa_node = 0".to_owned();
    rig.write();
    assert_eq!(rig.tell(&["reload"]).0, 0);
    rig.wait_serving();
    let qemu = rig.processes().into_iter().find(|(_, kind)| kind == "qemu").unwrap().0;
    let status = std::fs::read_to_string(format!("/proc/{qemu}/status")).unwrap();
    assert!(status.contains(&format!("Cpus_allowed_list:\t{cpu}\n")), "{status}");
    let line = std::fs::read_to_string(format!("/proc/{qemu}/cmdline")).unwrap();
    assert!(line.contains("host-nodes=0,policy=preferred"), "{line}");
}

/// A unit's group with one for the daemon in it, as systemd makes them.
fn delegated(rig: &Rig) -> PathBuf {
    let tree = rig.root.join("tree");
    let base = tree.join("sys/fs/cgroup/system.slice/chrysalis-agent.service");
    std::fs::create_dir_all(base.join("daemon")).unwrap();
    std::fs::create_dir_all(tree.join("proc/self")).unwrap();
    std::fs::write(tree.join("sys/fs/cgroup/cgroup.controllers"), "cpu memory pids\n").unwrap();
    std::fs::write(base.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
    std::fs::write(tree.join("proc/self/cgroup"), "0::/system.slice/chrysalis-agent.service/daemon\n").unwrap();
    base
}
