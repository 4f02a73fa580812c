// SPDX-License-Identifier: Apache-2.0
//! The service as a program of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::Scene;

/// How the program is started.
#[derive(Debug, Clone)]
pub struct Starter {
    /// The program: `attestation-bench-service`, or `attestation-service-sim`.
    pub program: PathBuf,
    /// More arguments of `serve`.
    pub arguments: Vec<String>,
    /// Collateral from the scene's file; otherwise the arguments say where it comes from.
    pub collateral: bool,
}

/// A service that runs. Killed when dropped.
pub struct Program {
    child: Child,
    /// Where it listens, on loopback.
    pub address: SocketAddr,
}

impl Starter {
    /// The program as it is, with the scene's collateral.
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self { program, arguments: Vec::new(), collateral: true }
    }

    /// A command of the program on the scene's store, before its own arguments.
    #[must_use]
    pub fn command(&self, scene: &Scene) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--sim-root").arg(scene.root()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Starts `serve` and waits until it listens.
    ///
    /// # Errors
    /// It ended before, or does not listen for a minute.
    pub fn start(&self, scene: &Scene) -> anyhow::Result<Program> {
        self.start_named(scene, "service")
    }

    /// The same beside other services of this scene: each has a name.
    ///
    /// # Errors
    /// It ended before, or does not listen for a minute.
    pub fn start_named(&self, scene: &Scene, name: &str) -> anyhow::Result<Program> {
        let ready = scene.dir().join(format!("{name}.ready"));
        let _ = std::fs::remove_file(&ready);
        let log = std::fs::File::create(scene.dir().join(format!("{name}.log")))?;
        let mut command = self.command(scene);
        command.arg("serve").args(scene.store_arguments()).arg("--listen").arg("127.0.0.1:0");
        command.arg("--ready-file").arg(&ready).args(&self.arguments).stderr(log).env("CHRYSALIS_LOG", "warn");
        if self.collateral {
            command.arg("--collateral").arg(scene.collateral());
        }
        let mut program =
            Program { child: command.spawn().context("the service")?, address: ([127, 0, 0, 1], 0).into() };
        let started = Instant::now();
        loop {
            if let Ok(text) = std::fs::read_to_string(&ready) {
                program.address = text.parse().context("the ready file")?;
                return Ok(program);
            }
            if let Some(status) = program.child.try_wait()? {
                let log = std::fs::read_to_string(scene.dir().join(format!("{name}.log"))).unwrap_or_default();
                anyhow::bail!("the service ended ({status}): {log}");
            }
            anyhow::ensure!(started.elapsed() < Duration::from_secs(60), "the service does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Program {
    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill(mut self) {
        self.end();
    }

    /// Asks it to end (SIGTERM) and gives its exit code.
    ///
    /// # Errors
    /// It has no process any more.
    pub fn terminate(mut self) -> anyhow::Result<Option<i32>> {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, rustix::process::Signal::TERM)?;
        Ok(self.child.wait()?.code())
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}
