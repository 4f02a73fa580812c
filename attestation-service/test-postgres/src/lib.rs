// SPDX-License-Identifier: Apache-2.0
//! A PostgreSQL server for one test, out of the system's package: in a temporary directory, on a Unix socket, with every
//! write synced as in production. It ends with the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// A server. Stopped when dropped.
pub struct Server {
    binaries: PathBuf,
    dir: tempfile::TempDir,
    settings: Vec<String>,
    running: Option<Child>,
    databases: AtomicU32,
}

impl Server {
    /// Starts one; `None`, after saying so, where none is installed.
    ///
    /// # Errors
    /// It is installed and does not start.
    pub fn start(what: &str) -> anyhow::Result<Option<Self>> {
        Self::start_with(what, |_| Ok(Vec::new()))
    }

    /// [`Server::start`] with more settings (`name=value`), made when the directory is there.
    ///
    /// # Errors
    /// It is installed and does not start.
    pub fn start_with(
        what: &str,
        settings: impl FnOnce(&Path) -> anyhow::Result<Vec<String>>,
    ) -> anyhow::Result<Option<Self>> {
        let Some(binaries) = installed() else {
            eprintln!("SKIPPED: {what} on PostgreSQL: no server is installed");
            return Ok(None);
        };
        let dir = tempfile::Builder::new().prefix("pg").tempdir()?;
        let settings = settings(dir.path())?;
        hand_over(dir.path())?;
        let mut server = Self { binaries, dir, settings, running: None, databases: AtomicU32::new(0) };
        let made = server
            .command("initdb")
            .args(["--username=postgres", "--auth=trust", "--no-sync", "--no-instructions", "--encoding=UTF8"])
            .arg("--locale=C")
            .arg("--pgdata")
            .arg(server.data())
            .output()
            .context("initdb")?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        server.start_again()?;
        Ok(Some(server))
    }

    /// An empty database of its own; gives its URL.
    ///
    /// # Errors
    /// The server does not make it.
    pub fn database(&self) -> anyhow::Result<String> {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let sql = format!("CREATE DATABASE {name} TEMPLATE template0");
        self.sql("postgres", &sql)?;
        Ok(self.url(&name))
    }

    /// The URL of a database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres:///{database}?host={}&user=postgres", self.dir.path().display())
    }

    /// Runs SQL in the database that a URL of [`Server::database`] names, as the server's owner; gives what it prints.
    ///
    /// # Errors
    /// It is refused.
    pub fn sql(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let name = database.strip_prefix("postgres:///").unwrap_or(database);
        let name = name.split('?').next().unwrap_or(name);
        self.psql(name, sql)
    }

    fn psql(&self, name: &str, sql: &str) -> anyhow::Result<String> {
        let port = self.port().unwrap_or(5432).to_string();
        let output = Command::new(self.binaries.join("psql"))
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"])
            .arg("--host")
            .arg(self.dir.path())
            .args(["--port", &port, "--username=postgres", "--dbname", name, "--command", sql])
            .output()
            .context("psql")?;
        ensure!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Ends it as a crash does: what was not synced is lost, connections break off.
    ///
    /// # Errors
    /// It does not run.
    pub fn crash(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::QUIT)
    }

    /// Stops all of it in its tracks, or lets it go on: connections stay, and nothing is answered.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self, frozen: bool) -> anyhow::Result<()> {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        let main = Pid::from_child(self.running.as_ref().context("it does not run")?);
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", main.as_raw_nonzero()))?;
        kill_process(main, signal)?;
        for child in children.split_whitespace() {
            let child = Pid::from_raw(child.parse()?).context("process")?;
            // One that has ended meanwhile needs none.
            let _ = kill_process(child, signal);
        }
        Ok(())
    }

    /// Starts it again after [`Server::crash`], and waits until it answers.
    ///
    /// # Errors
    /// It does not answer for half a minute.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::create(self.dir.path().join("log"))?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(self.dir.path()).stderr(log);
        for setting in SETTINGS.iter().copied().chain(self.settings.iter().map(String::as_str)) {
            command.arg("-c").arg(setting);
        }
        self.running = Some(command.spawn().context("postgres")?);
        let started = Instant::now();
        while self.sql("postgres", "SELECT 1").is_err() {
            let ended = self.running.as_mut().map(Child::try_wait).transpose()?.flatten();
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            ensure!(ended.is_none(), "the server ended: {}", log());
            ensure!(started.elapsed() < Duration::from_secs(30), "the server does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The one of the settings.
    fn port(&self) -> Option<u16> {
        self.settings.iter().find_map(|setting| setting.strip_prefix("port=")?.parse().ok())
    }

    fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        let mut child = self.running.take().context("it does not run")?;
        kill_process(Pid::from_child(&child), signal)?;
        child.wait()?;
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A program of the server; not as root, which it refuses. It ends with the thread that starts it.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "QUIT"]);
        if rustix::process::geteuid().is_root() {
            command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
        }
        command.arg(self.binaries.join(program));
        command.current_dir(self.dir.path()).env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.signal(Signal::QUIT);
    }
}

/// The newest version that Debian's packages put there.
fn installed() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.filter_map(Result::ok);
    let number = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let newest =
        versions.map(|entry| entry.path()).filter(|path| path.join("bin/postgres").is_file()).max_by_key(number)?;
    Some(newest.join("bin"))
}

/// Gives everything in a directory to the user that the server runs as.
fn hand_over(path: &Path) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let nobody = Some(NOBODY.parse()?);
    std::os::unix::fs::chown(path, nobody, nobody)?;
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            hand_over(&entry?.path())?;
        }
    }
    Ok(())
}

/// Numbers of `nobody` and `nogroup`.
const NOBODY: &str = "65534";

/// Small; durable as it is by default.
const SETTINGS: &[&str] = &[
    "listen_addresses=",
    "shared_buffers=16MB",
    "max_connections=40",
    "max_wal_size=64MB",
    "autovacuum=off",
    "synchronous_commit=on",
];
