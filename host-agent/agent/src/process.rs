// SPDX-License-Identifier: Apache-2.0
//! Child processes that never outlive the agent.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::orphans;

/// A child that is ended with its owner, and by the kernel should the agent die without a word
/// (`setpriv --pdeathsig`, util-linux).
#[derive(Debug)]
pub(crate) struct Guarded {
    name: &'static str,
    child: Child,
    pid: u32,
}

impl Guarded {
    /// Starts `program` for `run_dir`; its output goes to the file `log` there. With `piped` its standard output can be read instead.
    pub(crate) fn spawn(
        name: &'static str,
        program: &Path,
        arguments: &[String],
        run_dir: &Path,
        log: &str,
        piped: bool,
    ) -> anyhow::Result<Self> {
        let log = &run_dir.join(log);
        let log_file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let errors = log_file.try_clone().with_context(|| format!("cannot write {}", log.display()))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .env(orphans::VARIABLE, run_dir)
            .stdin(Stdio::null())
            .stdout(if piped { Stdio::piped() } else { Stdio::from(log_file) })
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name} ({})", program.display()))?;
        let pid = child.id().with_context(|| format!("{name} ended at once: see {}", log.display()))?;
        Ok(Self { name, child, pid })
    }

    pub(crate) const fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn take_stdout(&mut self) -> Option<tokio::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for the end; says how it ended.
    pub(crate) async fn wait(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => format!("{} ended: {status}", self.name),
            Err(error) => format!("{} cannot be waited for: {error}", self.name),
        }
    }

    /// Asks the child to end, then ends it.
    pub(crate) async fn stop(&mut self) {
        if let Ok(pid) = i32::try_from(self.pid)
            && self.child.id().is_some()
        {
            // The process may be gone already: then there is nothing to signal.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

const GRACE: Duration = Duration::from_secs(3);
