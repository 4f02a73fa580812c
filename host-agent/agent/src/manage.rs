// SPDX-License-Identifier: Apache-2.0
//! Commands to a running daemon, and their older forms for one run directory.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use fleet::GuestName;
use types::Refusal;

use crate::daemon::control::{self, Answer, Command};
use crate::daemon::status::{GuestStatus, Status};
use crate::{files, launch};

#[derive(Debug, Args)]
pub(crate) struct SocketArgs {
    /// The daemon's control socket.
    #[arg(long, default_value = "/run/chrysalis/agent.sock")]
    pub(crate) socket: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit code 0 when every guest serves as declared, 2 otherwise. Examples:\n  host-agent status\n  host-agent status --json\n  host-agent status --run-dir run"
)]
pub(crate) struct StatusArgs {
    /// A guest that was launched without the daemon.
    #[arg(long)]
    run_dir: Option<PathBuf>,
    #[command(flatten)]
    daemon: SocketArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  host-agent stop chat-1\n  host-agent stop --all\n  host-agent stop --run-dir run")]
pub(crate) struct StopArgs {
    /// The guest.
    #[arg(required_unless_present_any = ["run_dir", "all"], conflicts_with_all = ["run_dir", "all"])]
    guest: Option<GuestName>,
    /// Drain and stop all guests, then end the daemon.
    #[arg(long, conflicts_with = "run_dir")]
    all: bool,
    /// A guest that was launched without the daemon.
    #[arg(long)]
    run_dir: Option<PathBuf>,
    #[command(flatten)]
    daemon: SocketArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RestartArgs {
    /// The guest.
    guest: GuestName,
    #[command(flatten)]
    daemon: SocketArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The guest.
    guest: GuestName,
    /// Lines of each log.
    #[arg(long, default_value_t = 20)]
    lines: usize,
    /// The daemon's state directory.
    #[arg(long, default_value = "/var/lib/chrysalis/agent")]
    state_dir: PathBuf,
}

/// `host-agent status`.
pub(crate) fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let SocketArgs { socket, json } = &args.daemon;
    if let Some(run_dir) = &args.run_dir {
        return launch::status(run_dir, *json);
    }
    let status = fetch(socket)?;
    if *json {
        println!("{}", serde_json::to_string(&status)?);
    } else {
        print!("{}", table(&status));
    }
    let well = status.reasons.is_empty()
        && status
            .guests
            .iter()
            .all(|guest| guest.reasons.is_empty() && guest.active.as_ref().is_some_and(|active| active.serving));
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// `host-agent stop`.
pub(crate) fn stop(args: &StopArgs) -> anyhow::Result<ExitCode> {
    match (&args.guest, &args.run_dir) {
        (_, Some(run_dir)) => launch::stop(run_dir, args.daemon.json),
        (Some(guest), None) => tell(&args.daemon, &Command::Stop(guest.clone())),
        (None, None) => tell(&args.daemon, &Command::Drain),
    }
}

/// `host-agent restart`.
pub(crate) fn restart(args: &RestartArgs) -> anyhow::Result<ExitCode> {
    tell(&args.daemon, &Command::Restart(args.guest.clone()))
}

/// `host-agent reload`.
pub(crate) fn reload(args: &SocketArgs) -> anyhow::Result<ExitCode> {
    tell(args, &Command::Reload)
}

/// `host-agent logs`.
pub(crate) fn logs(args: &LogsArgs) -> anyhow::Result<ExitCode> {
    let guest = args.state_dir.join("guests").join(args.guest.as_str());
    let mut found = false;
    let mut directories: Vec<PathBuf> = std::fs::read_dir(&guest)
        .with_context(|| format!("there is nothing of guest {} in {}", args.guest, args.state_dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.symlink_metadata().is_ok_and(|found| found.is_dir()))
        .collect();
    directories.sort();
    directories.push(guest);
    for directory in directories {
        for name in ["keeper.log", "qemu.log", "vhost-device-vsock.log", "simulator.log", "front.log"] {
            let path = directory.join(name);
            if path.symlink_metadata().is_ok_and(|found| found.is_file()) {
                found = true;
                println!("==> {}\n{}", path.display(), tail(&path, args.lines));
            }
        }
    }
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// Asks the daemon how everything is.
pub(crate) fn fetch(socket: &Path) -> anyhow::Result<Status> {
    match ask(socket, &Command::Status)? {
        Answer::Status(status) => Ok(*status),
        _ => anyhow::bail!("the agent has no status yet: ask again"),
    }
}

fn tell(args: &SocketArgs, command: &Command) -> anyhow::Result<ExitCode> {
    let reasons = match ask(&args.socket, command)? {
        Answer::Refused(reasons) => reasons,
        Answer::Done | Answer::Status(_) => Vec::new(),
    };
    if args.json {
        println!("{}", serde_json::json!({ "accepted": reasons.is_empty(), "reasons": reasons }));
    } else {
        for reason in &reasons {
            eprintln!("refused: {reason}");
        }
    }
    Ok(if reasons.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn ask(socket: &Path, command: &Command) -> anyhow::Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    runtime.block_on(control::ask(socket, command))
}

/// One line for each guest, what is wrong below it.
pub(crate) fn table(status: &Status) -> String {
    let mut text = String::new();
    if status.simulated {
        text.push_str("hardware simulated\n");
    }
    for guest in &status.guests {
        let GuestStatus { name, state, listen, restarts, connections, reasons, .. } = guest;
        let listen = listen.map_or("-".to_owned(), |listen| listen.to_string());
        let generation = guest.active.as_ref().map_or("-".to_owned(), |active| active.number.to_string());
        text.push_str(&format!(
            "{:<24} {:<10} {listen:<21} generation {generation:<4} restarts {restarts:<4} connections {connections}\n",
            name.as_str(),
            state.as_str(),
        ));
        let finishing = guest.finishing.iter();
        text.extend(finishing.map(|number| format!("    generation {number} answers what runs, then closes\n")));
        let noted = guest.active.iter().filter(|active| !active.notes.is_empty());
        text.extend(noted.map(|active| format!("    noted: {}\n", active.notes.join(", "))));
        text.extend(reasons.iter().map(line));
    }
    if let Some(tcb) = &status.tcb {
        let days = tcb.days_left.map_or(String::new(), |days| format!(", {days} days left"));
        text.push_str(&format!("TCB of this host: {}{days}\n", tcb.state.as_str()));
        text.extend(tcb.reasons.iter().map(line));
    }
    text.extend(status.reasons.iter().map(line));
    text
}

fn line(reason: &Refusal) -> String {
    format!("    {}: {}\n        fix: {}\n", reason.code, reason.detail, reason.fix)
}

fn tail(path: &Path, lines: usize) -> String {
    let bytes = files::read_end(path, MAX_LOG).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

const MAX_LOG: u64 = 256 * 1024;
