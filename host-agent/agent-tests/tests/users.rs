// SPDX-License-Identifier: Apache-2.0
//! A daemon that is root runs guests as somebody else, who can do nothing to it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

mod rig;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use rig::Rig;

#[test]
fn guests_run_as_another_user_than_the_daemon() {
    let Some(mut rig) = rig_as_root() else { return };
    rig.agent = "user = \"nobody\"".to_owned();
    rig.start();
    rig.wait_serving();
    rig.assert_no_leak();
    for (pid, kind) in rig.processes() {
        let expected = if kind == "agent" { "0" } else { NOBODY };
        let status = status(pid);
        for line in ["Uid:", "Gid:"] {
            let words: Vec<&str> = line_of(&status, line).split_whitespace().collect();
            assert_eq!(words, [expected; 4], "{kind}: {line}");
        }
        if kind == "agent" {
            continue;
        }
        assert!(line_of(&status, "Groups:").split_whitespace().all(|group| group == NOBODY), "{kind}: {status}");
        assert_eq!(line_of(&status, "NoNewPrivs:").trim(), "1", "{kind}");
        // A front may listen below 1024; that is all.
        let capabilities = if kind == "front" { "0000000000000400" } else { "0000000000000000" };
        for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(line_of(&status, set).trim(), capabilities, "{kind}: {set}");
        }
    }
    let run_dir = rig.root.join("t/guests/a/g1");
    for directory in [run_dir.clone(), rig.root.join("t/guests/a")] {
        let metadata = directory.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (0, 0o1770), "{}", directory.display());
    }
    assert_eq!(run_dir.join("launch.json").metadata().unwrap().uid(), 0);
    assert_eq!(rig.root.join("t/state.json").metadata().unwrap().mode() & 0o777, 0o600);
    // A keeper's end is its children's, though they are of another user than the daemon.
    let keeper = rig.processes().into_iter().find(|(_, kind)| kind == "start").unwrap().0;
    kill(Pid::from_raw(keeper), Signal::SIGKILL).unwrap();
    rig.wait("another keeper", |rig| rig.processes().iter().any(|(pid, kind)| kind == "start" && *pid != keeper));
    rig.wait_serving();
    rig.assert_no_leak();
    // The next daemon adopts them.
    rig.signal_daemon(Signal::SIGKILL);
    rig.start();
    rig.wait_serving();
    rig.assert_no_leak();
    rig.wait("the end of all", |rig| rig.tell(&["stop", "--all"]).0 == 0);
    rig.wait("no process", |rig| rig.processes().is_empty());
    assert!(!rig.root.join("t/guests/a/g1").exists(), "the run directory went");
}

/// Attack 26, from the other side: what guests' user leaves in a directory that it shares with root.
#[test]
fn root_follows_no_link_of_guests_user() {
    let Some(mut rig) = rig_as_root() else { return };
    rig.agent = "user = \"nobody\"".to_owned();
    rig.start();
    rig.wait_serving();
    let victim = rig.root.join("victim");
    std::fs::write(&victim, "root's").unwrap();
    let run_dir = rig.root.join("t/guests/a/g1");
    // Root's files are not the user's to exchange; names that are free are.
    assert!(!as_nobody(&["mv", &text(&run_dir.join("launch.json")), &text(&run_dir.join("x"))]));
    assert!(!as_nobody(&["rm", &text(&run_dir.join("plan.json"))]));
    assert!(!as_nobody(&["mv", &text(&run_dir), &text(&rig.root.join("t/guests/a/g9"))]));
    for name in ["launch.json.new", "plan.json.new"] {
        assert!(as_nobody(&["ln", "-s", &text(&victim), &text(&run_dir.join(name))]), "{name}");
    }
    let keeper = rig.processes().into_iter().find(|(_, kind)| kind == "start").unwrap().0;
    kill(Pid::from_raw(keeper), Signal::SIGKILL).unwrap();
    rig.wait("another keeper", |rig| rig.processes().iter().any(|(pid, kind)| kind == "start" && *pid != keeper));
    rig.wait_serving();
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "root's");
    assert_eq!((victim.metadata().unwrap().gid(), victim.metadata().unwrap().mode() & 0o777), (0, 0o644));
    // The next generation's directory, made before root makes it: refused, not used.
    let next = rig.root.join("t/guests/a/g2");
    let elsewhere = rig.root.join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    assert!(as_nobody(&["ln", "-s", &text(&elsewhere), &text(&next)]));
    rig.guests[0].context = 256;
    rig.write();
    assert_eq!(rig.tell(&["reload"]).0, 0);
    rig.wait("a refusal", |rig| rig.guest("a").to_string().contains("g2 is not root's own"));
    assert!(rig::ask(rig.guests[0].port, "x").is_some(), "the old generation serves on");
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
    assert_eq!(elsewhere.metadata().unwrap().gid(), 0);
    std::fs::remove_file(&next).unwrap();
    rig.wait("the upgrade", |rig| rig.guest("a")["active"]["number"] == 2 && rig.serves("a"));
}

/// What a QEMU that was taken over leaves in its run directory holds up no daemon that is root, and leads it nowhere.
#[test]
fn root_waits_for_nobody_and_connects_and_signals_no_stranger() {
    let Some(mut rig) = rig_as_root() else { return };
    rig.agent = "user = \"nobody\"".to_owned();
    // Without its front nobody knows of its connections: it is stopped at the deadline.
    rig.drain = 1;
    rig.start();
    rig.wait_serving();
    let guest = rig.root.join("t/guests/a");
    let run_dir = guest.join("g1");
    let mut bystander = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    // A file of root's that is not the user's to name, under the name of a log.
    let secret = rig.root.join("secret");
    std::fs::write(&secret, "root's alone").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(as_nobody(&["ln", "-sf", &text(&secret), &text(&run_dir.join("qemu.log"))]));
    let logs = rig.agent(&["logs", "a", "--state-dir", &text(&rig.root.join("t"))]);
    let logs = String::from_utf8(logs.stdout).unwrap();
    assert!(logs.contains("keeper.log") && !logs.contains("root's alone"), "{logs}");
    // A service of root's under the name of the front's socket.
    let service = std::os::unix::net::UnixListener::bind(rig.root.join("private")).unwrap();
    service.set_nonblocking(true).unwrap();
    assert!(as_nobody(&["ln", "-sf", &text(&rig.root.join("private")), &text(&guest.join("front.sock"))]));
    // A process of root's under the keeper's name, and a pipe that nobody writes.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", bystander.id())).unwrap();
    let started = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap();
    let pid_file = text(&run_dir.join("agent.pid"));
    let script = format!("echo {} {started} > {pid_file}", bystander.id());
    assert!(as_nobody(&["sh", "-c", &script]));
    let progress = text(&run_dir.join("progress.json"));
    assert!(as_nobody(&["sh", "-c", &format!("rm {progress} && mkfifo {progress}")]));
    // It still answers, and tells the keeper nothing in the other's name.
    rig.wait("an answer", |rig| rig.tell(&["stop", "a"]).0 == 0);
    for _ in 0..40 {
        assert!(rig.status().is_some());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(bystander.try_wait().unwrap().is_none(), "it was signalled");
    assert!(service.accept().is_err(), "somebody connected");
    // The lock's file is a pipe now: nobody holds it, and the directory goes with all that was started for it.
    assert!(as_nobody(&["sh", "-c", &format!("rm {pid_file} && mkfifo {pid_file}")]));
    rig.wait("the end of the directory", |_| !run_dir.exists());
    rig.wait("the end of QEMU", |rig| rig.processes().iter().all(|(_, kind)| kind != "qemu"));
    assert!(bystander.try_wait().unwrap().is_none());
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "root's alone");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
fn what_a_daemon_of_another_user_left_is_reported_and_replaced() {
    let Some(mut rig) = rig_as_root() else { return };
    rig.agent = "user = \"root\"".to_owned();
    rig.start();
    rig.wait_serving();
    let uid_of = |rig: &Rig, wanted: &str| {
        let found = rig.processes().into_iter().find(|(_, kind)| kind == wanted);
        let line = std::fs::read_to_string(format!("/proc/{}/status", found?.0)).ok()?;
        Some(line_of(&line, "Uid:").split_whitespace().next()?.to_owned())
    };
    assert_eq!((uid_of(&rig, "start").unwrap(), uid_of(&rig, "front").unwrap()), ("0".into(), "0".into()));
    rig.signal_daemon(Signal::SIGKILL);
    rig.agent = "user = \"nobody\"".to_owned();
    rig.start();
    rig.wait("a report", |rig| rig.guest("a").to_string().contains("\"guest_of_another_user\""));
    // Another front takes the place of root's, though its files were in the way.
    rig.wait("a front of the user", |rig| uid_of(rig, "front").as_deref() == Some(NOBODY) && rig.serves("a"));
    assert_eq!(uid_of(&rig, "start").unwrap(), "0", "the guest goes on");
    // The same run directory, for a keeper of the user.
    let keeper = rig.processes().into_iter().find(|(_, kind)| kind == "start").unwrap().0;
    kill(Pid::from_raw(keeper), Signal::SIGKILL).unwrap();
    rig.wait("a keeper of the user", |rig| uid_of(rig, "start").as_deref() == Some(NOBODY));
    rig.wait_serving();
    rig.assert_no_leak();
    assert!(!rig.guest("a").to_string().contains("guest_of_another_user"));
    assert_eq!(rig.root.join("t/guests/a/g1/qemu.log").metadata().unwrap().uid(), 65_534);
}

#[test]
fn the_nodes_of_a_guests_gpus_are_opened_to_its_user_and_no_others() {
    let Some(mut rig) = rig_as_root() else { return };
    rig.with_gpus();
    rig.agent = "user = \"nobody\"".to_owned();
    rig.guests[0].more = "gpus = [\"0000:17:00.0\"]\nunpublished_shape = true".to_owned();
    let node = |name: &str| rig.root.join("tree/dev/vfio").join(name);
    std::fs::create_dir_all(node("")).unwrap();
    // The container, the group of the guest's GPU, the group of another.
    for (name, mode) in [("vfio", 0o666), ("4", 0o600), ("9", 0o600)] {
        std::fs::write(node(name), "").unwrap();
        std::fs::set_permissions(node(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    // Somebody else's group has it: not taken away.
    std::os::unix::fs::chown(node("4"), None, Some(12_345)).unwrap();
    let group = node("4");
    let rights = |rig: &Rig| {
        ["vfio", "4", "9"].map(|name| {
            let metadata = rig.root.join("tree/dev/vfio").join(name).metadata().unwrap();
            (metadata.gid(), metadata.mode() & 0o777)
        })
    };
    let before = rights(&rig);
    rig.start();
    rig.wait("a refusal", |rig| rig.guest("a").to_string().contains("\"permission_missing\""));
    assert_eq!(rights(&rig), before);
    std::os::unix::fs::chown(group, None, Some(0)).unwrap();
    rig.wait("another attempt", |rig| rig.tell(&["restart", "a"]).0 == 0);
    rig.wait_serving();
    assert_eq!(rights(&rig), [(0, 0o666), (65_534, 0o660), (0, 0o600)]);
}

#[test]
fn an_account_that_cannot_be_used_is_refused() {
    let Some(mut rig) = rig_as_root() else { return };
    let codes = |rig: &Rig| {
        rig.write();
        let output = rig.agent(&["agent", "--check", "--json", "--config", rig.config().to_str().unwrap()]);
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let reasons = document["reasons"].as_array().unwrap().iter();
        reasons.map(|reason| format!("{} {}", reason["code"], reason["field"]).replace('"', "")).collect::<Vec<_>>()
    };
    rig.agent = "user = \"nobody-at-all\"".to_owned();
    assert_eq!(codes(&rig), ["user_unknown agent.user"]);
    rig.agent = "user = \"root\"".to_owned();
    assert!(codes(&rig).is_empty(), "a rehearsal may");
    rig.agent = "user = \"nobody\"".to_owned();
    rig.write();
    std::fs::set_permissions(&rig.root, std::fs::Permissions::from_mode(0o700)).unwrap();
    let output = rig.agent(&["agent", "--config", rig.config().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains(&format!("cannot pass {}", rig.root.display())), "{words}");
}

fn rig_as_root() -> Option<Rig> {
    if !geteuid().is_root() {
        println!("SKIPPED: only root runs guests as another user");
        return None;
    }
    let rig = Rig::new(&["a"]);
    // As /var/lib is.
    std::fs::set_permissions(&rig.root, std::fs::Permissions::from_mode(0o711)).unwrap();
    // A checkout in somebody's own directory is not to be passed by others.
    let reaches = |path: &Path| as_nobody(&["test", "-x", &text(path)]);
    if !reaches(&rig.root) || !reaches(&rig::program("host-agent")) {
        println!("SKIPPED: another user cannot reach the programs or the directory of temporary files");
        return None;
    }
    Some(rig)
}

fn as_nobody(words: &[&str]) -> bool {
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid", "nobody", "--regid", "nogroup", "--init-groups", "--"]).args(words);
    command.stderr(std::process::Stdio::null()).status().unwrap().success()
}

fn text(path: &Path) -> String {
    PathBuf::from(path).into_os_string().into_string().unwrap()
}

fn status(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap()
}

fn line_of<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default()
}

const NOBODY: &str = "65534";
