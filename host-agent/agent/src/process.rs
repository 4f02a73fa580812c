// SPDX-License-Identifier: Apache-2.0
//! Child processes that never outlive the agent.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::{log, orphans};

/// Below a run directory: its children's temporary files.
pub(crate) const SCRATCH: &str = "t";

/// A child that is ended with its owner, and by the kernel should the agent die without a word
/// (`setpriv --pdeathsig`, util-linux).
#[derive(Debug)]
pub(crate) struct Guarded {
    name: &'static str,
    child: Child,
    pid: u32,
    /// Writes its log.
    log: Option<JoinHandle<()>>,
}

impl Guarded {
    /// Starts `program` for `run_dir`; its output goes to the file `log` there, as far as
    /// [`log::keep`] says. With `piped` its standard output can be read instead.
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
        let (output, errors) = std::io::pipe().context("cannot make a pipe")?;
        let words = errors.try_clone().context("cannot make a pipe")?;
        let output = pipe::Receiver::from_owned_fd(output.into()).context("cannot read from a pipe")?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .env(orphans::VARIABLE, run_dir)
            // Where it leaves nothing behind when it is killed: see `launch::clear`.
            .env("TMPDIR", run_dir.join(SCRATCH))
            .stdin(Stdio::null())
            .stdout(if piped { Stdio::piped() } else { Stdio::from(words) })
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name} ({})", program.display()))?;
        let pid = child.id().with_context(|| format!("{name} ended at once: see {}", log.display()))?;
        Ok(Self { name, child, pid, log: Some(tokio::spawn(log::keep(output, log_file))) })
    }

    pub(crate) const fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn take_stdout(&mut self) -> Option<tokio::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for the end; says how it ended.
    pub(crate) async fn wait(&mut self) -> String {
        let ended = self.child.wait().await;
        self.end_log().await;
        match ended {
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
        self.end_log().await;
    }

    /// Waits until the last words are written. Who inherited the output and lives on delays nobody.
    async fn end_log(&mut self) {
        if let Some(log) = self.log.take() {
            let _ = tokio::time::timeout(GRACE, log).await;
        }
    }
}

const GRACE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_that_speaks_without_end_fills_no_disk_and_its_last_words_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let script = "head -c 20000000 /dev/zero; echo the end >&2".to_owned();
        let arguments = ["-c".to_owned(), script];
        let mut child =
            Guarded::spawn("a shell", Path::new("sh"), &arguments, directory.path(), "qemu.log", false).unwrap();
        assert_eq!(child.wait().await, "a shell ended: exit status: 0");
        let log = std::fs::read(directory.path().join("qemu.log")).unwrap();
        assert!((1 << 20..1_200_000).contains(&log.len()), "{}", log.len());
        assert!(log.ends_with(b"\0the end\n"));
    }
}
