// SPDX-License-Identifier: Apache-2.0
//! `host-agent preflight`: what a host must have, each missing thing with its fix.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use preflight::{
    Answer, Check, Host, LEFT_OUT, LiveProbes, Probes, Question, RecordedProbes, Report, Settings, Status,
};
use vfio::{HostTree, PciAddress};

use crate::gpu;

#[derive(Debug, Args)]
#[command(
    after_help = "Exit code 0 when nothing failed, 2 otherwise. Examples:\n  host-agent preflight --gpus 8 --memory-mib 1048576 --listen 0.0.0.0:443\n  sudo host-agent preflight --gpus 1 --gpu-registers --json\n  host-agent preflight record --out host.tar\n  mkdir host && tar -xf host.tar -C host && host-agent preflight --root host"
)]
pub(crate) struct PreflightArgs {
    #[command(subcommand)]
    command: Option<PreflightCommand>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum PreflightCommand {
    /// Write what the checks read as a tar, to send along with a question. It holds no serial numbers.
    Record(RecordArgs),
}

#[derive(Debug, Args)]
struct RecordArgs {
    /// The archive. It must not exist.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct Options {
    /// Root of the files to read: of this machine, or a recorded tree.
    #[arg(long, global = true, default_value = "/")]
    root: PathBuf,
    /// QEMU to check, instead of qemu-system-x86_64 or what the recording says.
    #[arg(long, global = true)]
    qemu: Option<PathBuf>,
    /// Socket of the quote generation service.
    #[arg(long, global = true, default_value = "/var/run/tdx-qgs/qgs.socket")]
    quote_socket: PathBuf,
    /// Host and port of the certificate caching service (PCCS). Not checked if left out.
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pccs: Option<String>,
    /// Where guests' files will be.
    #[arg(long, global = true, default_value = "/var/lib/chrysalis")]
    state_dir: PathBuf,
    /// Where clients will reach a guest. Not checked if left out.
    #[arg(long, global = true)]
    listen: Option<SocketAddr>,
    /// How many GPUs guests shall have.
    #[arg(long, global = true, default_value_t = 0)]
    gpus: usize,
    /// Memory of all guests together in MiB.
    #[arg(long, global = true, default_value_t = 4096)]
    memory_mib: u64,
    /// Read the modes of unused GPUs from their registers (as root): wakes them for a moment.
    #[arg(long, global = true)]
    gpu_registers: bool,
    /// Print one JSON document.
    #[arg(long, global = true)]
    json: bool,
}

/// Checks the host. Exit code 2 when something failed.
pub(crate) fn run(args: &PreflightArgs) -> anyhow::Result<ExitCode> {
    let Options { root, qemu, quote_socket, pccs, state_dir, listen, gpus, memory_mib, gpu_registers, json } =
        &args.options;
    let tree = HostTree::open(root)?;
    let settings = Settings {
        quote_socket: quote_socket.clone(),
        pccs: pccs.clone(),
        state_dir: state_dir.clone(),
        listen: *listen,
        gpus: *gpus,
        memory_mib: *memory_mib,
    };
    // Whether a GPU is in use is seen in /proc: through a tree of its own, so that no recording holds processes.
    let unrecorded = HostTree::open(root)?;
    let read_mode = |address: PciAddress| gpu::shown_mode(&unrecorded, address);
    let probes = ChosenProbes {
        recorded: tree.recording().map(|_| RecordedProbes { tree: &tree }),
        own_qemu: qemu.is_some(),
        live: LiveProbes {
            qemu: qemu.clone().unwrap_or_else(|| PathBuf::from("qemu-system-x86_64")),
            tree: &tree,
            gpu_mode: gpu_registers.then_some(&read_mode),
        },
    };
    let report = match &args.command {
        Some(PreflightCommand::Record(record)) => write_recording(&tree, &probes, settings, &record.out)?,
        None => preflight::run(&Host::new(&tree, &probes, settings)),
    };
    if *json {
        println!(
            "{}",
            serde_json::json!({
                "ready": report.ready(), "recorded": report.recorded, "checks": report.checks, "reasons": report.reasons(),
            })
        );
    } else {
        print!("{}", table(&report));
    }
    Ok(if report.ready() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// A recording answers for the machine that it was made on, unless QEMU was named.
struct ChosenProbes<'a> {
    recorded: Option<RecordedProbes<'a>>,
    own_qemu: bool,
    live: LiveProbes<'a>,
}

impl Probes for ChosenProbes<'_> {
    fn ask(&self, question: &Question) -> Answer {
        let about_qemu = matches!(question, Question::QemuVersion | Question::QemuObjects);
        match &self.recorded {
            Some(recorded) if !(about_qemu && self.own_qemu) => recorded.ask(question),
            _ => self.live.ask(question),
        }
    }
}

fn write_recording(tree: &HostTree, probes: &dyn Probes, settings: Settings, out: &Path) -> anyhow::Result<Report> {
    let mut bytes = Vec::new();
    let report = preflight::record(tree, probes, settings, &mut bytes)?;
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(out)?;
        file.write_all(&bytes)?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", out.display()))?;
    eprintln!("{}: {} bytes. Left out:", out.display(), bytes.len());
    for what in LEFT_OUT {
        eprintln!("  {what}");
    }
    Ok(report)
}

/// One line for each check; what was found and the fix below those that did not pass.
fn table(report: &Report) -> String {
    let mut text = String::new();
    let width = report.checks.iter().map(|check| check.id.len()).max().unwrap_or(0);
    for Check { id, title, status, evidence, fix } in &report.checks {
        text.push_str(&format!("{:<8}{id:<width$}  {title}\n", word(*status)));
        if *status != Status::Pass {
            for evidence in evidence {
                text.push_str(&format!("{:10}{}: {}\n", "", evidence.source, evidence.found));
            }
            text.push_str(&format!("{:10}fix: {fix}\n", ""));
        }
    }
    let count = |status| report.checks.iter().filter(|check| check.status == status).count();
    let of = if report.recorded { "the recorded host" } else { "this host" };
    let verdict = if report.ready() { "can run TDX guests" } else { "cannot run TDX guests yet" };
    text.push_str(&format!(
        "{of} {verdict}: {} passed, {} warnings, {} unknown, {} failed\n",
        count(Status::Pass),
        count(Status::Warn),
        count(Status::Unknown),
        count(Status::Fail),
    ));
    text
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Pass => "ok",
        Status::Unknown => "unknown",
        Status::Warn => "warning",
        Status::Fail => "FAILED",
    }
}
