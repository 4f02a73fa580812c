// SPDX-License-Identifier: Apache-2.0
//! Running programs so that none outlives this one.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Seek as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context as _;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on an interrupt is noted, and every wait below ends with an error.
pub(crate) fn watch_for_interrupts() {
    // Without the handler an interrupt ends this program at once and the kernel ends its children: still no orphan.
    let _ = ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::SeqCst));
}

/// Fails when the user has asked to stop.
pub(crate) fn check_interrupt() -> anyhow::Result<()> {
    anyhow::ensure!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted: the next run continues from what is complete");
    Ok(())
}

/// A command that the kernel ends when this program ends, however that happens.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program).stdin(Stdio::null());
    command
}

/// Runs a command to its end with its output on this terminal.
pub(crate) fn run(step: &str, command: &mut Command) -> anyhow::Result<()> {
    let mut child = command.spawn().with_context(|| format!("{step}: cannot start {:?}", command.get_program()))?;
    let status = wait(&mut child, None).with_context(|| step.to_owned())?;
    anyhow::ensure!(status.success(), "{step}: failed with {status}");
    Ok(())
}

/// Runs a command to its end; gives its standard output and whether it succeeded. Its errors go to this terminal.
pub(crate) fn output(step: &str, command: &mut Command) -> anyhow::Result<(String, ExitStatus)> {
    command.stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{step}: cannot start {:?}", command.get_program()))?;
    let stdout = child.stdout.take().context("no output")?;
    let reader = std::thread::spawn(move || std::io::read_to_string(stdout));
    let status = wait(&mut child, None).with_context(|| step.to_owned())?;
    let text = reader.join().map_err(|_| anyhow::anyhow!("{step}: output lost"))?.with_context(|| step.to_owned())?;
    Ok((text, status))
}

/// Runs a command that prints one JSON document as its last line, and must succeed. Its errors go to this terminal as
/// they come: for long work that shows progress there.
pub(crate) fn json_with_progress(step: &str, command: &mut Command) -> anyhow::Result<serde_json::Value> {
    let (text, status) = output(step, command)?;
    last_document(step, &text, status)
}

/// Runs a command that prints one JSON document as its last line, and must succeed. Its errors are shown when it fails.
pub(crate) fn json(step: &str, command: &mut Command) -> anyhow::Result<serde_json::Value> {
    let mut errors = tempfile::tempfile().context("temporary file")?;
    command.stderr(errors.try_clone().context("temporary file")?);
    let (text, status) = output(step, command)?;
    if !status.success() {
        errors.rewind().context("temporary file")?;
        eprint!("{}", std::io::read_to_string(errors).context("temporary file")?);
    }
    last_document(step, &text, status)
}

fn last_document(step: &str, text: &str, status: ExitStatus) -> anyhow::Result<serde_json::Value> {
    anyhow::ensure!(status.success(), "{step}: failed with {status}\n{}", text.trim_end());
    let line = text.lines().last().with_context(|| format!("{step}: said nothing"))?;
    serde_json::from_str(line).with_context(|| format!("{step}: its last line is no JSON"))
}

/// Waits for a child; an interrupt or a deadline ends it.
pub(crate) fn wait(child: &mut Child, limit: Option<Duration>) -> anyhow::Result<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let late = limit.is_some_and(|limit| start.elapsed() > limit);
        if late || check_interrupt().is_err() {
            stop(child);
            check_interrupt()?;
            anyhow::bail!("did not end within {} s", limit.unwrap_or_default().as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asks a child to end, then ends it.
pub(crate) fn stop(child: &mut Child) {
    let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).stderr(Stdio::null()).status();
    let start = Instant::now();
    while start.elapsed() < GRACE {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// A background program, ended when this value goes. Lines of its standard output can be awaited.
pub(crate) struct Background {
    name: String,
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Background {
    /// Starts a program; its errors go to `log`.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let file = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name} ({:?})", command.get_program()))?;
        let stdout = child.stdout.take().context("no output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { name: name.to_owned(), child, lines })
    }

    /// The next line, or `None` when the program closed its output.
    pub(crate) fn line(&mut self, limit: Duration) -> anyhow::Result<Option<String>> {
        let start = Instant::now();
        loop {
            check_interrupt()?;
            match self.lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => return Ok(Some(line)),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(None),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    anyhow::ensure!(start.elapsed() < limit, "{} said nothing for {} s", self.name, limit.as_secs());
                }
            }
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(crate) fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its own end.
    pub(crate) fn finish(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        wait(&mut self.child, Some(limit)).with_context(|| self.name.clone())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.alive() {
            stop(&mut self.child);
        }
    }
}

const GRACE: Duration = Duration::from_secs(10);
