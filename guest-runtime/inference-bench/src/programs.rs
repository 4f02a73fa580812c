// SPDX-License-Identifier: Apache-2.0
//! The guest's processes. Each ends with the value that holds it.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::Measure;
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

    /// Its resident memory now and at most, in bytes.
    fn memory(&self) -> anyhow::Result<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("memory")?;
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

/// A guest that serves, and the peer without attestation.
pub(crate) struct Programs {
    pub(crate) attested: SocketAddr,
    pub(crate) plain: SocketAddr,
    attester: Program,
    serve: Program,
    engine: Program,
    _plain: Program,
    _engine: Program,
}

impl Programs {
    pub(crate) fn start(arguments: &Measure, directory: &Path) -> anyhow::Result<Self> {
        let this = std::env::current_exe()?;
        let mut attester =
            Program::start("attester", Command::new(&this).arg("attester").arg("--directory").arg(directory))?;
        attester.line()?;
        let (engine, socket) = start_engine(arguments, directory, "engine.sock")?;
        let (other, other_socket) = start_engine(arguments, directory, "other.sock")?;
        let mut serve = Program::start(
            "serve",
            Command::new(&arguments.serve)
                .arg("--attester-socket")
                .arg(directory.join(SOCKET))
                .arg("--engine-socket")
                .arg(&socket)
                .args(["--listen", "127.0.0.1:0", "--print-address"]),
        )?;
        let mut plain =
            Program::start("plain", Command::new(&this).arg("plain").arg("--engine-socket").arg(&other_socket))?;
        let (attested, plain_address) = (serve.line()?.parse()?, plain.line()?.parse()?);
        Ok(Self { attested, plain: plain_address, attester, serve, engine, _plain: plain, _engine: other })
    }

    /// Bytes of memory: of serve and attester together, now and at most, and of the engine.
    pub(crate) fn memory(&self) -> anyhow::Result<Value> {
        let (serve, attester, engine) = (self.serve.memory()?, self.attester.memory()?, self.engine.memory()?);
        Ok(json!({
            "serve": serve.0, "serve_most": serve.1, "attester": attester.0, "attester_most": attester.1,
            "engine": engine.0,
        }))
    }
}

fn start_engine(arguments: &Measure, directory: &Path, name: &str) -> anyhow::Result<(Program, PathBuf)> {
    let socket = directory.join(name);
    let threads = arguments.threads.to_string();
    let mut command = Command::new(&arguments.engine);
    command.arg("--model").arg(&arguments.model).arg("--socket").arg(&socket).args(["--context", "1024"]);
    command.args(["--cache", "8192", "--threads-decode", &threads, "--threads-prefill", &threads]);
    let mut engine = Program::start("engine", &mut command)?;
    let started = Instant::now();
    while !socket.exists() {
        anyhow::ensure!(engine.child.try_wait()?.is_none(), "the engine ended");
        anyhow::ensure!(started.elapsed() < Duration::from_secs(60), "the engine does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok((engine, socket))
}
