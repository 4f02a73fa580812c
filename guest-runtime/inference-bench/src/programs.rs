// SPDX-License-Identifier: Apache-2.0
//! The guest's processes. Each ends with the value that holds it.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::Binaries;
use crate::guest::SOCKET;

/// A process of the guest.
pub(crate) struct Program {
    name: &'static str,
    child: Child,
}

impl Program {
    fn start(name: &'static str, command: &mut Command) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context(name)?;
        Ok(Self { name, child })
    }

    /// Its first line.
    fn line(&mut self) -> anyhow::Result<String> {
        let output = self.child.stdout.take().context(self.name)?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "{} ended", self.name);
        Ok(line.trim().to_owned())
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Processor time that it has taken, in ticks of the kernel's clock (a hundredth of a second).
    pub(crate) fn ticks(&self) -> anyhow::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // Behind the name, which may hold anything: proc_pid_stat(5), fields 14 and 15.
        let (_, fields) = text.rsplit_once(')').context("stat")?;
        fields
            .split_ascii_whitespace()
            .skip(11)
            .take(2)
            .try_fold(0_u64, |sum, field| sum.checked_add(field.parse()?).context("stat"))
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> anyhow::Result<usize> {
        let folder = format!("/proc/{}/fd", self.child.id());
        Ok(std::fs::read_dir(&folder).context("its descriptors are root's to see")?.count())
    }

    /// Its resident memory now and at most, in bytes.
    pub(crate) fn memory(&self) -> anyhow::Result<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let line = line.with_context(|| format!("{} has ended", self.name))?;
            Ok(line.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>()?.saturating_mul(1024))
        };
        Ok((field("VmRSS")?, field("VmHWM")?))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself, when its peer went.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sizes of the engine, in tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Of one conversation.
    pub(crate) context: u32,
    /// Of all together.
    pub(crate) cache: u32,
}

/// A guest that serves.
pub(crate) struct Attested {
    pub(crate) address: SocketAddr,
    pub(crate) attester: Program,
    pub(crate) serve: Program,
    pub(crate) engine: Program,
}

impl Attested {
    pub(crate) fn start(binaries: &Binaries, directory: &Path, room: Room) -> anyhow::Result<Self> {
        let this = std::env::current_exe()?;
        let mut attester =
            Program::start("attester", Command::new(&this).arg("attester").arg("--directory").arg(directory))?;
        attester.line()?;
        let (engine, socket) = start_engine(binaries, room, directory, "engine.sock")?;
        let mut serve = Program::start(
            "serve",
            Command::new(&binaries.serve)
                .arg("--attester-socket")
                .arg(directory.join(SOCKET))
                .arg("--engine-socket")
                .arg(&socket)
                .args(["--listen", "127.0.0.1:0", "--print-address"]),
        )?;
        let address = serve.line()?.parse()?;
        Ok(Self { address, attester, serve, engine })
    }
}

/// A guest that serves, and the peer without attestation.
pub(crate) struct Programs {
    pub(crate) attested: Attested,
    pub(crate) plain: SocketAddr,
    _plain: Program,
    _engine: Program,
}

impl Programs {
    pub(crate) fn start(binaries: &Binaries, directory: &Path) -> anyhow::Result<Self> {
        let this = std::env::current_exe()?;
        let attested = Attested::start(binaries, directory, ROOM)?;
        let (engine, socket) = start_engine(binaries, ROOM, directory, "other.sock")?;
        let mut plain = Program::start("plain", Command::new(&this).arg("plain").arg("--engine-socket").arg(&socket))?;
        let address = plain.line()?.parse()?;
        Ok(Self { attested, plain: address, _plain: plain, _engine: engine })
    }

    /// Bytes of memory: of serve and attester, now and at most, and of the engine.
    pub(crate) fn memory(&self) -> anyhow::Result<Value> {
        let Attested { serve, attester, engine, .. } = &self.attested;
        let (serve, attester, engine) = (serve.memory()?, attester.memory()?, engine.memory()?);
        Ok(json!({
            "serve": serve.0, "serve_most": serve.1, "attester": attester.0, "attester_most": attester.1,
            "engine": engine.0,
        }))
    }
}

fn start_engine(binaries: &Binaries, room: Room, directory: &Path, name: &str) -> anyhow::Result<(Program, PathBuf)> {
    let socket = directory.join(name);
    let (threads, context, cache) = (binaries.threads.to_string(), room.context.to_string(), room.cache.to_string());
    let mut command = Command::new(&binaries.engine);
    command.arg("--model").arg(&binaries.model).arg("--socket").arg(&socket).args(["--context", &context]);
    command.args(["--cache", &cache, "--threads-decode", &threads, "--threads-prefill", &threads]);
    let mut engine = Program::start("engine", &mut command)?;
    let started = Instant::now();
    while !socket.exists() {
        anyhow::ensure!(engine.is_alive(), "the engine ended");
        anyhow::ensure!(started.elapsed() < Duration::from_secs(60), "the engine does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok((engine, socket))
}

/// Of the engines that are compared.
const ROOM: Room = Room { context: 1024, cache: 8192 };
