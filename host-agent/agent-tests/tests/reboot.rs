// SPDX-License-Identifier: Apache-2.0
//! The host was rebooted: what the state directory says of processes is of another boot, and their numbers are strangers' now.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod rig;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rig::Rig;
use serde_json::Value;

/// Processes that have nothing to do with the rig.
struct Strangers(Vec<Child>);

impl Strangers {
    fn new(number: usize) -> Self {
        Self((0..number).map(|_| Command::new("sleep").arg("600").spawn().unwrap()).collect())
    }

    /// One of them after the other, over and over.
    fn number(&self, turn: usize) -> u32 {
        self.0[turn % self.0.len()].id()
    }

    fn assert_untouched(&mut self) {
        for child in &mut self.0 {
            assert!(child.try_wait().unwrap().is_none(), "a stranger was ended");
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            assert!(status.contains("State:\tS"), "a stranger was stopped: {status}");
        }
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Start of a process in ticks since boot: field 22 of its stat (proc(5)).
fn started(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned()
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => files(&path, found),
            path => found.push(path),
        }
    }
}

/// Everything ends at once, as with the machine's power.
fn power_off(rig: &mut Rig) {
    // None sees another one end: a keeper would write down that its guest did.
    let mut ended: BTreeSet<i32> = rig.processes().into_iter().map(|(pid, _)| pid).collect();
    for pid in &ended {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGSTOP);
    }
    rig.signal_daemon(Signal::SIGKILL);
    rig.wait("no process", |rig| {
        let processes = rig.processes();
        for (pid, _) in &processes {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        ended.extend(processes.iter().map(|(pid, _)| *pid));
        processes.is_empty() && ended.iter().all(|pid| holds_nothing(*pid))
    });
}

/// Whether a process is gone, or has let go of its files: one that is ending has no command line any more, and its locks
/// still.
fn holds_nothing(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    matches!(state, Some("Z" | "X"))
}

/// Writes strangers' numbers in place of all that stand in the state directory, and another boot. With `same_start` they even
/// began at the same tick of their boot as those whose numbers they have.
fn give_numbers_away(rig: &Rig, strangers: &Strangers, same_start: bool) -> (usize, usize) {
    let mut found = Vec::new();
    files(&rig.root.join("t"), &mut found);
    let (mut locks, mut progress) = (0, 0);
    for (turn, path) in found.into_iter().enumerate() {
        let (stranger, text) = (strangers.number(turn), std::fs::read(&path).unwrap_or_default());
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".pid") {
            let text = String::from_utf8(text).unwrap();
            let (_, old) = text.trim().split_once(' ').unwrap();
            let start = if same_start { started(stranger) } else { old.to_owned() };
            std::fs::write(&path, format!("{stranger} {start}\n")).unwrap();
            locks += 1;
        } else if name == "progress.json" {
            let mut document: Value = serde_json::from_slice(&text).unwrap();
            assert!(document["pid"].is_u64() && document["qemu_pid"].is_u64(), "{document}");
            (document["pid"], document["qemu_pid"]) = (stranger.into(), stranger.into());
            std::fs::write(&path, document.to_string()).unwrap();
            progress += 1;
        } else if name == "state.json" && path.parent().unwrap().ends_with("t") {
            let boot = boot();
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains(&boot), "{text}");
            std::fs::write(&path, text.replace(&boot, OTHER_BOOT)).unwrap();
        }
    }
    (locks, progress)
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned()
}

#[test]
fn after_a_reboot_all_is_started_again_and_no_stranger_is_signalled() {
    let mut rig = Rig::new(&["a", "b"]);
    let mut strangers = Strangers::new(3);
    rig.start();
    rig.wait_serving();
    for same_start in [false, true] {
        let before: Vec<Value> = ["a", "b"].map(|name| rig.guest(name)["active"].clone()).into();
        power_off(&mut rig);
        let (locks, progress) = give_numbers_away(&rig, &strangers, same_start);
        // The daemon's, and of each guest the keeper's and the front's.
        assert_eq!((locks, progress), (5, 2));
        rig.start();
        rig.wait_serving();
        strangers.assert_untouched();
        rig.assert_no_leak();
        for (name, before) in ["a", "b"].into_iter().zip(&before) {
            let guest = rig.guest(name);
            let now = &guest["active"];
            assert_eq!(now["number"], before["number"], "the same generation, started again: {guest}");
            assert_eq!(now["failures"], 0, "that the power went is no fault of a guest: {guest}");
            for what in ["keeper_pid", "qemu_pid"] {
                assert!(now[what].is_u64() && now[what] != before[what], "{what}: {guest}");
                assert!(strangers.0.iter().all(|child| now[what] != child.id()), "{what}: {guest}");
            }
        }
        let state = std::fs::read_to_string(rig.root.join("t/state.json")).unwrap();
        assert!(state.contains(&boot()) && !state.contains(OTHER_BOOT), "{state}");
    }
    // Nor is anybody else ended with the guests.
    assert_eq!(rig.tell(&["stop", "--all"]).0, 0);
    rig.wait("no process", |rig| rig.processes().is_empty());
    strangers.assert_untouched();
}

/// Commands without a daemon, about a run directory of a boot that is over.
#[test]
fn a_keepers_old_number_is_nobody_to_stop() {
    let mut rig = Rig::new(&["a"]);
    let mut strangers = Strangers::new(1);
    rig.start();
    rig.wait_serving();
    power_off(&mut rig);
    give_numbers_away(&rig, &strangers, true);
    let run_dir = rig.root.join("s/guests/a/g1");
    assert!(run_dir.join("agent.pid").exists());
    for command in ["stop", "status"] {
        let output = rig.agent(&[command, "--run-dir", run_dir.to_str().unwrap(), "--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let document: Value = serde_json::from_str(text.trim()).unwrap();
        let word = if command == "stop" { &document["stopped"] } else { &document["running"] };
        assert_eq!(*word, false, "{document}");
    }
    strangers.assert_untouched();
}

const OTHER_BOOT: &str = "00000000-1111-2222-3333-444444444444";
