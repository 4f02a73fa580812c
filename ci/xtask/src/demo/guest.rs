// SPDX-License-Identifier: Apache-2.0
//! A guest, launched by the host agent.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::process::{self, Background};

use super::programs::Programs;
use super::report::Report;
use super::scene::{Machine, Scene};

/// How a boot ended.
pub(crate) enum Ending {
    /// It serves at this address.
    Serving(String),
    /// It halted itself: phase and numeric code.
    Halted { phase: String, code: u64 },
}

/// What is launched.
#[derive(Clone, Copy)]
pub(crate) struct Launch<'a> {
    pub(crate) image: &'a Path,
    pub(crate) machine: Machine,
    /// Another QEMU than the one on the path.
    pub(crate) qemu: Option<&'a Path>,
}

impl<'a> Launch<'a> {
    /// The demo's machine with this image.
    pub(crate) fn demo(image: &'a Path) -> Self {
        Self { image, machine: Machine::DEMO, qemu: None }
    }
}

/// A launched guest.
pub(crate) struct Guest {
    agent: Background,
    directory: PathBuf,
    started: Instant,
    address: String,
    measured: Option<Value>,
    /// All that the agent said.
    said: String,
    qemu_pid: Option<u64>,
}

impl Guest {
    /// Prepares a run directory, lets `tamper` change it as a hostile host would, and launches it.
    pub(crate) fn boot(
        programs: &Programs,
        scene: &Scene,
        launch: Launch<'_>,
        name: &str,
        tamper: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let Launch { image, machine, qemu } = launch;
        let directory = scene.directory().join(name);
        let mut prepare = programs.command("host-agent");
        prepare
            .arg("prepare")
            .arg("--run-dir")
            .arg(&directory)
            .arg("--image")
            .arg(image)
            .arg("--model-pack")
            .arg(&scene.pack)
            .args(["--model", &scene.model])
            .args(["--service", scene.service_address(), "--service-spki", &scene.service_spki])
            .args(["--tee", "simulated", "--accel", "tcg"])
            .args(machine.arguments())
            .args([
                "--context-tokens",
                &scene.context_tokens.to_string(),
                "--threads-decode",
                "1",
                "--threads-prefill",
                "2",
            ]);
        if let Some(qemu) = qemu {
            prepare.arg("--qemu").arg(qemu);
        }
        process::run("host-agent prepare", &mut prepare)?;
        tamper(&directory)?;
        let started = Instant::now();
        let mut launch = programs.command("host-agent");
        launch
            .arg("start")
            .arg("--run-dir")
            .arg(&directory)
            .arg("--vhost-device-vsock")
            .arg(&scene.vsock_tool)
            .arg("--simulator")
            .arg(programs.path("tdx-sim"))
            .arg("--simulator-pki")
            .arg(&scene.pki)
            .args(["--boot-timeout", &BOOT_TIMEOUT.to_string(), "--json"]);
        let log = scene.directory().join(format!("{name}.agent.log"));
        let agent = Background::start("host-agent", &mut launch, &log)?;
        Ok(Self {
            agent,
            directory,
            started,
            address: String::new(),
            measured: None,
            said: String::new(),
            qemu_pid: None,
        })
    }

    /// Follows the boot until it serves; shows its phases.
    pub(crate) fn wait_until_serving(&mut self, report: &mut Report) -> anyhow::Result<()> {
        report.title("boot (hardware simulated)");
        match self.follow(Some(report))? {
            Ending::Serving(address) => {
                report.part("boot, key release, decryption", self.started.elapsed().as_secs_f64());
                self.address = address;
                Ok(())
            }
            Ending::Halted { phase, code } => {
                anyhow::bail!("the guest halted in phase {phase} with code {code}: see docs/status-codes.md")
            }
        }
    }

    /// Follows the boot until it serves or halts.
    pub(crate) fn follow(&mut self, mut report: Option<&mut Report>) -> anyhow::Result<Ending> {
        while let Some(event) = self.event()? {
            let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let number = |name: &str| event.get(name).and_then(Value::as_u64).unwrap_or_default();
            match text("event").as_str() {
                "started" => {
                    self.measured = event.get("measured").cloned();
                    self.qemu_pid = event.get("qemu_pid").and_then(Value::as_u64);
                }
                "phase" => {
                    if let Some(report) = report.as_deref_mut() {
                        let (phase, at) = (text("phase"), number("since_start"));
                        report.line(&format!("{phase:<14} {:>6.1} s", seconds(at)));
                        report
                            .phases
                            .push(json!({ "name": phase, "milliseconds": number("milliseconds"), "since_start": at }));
                    }
                }
                "memory" => {
                    if let Some(report) = report.as_deref_mut() {
                        report.memory_kib = Some(number("kib"));
                        report.line(&format!("guest memory {} MiB, the model in it", number("kib") / 1024));
                    }
                }
                "serving" => return Ok(Ending::Serving(text("address"))),
                "halted" => return Ok(Ending::Halted { phase: text("phase"), code: number("code") }),
                "ended" => anyhow::bail!("{}: logs are in {}", text("reason"), self.directory.display()),
                _ => {}
            }
        }
        anyhow::bail!("host-agent ended without a word: logs are in {}", self.directory.display())
    }

    /// The host agent's next event.
    pub(crate) fn event(&mut self) -> anyhow::Result<Option<Value>> {
        let Some(line) = self.agent.line(Duration::from_secs(BOOT_TIMEOUT + 20))? else { return Ok(None) };
        self.said.push_str(&line);
        serde_json::from_str(&line).map(Some).context("host-agent: not an event")
    }

    /// What the simulator measured of the launch.
    pub(crate) fn measured(&self) -> anyhow::Result<&Value> {
        self.measured.as_ref().context("host-agent did not say what was measured")
    }

    /// All that the agent said so far.
    pub(crate) fn said(&self) -> &str {
        &self.said
    }

    /// The processes that carry it.
    pub(crate) fn processes(&self) -> impl Iterator<Item = u64> {
        [Some(u64::from(self.agent.pid())), self.qemu_pid].into_iter().flatten()
    }

    /// Tells it to finish, as a host does.
    pub(crate) fn drain(&self) -> anyhow::Result<()> {
        let mut link = UnixStream::connect(self.directory.join("vsock"))?;
        link.set_read_timeout(Some(Duration::from_secs(20)))?;
        link.write_all(format!("CONNECT {}\n", drain_protocol::PORT).as_bytes())?;
        let mut byte = [0];
        while byte != *b"\n" {
            link.read_exact(&mut byte).context("the guest does not listen")?;
        }
        link.write_all(&drain_protocol::REQUEST)?;
        let mut answer = [0; drain_protocol::ANSWER.len()];
        link.read_exact(&mut answer).context("the guest does not answer")?;
        anyhow::ensure!(answer == drain_protocol::ANSWER, "the guest answers something else");
        Ok(())
    }

    /// Where it serves.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Seconds since its launch.
    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Ends it and its host agent.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        drop(self);
        process::check_interrupt()
    }
}

#[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

const BOOT_TIMEOUT: u64 = 180;
