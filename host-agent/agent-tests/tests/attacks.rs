// SPDX-License-Identifier: Apache-2.0
//! Attacks of docs/threat-model.md on the host's side: an honest agent starts no guest that its clients would refuse, and
//! says why. That a hostile one gains nothing is for the verifiers' tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod rig;

use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rig::Rig;

/// Attack 28: another vCPU count than the release has references for, in a record that somebody changed.
#[test]
fn attack_28_a_changed_record_starts_no_other_machine() {
    let mut rig = Rig::new(&["a"]);
    rig.start();
    rig.wait_serving();
    assert!(arguments(&rig).windows(2).any(|pair| pair == ["-smp", "2"]));
    let record = rig.root.join("t/guests/a/g1/launch.json");
    let text = std::fs::read_to_string(&record).unwrap();
    for (from, to) in [("\"vcpus\":2", "\"vcpus\":4"), ("\"memory_mib\":1024", "\"memory_mib\":2048")] {
        assert!(text.contains(from), "{text}");
        std::fs::write(&record, text.replace(from, to)).unwrap();
        end(&rig, "start");
        refused(&rig, "shape_not_published");
    }
    // Composed anew it is what was declared.
    rig.wait("another generation", |rig| rig.tell(&["restart", "a"]).0 == 0);
    rig.wait_serving();
    assert!(arguments(&rig).windows(2).any(|pair| pair == ["-smp", "2"]));
}

/// Attack 28: another QEMU than the one that the guest was composed for.
#[test]
fn attack_28_another_qemu_starts_no_guest_without_references() {
    let mut rig = Rig::new(&["a"]);
    rig.start();
    rig.wait_serving();
    rig.say("version", "10.0.3");
    end(&rig, "start");
    rig.wait("a refusal", |rig| {
        let guest = rig.guest("a").to_string();
        guest.contains("\"qemu_changed\"") || guest.contains("\"shape_not_published\"")
    });
    assert!(pids(&rig, "qemu").is_empty());
    rig.say("version", "10.1.0");
    rig.wait("another generation", |rig| rig.tell(&["restart", "a"]).0 == 0);
    rig.wait_serving();
}

/// Attack 43: fewer GPUs than declared are no guest, and QEMU gets no more than those; its configuration says how many.
#[test]
fn attack_43_a_guest_gets_the_gpus_that_it_was_told_of() {
    let mut rig = Rig::new(&["a"]);
    rig.with_gpus();
    rig.guests[0].more = "gpus = [\"0000:17:00.0\", \"0000:3d:00.0\"]\nunpublished_shape = true".to_owned();
    let back = take(&rig, "0000:3d:00.0");
    rig.start();
    refused(&rig, "gpu_not_found");
    back();
    assert_eq!(rig.tell(&["reload"]).0, 0);
    rig.wait_serving();
    let passed = |rig: &Rig| -> Vec<String> {
        arguments(rig).into_iter().filter(|word| word.starts_with("vfio-pci,")).collect()
    };
    let hosts = ["0000:17:00.0", "0000:3d:00.0"];
    assert_eq!(passed(&rig).len(), hosts.len());
    assert!(hosts.iter().all(|host| passed(&rig).iter().any(|word| word.contains(&format!("host={host},")))));
    let disk = std::fs::read(rig.root.join("t/guests/a/g1/config.disk")).unwrap();
    assert!(String::from_utf8_lossy(&disk).contains("\"gpus\":2"));
}

/// Attack 48: a GPU that goes while its guest runs. The guest is not touched; once it has ended, none is started without.
#[test]
fn attack_48_a_guest_whose_gpu_went_is_not_started_without_it() {
    let mut rig = Rig::new(&["a"]);
    rig.with_gpus();
    rig.guests[0].more = "gpus = [\"0000:17:00.0\"]\nunpublished_shape = true".to_owned();
    rig.start();
    rig.wait_serving();
    let before = pids(&rig, "qemu");
    let back = take(&rig, "0000:17:00.0");
    let (code, _) = rig.tell(&["reload"]);
    rig.wait("the reason", |rig| rig.guest("a").to_string().contains("\"gpu_not_found\""));
    assert_eq!(pids(&rig, "qemu"), before, "reload: {code}");
    assert!(rig::ask(rig.guests[0].port, "x").is_some(), "it is for the guest to notice");
    end(&rig, "qemu");
    refused(&rig, "gpu_not_found");
    back();
    rig.wait("another attempt", |rig| rig.tell(&["restart", "a"]).0 == 0);
    rig.wait_serving();
}

/// No QEMU, and this code in what the status says.
fn refused(rig: &Rig, code: &str) {
    let shown = format!("\"code\":\"{code}\"");
    rig.wait(code, |rig| rig.guest("a").to_string().contains(&shown) && pids(rig, "qemu").is_empty());
    assert!(rig::ask(rig.guests[0].port, "x").is_none());
}

fn end(rig: &Rig, kind: &str) {
    for pid in pids(rig, kind) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
}

fn pids(rig: &Rig, kind: &str) -> Vec<i32> {
    rig.processes().into_iter().filter(|(_, found)| found == kind).map(|(pid, _)| pid).collect()
}

/// What QEMU was started with.
fn arguments(rig: &Rig) -> Vec<String> {
    let pid = pids(rig, "qemu")[0];
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Takes a device off the board; what is given puts it back.
fn take(rig: &Rig, address: &str) -> impl FnOnce() + use<> {
    let place: PathBuf = rig.root.join("tree/sys/bus/pci/devices").join(address);
    let away = rig.root.join(format!("away-{}", address.replace(':', "-")));
    std::fs::rename(&place, &away).unwrap();
    move || std::fs::rename(&away, &place).unwrap()
}
