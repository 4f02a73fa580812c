// SPDX-License-Identifier: Apache-2.0
//! A host in a directory: the agent's daemon, two declared guests. Everything ends with it.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;

use super::holdings::Holdings;
use super::processes::{self, Kind, Process};
use crate::demo::programs::Programs;
use crate::demo::scene::{Machine, Scene};
use crate::process;

/// Names of the guests.
pub(super) const GUESTS: [&str; 2] = ["one", "two"];

/// What is declared as the guests' release.
#[derive(Debug, Clone)]
pub(super) struct Declared {
    pub(super) bundle: PathBuf,
    pub(super) image: PathBuf,
}

/// The host.
pub(super) struct Rig<'a> {
    pub(super) programs: &'a Programs,
    pub(super) scene: &'a Scene,
    directory: PathBuf,
    daemon: Option<Child>,
    /// Since when the daemon runs.
    pub(super) started: Instant,
    ports: [u16; 2],
    metrics: u16,
    pack: String,
    declared: Declared,
}

impl<'a> Rig<'a> {
    /// A host whose daemon does not run yet.
    pub(super) fn new(programs: &'a Programs, scene: &'a Scene, declared: Declared) -> anyhow::Result<Self> {
        let directory = scene.directory().join("h");
        std::fs::create_dir_all(directory.join("tmp")).context("directory of the host")?;
        let mut root = programs.command("host-agent");
        let root = process::json("cache root", root.args(["cache", "root", "--json", "--pack"]).arg(&scene.pack))?;
        let pack = root.get("root").and_then(Value::as_str).context("cache root: no root")?.to_owned();
        let mut ports = free_ports();
        let mut port = || ports.next().context("no free port");
        let (ports, metrics) = ([port()?, port()?], port()?);
        let started = Instant::now();
        Ok(Self { programs, scene, directory, daemon: None, started, ports, metrics, pack, declared })
    }

    /// Where a guest's front listens.
    pub(super) fn address(&self, guest: &str) -> String {
        let port = GUESTS.iter().zip(self.ports).find(|(name, _)| **name == guest).map_or(0, |(_, port)| port);
        format!("127.0.0.1:{port}")
    }

    /// Declares another release, and has a running daemon take it.
    pub(super) fn declare(&mut self, declared: Declared) -> anyhow::Result<()> {
        self.declared = declared;
        self.write()?;
        anyhow::ensure!(self.tell(&["reload"])?, "reload was refused");
        Ok(())
    }

    fn write(&self) -> anyhow::Result<()> {
        let Self { directory, scene, programs, metrics, pack, declared, .. } = self;
        let (directory, Machine { vcpus, memory_mib }) = (directory.display(), Machine::DEMO);
        let mut text = format!(
            "[agent]\nstate_dir = \"{directory}/s\"\ncontrol_socket = \"{directory}/c.sock\"\n\
             metrics_listen = \"127.0.0.1:{metrics}\"\nretry_first_ms = 250\nretry_cap_s = 4\nstable_s = 30\non_stop = \"drain\"\n\
             [cache]\ndir = \"{directory}/cache\"\nquota_gib = 4\n\
             [hardware]\nvhost_device_vsock = \"{}\"\n[simulate]\nsimulator = \"{}\"\npki = \"{}\"\n\
             [models.m]\nmodel = \"{}\"\npack = \"{pack}\"\nsources = [\"{}\"]\n\
             [releases.r]\nbundle = \"{}\"\ntrust = \"{}\"\nimage = \"{}\"\n\
             [services.s]\naddress = \"{}\"\nspki_sha256 = \"{}\"\n",
            scene.vsock_tool.display(),
            programs.path("tdx-sim").display(),
            scene.pki.display(),
            scene.model,
            scene.pack.display(),
            declared.bundle.display(),
            scene.directory().join("trust.json").display(),
            declared.image.display(),
            scene.service_address(),
            scene.service_spki,
        );
        for (guest, port) in GUESTS.iter().zip(self.ports) {
            text.push_str(&format!(
                "[guests.{guest}]\nlisten = \"127.0.0.1:{port}\"\nrelease = \"r\"\nmodel = \"m\"\nservice = \"s\"\n\
                 vcpus = {vcpus}\nmemory_mib = {memory_mib}\ncontext_tokens = 512\nboot_deadline_s = 300\n\
                 drain_deadline_s = {DRAIN_S}\n"
            ));
        }
        std::fs::write(self.config(), text).context("agent.toml")
    }

    fn config(&self) -> PathBuf {
        self.directory.join("agent.toml")
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("c.sock")
    }

    /// What the daemon logged.
    pub(super) fn log(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    /// Starts the daemon.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(self.daemon.is_none(), "the daemon runs");
        self.write()?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).context("agent.log")?;
        let mut command = self.programs.command("host-agent");
        command.arg("agent").arg("--config").arg(self.config());
        // Whatever would be left over in a directory for temporary files shows.
        command.env("TMPDIR", self.directory.join("tmp")).stdout(Stdio::null()).stderr(log);
        self.daemon = Some(command.spawn().context("cannot start the daemon")?);
        self.started = Instant::now();
        Ok(())
    }

    /// The daemon's process.
    pub(super) fn daemon(&self) -> Option<i32> {
        self.daemon.as_ref().and_then(|daemon| i32::try_from(daemon.id()).ok())
    }

    /// Kills the daemon. It must not have ended by itself.
    pub(super) fn kill_daemon(&mut self) -> anyhow::Result<()> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        let ended = daemon.try_wait().context("the daemon")?;
        anyhow::ensure!(ended.is_none(), "the daemon ended by itself: {ended:?}");
        daemon.kill().and_then(|()| daemon.wait()).context("the daemon")?;
        Ok(())
    }

    /// Fails if the daemon ended by itself.
    pub(super) fn check_daemon(&mut self) -> anyhow::Result<()> {
        let ended = self.daemon.as_mut().map(Child::try_wait).transpose().context("the daemon")?.flatten();
        anyhow::ensure!(ended.is_none(), "the daemon ended by itself: {ended:?}");
        Ok(())
    }

    /// What the daemon says of itself; nothing while it does not answer.
    pub(super) fn status(&self) -> anyhow::Result<Option<Value>> {
        let mut command = self.programs.command("host-agent");
        command.args(["status", "--json", "--socket"]).arg(self.socket()).stderr(Stdio::null());
        let (text, _) = process::output("host-agent status", &mut command)?;
        Ok(serde_json::from_str(&text).ok())
    }

    /// Whether a command was accepted.
    pub(super) fn tell(&self, arguments: &[&str]) -> anyhow::Result<bool> {
        let mut command = self.programs.command("host-agent");
        command.args(arguments).args(["--json", "--socket"]).arg(self.socket());
        let (_, status) = process::output("host-agent", &mut command)?;
        Ok(status.success())
    }

    /// Waits until every guest serves as declared, nothing is upgraded or drained, and nothing is wrong.
    pub(super) fn wait_serving(&mut self, limit: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            self.pause(Duration::from_millis(250))?;
            self.check_daemon()?;
            let status = self.status()?;
            if status.as_ref().is_some_and(all_serve) {
                return Ok(());
            }
            anyhow::ensure!(start.elapsed() < limit, "not as declared after {} s: {status:?}", limit.as_secs());
        }
    }

    /// Sleeps, and waits for what ended meanwhile.
    pub(super) fn pause(&self, time: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            process::check_interrupt()?;
            processes::descendants();
            let left = time.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    /// Waits until exactly the processes of serving guests run, and the machine holds what it held at `baseline`. Gives what
    /// is held, and what is too much or missing after `limit`.
    pub(super) fn settle(
        &self,
        baseline: Option<&Holdings>,
        limit: Duration,
    ) -> anyhow::Result<(Holdings, Vec<String>)> {
        let start = Instant::now();
        let mut last: Option<Holdings> = None;
        loop {
            let processes = processes::descendants();
            let mut wrong = unexpected(&processes, self.daemon());
            let held = Holdings::count(&self.directory, &processes, &GUESTS);
            match (baseline, &last) {
                (Some(baseline), _) => wrong.extend(baseline.differences(&held)),
                // The first time, what is held must stay the same for a moment.
                (None, Some(last)) if *last == held => {}
                (None, _) => wrong.push("what is held changes".to_owned()),
            }
            if wrong.is_empty() || start.elapsed() > limit {
                return Ok((held, wrong));
            }
            last = Some(held);
            self.pause(Duration::from_millis(500))?;
        }
    }

    /// Has the daemon drain and stop everything and end. Gives what is left over.
    pub(super) fn stop_all(&mut self) -> anyhow::Result<Vec<String>> {
        anyhow::ensure!(self.tell(&["stop", "--all"])?, "stop --all was refused");
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        let ended = process::wait(&mut daemon, Some(STOP_PATIENCE));
        if ended.is_err() {
            self.daemon = Some(daemon);
        }
        let ended = ended.context("stop --all")?;
        self.pause(Duration::from_millis(500))?;
        let mut left: Vec<String> =
            (!ended.success()).then(|| format!("the daemon ended with {ended}")).into_iter().collect();
        let mut processes = processes::descendants();
        // The service is no part of the host.
        processes.retain(|process| process.kind != Kind::Service);
        left.extend(processes.iter().map(Process::describe));
        let held = Holdings::count(&self.directory, &processes, &GUESTS);
        for sort in LEFTOVERS {
            if held.sum(sort) > 0 {
                left.push(format!("{sort}: {} left", held.sum(sort)));
            }
        }
        Ok(left)
    }

    /// What the keeper of a guest's newest generation wrote down last.
    pub(super) fn progress(&self, guest: &str) -> Option<Value> {
        let guest = self.directory.join("s/guests").join(guest);
        let entries = std::fs::read_dir(guest).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path().join("progress.json"));
        let newest = paths.filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)));
        serde_json::from_slice(&std::fs::read(newest.max()?.1).ok()?).ok()
    }
}

impl Drop for Rig<'_> {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // What was meant to outlive the daemon ends with the run.
        processes::end_all();
    }
}

/// Whether all guests serve as declared, with no other generation.
pub(super) fn all_serve(status: &Value) -> bool {
    GUESTS.iter().all(|name| guest(status, name).is_some_and(serves)) && is_empty(status, "reasons")
}

/// A guest in a status.
pub(super) fn guest<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let guests = status.get("guests")?.as_array()?;
    guests.iter().find(|guest| guest.get("name").and_then(Value::as_str) == Some(name))
}

/// Whether a guest serves, with no other generation and nothing to complain of.
fn serves(guest: &Value) -> bool {
    let active = guest.pointer("/active/serving").and_then(Value::as_bool) == Some(true);
    let alone = guest.get("candidate").is_some_and(Value::is_null) && is_empty(guest, "retiring");
    active && alone && is_empty(guest, "reasons")
}

fn is_empty(value: &Value, field: &str) -> bool {
    value.get(field).and_then(Value::as_array).is_some_and(Vec::is_empty)
}

/// What differs from exactly the service, the daemon, and for each guest its keeper with three children, and its front.
fn unexpected(processes: &[Process], daemon: Option<i32>) -> Vec<String> {
    let own = nix::unistd::getpid().as_raw();
    let mut wrong = Vec::new();
    let mut known = std::collections::BTreeSet::new();
    let mut expect = |what: &str, fits: &dyn Fn(&Process) -> bool| {
        let found: Vec<&Process> = processes.iter().filter(|process| !process.zombie && fits(process)).collect();
        if found.len() != 1 {
            wrong.push(format!("{what}: {} processes, not 1", found.len()));
        }
        let pid = found.first().map(|process| process.pid);
        known.extend(pid);
        pid
    };
    expect("service", &|process| process.kind == Kind::Service && process.parent == own);
    expect("daemon", &|process| process.kind == Kind::Daemon && Some(process.pid) == daemon);
    for guest in GUESTS {
        let of = |process: &Process, kind| process.kind == kind && process.guest.as_deref() == Some(guest);
        // The daemon's child, or adopted from a daemon that was killed.
        let settled = |process: &Process| process.parent == own || Some(process.parent) == daemon;
        expect(&format!("front of {guest}"), &|process| of(process, Kind::Front) && settled(process));
        let keeper = expect(&format!("keeper of {guest}"), &|process| of(process, Kind::Keeper) && settled(process));
        for kind in [Kind::Qemu, Kind::Vsock, Kind::Simulator] {
            let what = format!("{} of {guest}", kind.as_str());
            expect(&what, &|process| of(process, kind) && Some(process.parent) == keeper);
        }
    }
    wrong.extend(processes.iter().filter(|process| !known.contains(&process.pid)).map(Process::describe));
    wrong
}

/// Ports that nobody has, below those that the kernel gives to whoever asks for any (ip(7)): nobody takes one while who
/// listens there is dead.
fn free_ports() -> impl Iterator<Item = u16> {
    let offset = u16::try_from(std::process::id() % 9_000).unwrap_or(0);
    (0..9_000)
        .map(move |step| 21_000 + (offset + step) % 9_000)
        .filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
}

/// Longer than any answer here takes.
const DRAIN_S: u32 = 240;
const STOP_PATIENCE: Duration = Duration::from_secs(120);
/// What nothing is left of when all guests were stopped.
const LEFTOVERS: [&str; 6] =
    ["socket file", "listening socket", "lock", "control group", "port", "directory s/guests/"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What runs when both guests serve: the daemon is process 2, a guest's keeper a multiple of ten.
    fn serving() -> Vec<Process> {
        let own = nix::unistd::getpid().as_raw();
        let mut all = vec![Process::made(1, own, Kind::Service, None), Process::made(2, own, Kind::Daemon, None)];
        // One keeper is the daemon's child, the other was adopted.
        for (guest, keeper, parent) in [("one", 10, 2), ("two", 20, own)] {
            let of = |pid, parent, kind| Process::made(pid, parent, kind, Some(guest));
            all.extend([of(keeper, parent, Kind::Keeper), of(keeper + 1, own, Kind::Front)]);
            let children = [Kind::Qemu, Kind::Vsock, Kind::Simulator].into_iter().zip(keeper + 2..);
            all.extend(children.map(|(kind, pid)| of(pid, keeper, kind)));
        }
        all
    }

    #[test]
    fn exactly_the_processes_of_serving_guests_are_expected() {
        assert_eq!(unexpected(&serving(), Some(2)), Vec::<String>::new());
        assert!(!unexpected(&serving(), Some(3)).is_empty(), "another daemon");
        for gone in 0..serving().len() {
            let mut fewer = serving();
            fewer.remove(gone);
            assert!(!unexpected(&fewer, Some(2)).is_empty(), "{gone}");
        }
        // A second QEMU, one that no keeper has any more, one that ended and that nobody waited for, and any other.
        let changes: [fn(&mut Vec<Process>); 4] = [
            |all| all.push(Process::made(99, 10, Kind::Qemu, Some("one"))),
            |all| all.iter_mut().filter(|process| process.pid == 12).for_each(|process| process.parent = 2),
            |all| all.iter_mut().filter(|process| process.pid == 12).for_each(|process| process.zombie = true),
            |all| all.push(Process::made(99, 10, Kind::Other, None)),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut all = serving();
            change(&mut all);
            assert!(!unexpected(&all, Some(2)).is_empty(), "{number}");
        }
    }

    #[test]
    fn a_guest_that_is_exchanged_drained_or_complained_of_does_not_count_as_serving() {
        let guest =
            json!({ "name": "one", "active": { "serving": true }, "candidate": null, "retiring": [], "reasons": [] });
        assert!(serves(&guest));
        for (field, value) in [
            ("active", json!({ "serving": false })),
            ("candidate", json!({})),
            ("retiring", json!([1])),
            ("reasons", json!([{ "code": "guest_silent" }])),
        ] {
            let mut other = guest.clone();
            other[field] = value;
            assert!(!serves(&other), "{field}");
        }
        let status = json!({ "guests": [guest], "reasons": [] });
        assert!(!all_serve(&status), "one of two");
    }
}
