// SPDX-License-Identifier: Apache-2.0
//! The processes of a run. This program adopts whatever loses its parent below it, so that all of them descend from it, and
//! none that was forgotten can hide.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::Serialize;

/// What a process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    Daemon,
    Keeper,
    Front,
    Qemu,
    Vsock,
    Simulator,
    Service,
    Other,
}

impl Kind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Keeper => "keeper",
            Self::Front => "front",
            Self::Qemu => "qemu",
            Self::Vsock => "vsock",
            Self::Simulator => "simulator",
            Self::Service => "service",
            Self::Other => "other",
        }
    }

    fn of(words: &[String]) -> Self {
        let program = words.first().and_then(|word| Path::new(word).file_name()?.to_str()).unwrap_or_default();
        match (program, words.get(1).map(String::as_str)) {
            ("host-agent", Some("agent")) => Self::Daemon,
            ("host-agent", Some("start")) => Self::Keeper,
            ("host-agent", Some("front")) => Self::Front,
            ("vhost-device-vsock", _) => Self::Vsock,
            ("tdx-sim", Some("device")) => Self::Simulator,
            ("attestation-service-sim", _) => Self::Service,
            (program, _) if program.starts_with("qemu-system") => Self::Qemu,
            _ => Self::Other,
        }
    }
}

/// A process.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) parent: i32,
    session: i32,
    pub(super) zombie: bool,
    pub(super) kind: Kind,
    /// The guest that its command line names.
    pub(super) guest: Option<String>,
    line: String,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything (proc(5)).
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let number = |place: usize| fields.get(place)?.parse::<i32>().ok();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<String> = line
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let line = words.join(" ").chars().take(LINE).collect();
        let zombie = fields.first() == Some(&"Z");
        let (kind, guest) = (Kind::of(&words), guest_in(&words));
        Some(Self { pid, parent: number(1)?, session: number(3)?, zombie, kind, guest, line })
    }

    /// One that runs, for tests.
    #[cfg(test)]
    pub(super) fn made(pid: i32, parent: i32, kind: Kind, guest: Option<&str>) -> Self {
        let (guest, line) = (guest.map(str::to_owned), String::new());
        Self { pid, parent, session: pid, zombie: false, kind, guest, line }
    }

    /// For a list of what is left over.
    pub(super) fn describe(&self) -> String {
        let state = if self.zombie { "zombie " } else { "" };
        format!("{state}process {} of {}: {} {}", self.pid, self.parent, self.kind.as_str(), self.line)
    }

    pub(super) fn kill(&self) -> bool {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).is_ok()
    }
}

/// The guest whose directory a command line names.
fn guest_in(words: &[String]) -> Option<String> {
    let rest = words.iter().find_map(|word| Some(word.split_once("/guests/")?.1))?;
    let name = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// From now on what loses its parent below this process becomes its child.
pub(super) fn adopt_orphans() -> anyhow::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("cannot adopt orphaned processes")
}

/// All that descend from this process. Those that ended, and that it had adopted, are gone after that.
pub(super) fn descendants() -> Vec<Process> {
    let all: Vec<Process> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Process::read(entry.file_name().to_str()?.parse().ok()?))
        .collect();
    let own = nix::unistd::getpid().as_raw();
    let session = nix::unistd::getsid(None).map_or(own, Pid::as_raw);
    let mut known = BTreeSet::from([own]);
    loop {
        let before = known.len();
        known.extend(
            all.iter().filter(|process| known.contains(&process.parent)).map(|process| process.pid).collect::<Vec<_>>(),
        );
        if known.len() == before {
            break;
        }
    }
    let mut found: Vec<Process> =
        all.into_iter().filter(|process| process.pid != own && known.contains(&process.pid)).collect();
    // The agent's keepers and fronts have sessions of their own. Children of this program's are waited for where they were
    // started.
    found.retain(|process| {
        let adopted = process.zombie && process.parent == own && process.session != session;
        !(adopted && waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG)).is_ok())
    });
    found
}

/// Ends all that the agent left running: every descendant in another session, and the daemon.
pub(super) fn end_all() {
    let session = nix::unistd::getsid(None).map_or(0, Pid::as_raw);
    for _ in 0..ROUNDS {
        let left: Vec<Process> = descendants()
            .into_iter()
            .filter(|process| process.session != session || process.kind == Kind::Daemon)
            .collect();
        if left.is_empty() {
            return;
        }
        for process in left {
            process.kill();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

const LINE: usize = 160;
const ROUNDS: u32 = 250;

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn processes_are_known_by_their_command_lines() {
        let front = words("/b/host-agent front --dir /t/h/s/guests/one --listen 127.0.0.1:1");
        assert_eq!((Kind::of(&front), guest_in(&front).as_deref()), (Kind::Front, Some("one")));
        let vsock = words("/b/vhost-device-vsock --vm guest-cid=3,socket=/t/s/guests/two/g7/vhost.sock,uds-path=/x");
        assert_eq!((Kind::of(&vsock), guest_in(&vsock).as_deref()), (Kind::Vsock, Some("two")));
        assert_eq!(Kind::of(&words("setsid /b/host-agent start")), Kind::Other);
        assert_eq!(Kind::of(&[]), Kind::Other);
        assert_eq!(guest_in(&words("/b/host-agent agent --config /t/agent.toml")), None);
    }

    #[test]
    fn a_child_of_a_child_descends_from_this_process() {
        let mut child = std::process::Command::new("sh").args(["-c", "sleep 600; :"]).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let own = nix::unistd::getpid().as_raw();
        let grandchild = loop {
            if let Some(found) = descendants().into_iter().find(|process| process.parent == pid) {
                break found;
            }
        };
        let found = descendants();
        assert!(found.iter().any(|process| process.pid == pid && process.parent == own && !process.zombie));
        assert!(!found.iter().any(|process| process.pid == own));
        child.kill().unwrap();
        // Not waited for yet.
        while !descendants().iter().any(|process| process.pid == pid && process.zombie) {}
        child.wait().unwrap();
        assert!(grandchild.kill());
    }
}
