// SPDX-License-Identifier: Apache-2.0
//! `tdx-sim`: makes simulated platforms, measures launches and serves the simulated quote device.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use serde_json::json;
use tdx_sim::{
    Fault, Launch, Measurement, QuoteVersion, SIMULATED, SimulatedPlatform, SimulatedTd, TdParams, TdReport, device,
    measure,
};

/// Simulated TDX for development: hardware simulated. Nothing it signs says anything about real hardware.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the keys of a run: root.der, collateral.json and private keys (mode 0600).
    Init {
        /// Directory for the keys. It must not have any yet.
        #[arg(long)]
        pki: PathBuf,
    },
    /// Write collateral, good for 30 days or bad in one way.
    Collateral {
        /// Directory that `init` made.
        #[arg(long)]
        pki: PathBuf,
        /// What is wrong with it.
        #[arg(long, value_parser = fault)]
        fault: Option<Fault>,
        /// Where to write it.
        #[arg(long)]
        out: PathBuf,
    },
    /// Measure a launched QEMU and print its registers.
    Measure {
        #[command(flatten)]
        launch: LaunchArgs,
    },
    /// Measure a launched QEMU, then serve the simulated quote device until SIGTERM or the parent's end.
    Device(DeviceArgs),
}

#[derive(Args)]
struct LaunchArgs {
    /// The running QEMU.
    #[arg(long, required_unless_present = "argv_file", conflicts_with = "argv_file")]
    qemu_pid: Option<u32>,
    /// Instead of a running QEMU: a JSON array with the program and its arguments; paths are relative to this directory.
    #[arg(long)]
    argv_file: Option<PathBuf>,
    /// What the TD's creator set (chrysalis/td-params/v1).
    #[arg(long)]
    td_params: PathBuf,
    /// Write the event log that firmware would write.
    #[arg(long)]
    event_log: Option<PathBuf>,
}

#[derive(Args)]
struct DeviceArgs {
    /// Directory that `init` made.
    #[arg(long)]
    pki: PathBuf,
    #[command(flatten)]
    launch: LaunchArgs,
    /// Where to listen. A vsock backend maps guest port 7002 to PATH_7002.
    #[arg(long)]
    socket: PathBuf,
    /// Version of the quotes.
    #[arg(long, default_value = "4", value_parser = quote_version)]
    quote_version: QuoteVersion,
    /// What is wrong with the quotes.
    #[arg(long, value_parser = fault)]
    fault: Option<Fault>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout and is no error. A closed stream leaves nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tdx-sim ({SIMULATED}): {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init { pki } => {
            let now = now()?;
            SimulatedPlatform::generate(now)?.save(&pki, now)?;
            println!("{}", json!({ "note": SIMULATED, "pki": pki }));
            Ok(())
        }
        Command::Collateral { pki, fault, out } => {
            let collateral = SimulatedPlatform::load(&pki)?.collateral(now()?, fault)?;
            write(&out, collateral.to_json().as_bytes())
        }
        Command::Measure { launch } => {
            let (params, measured) = launch.measure()?;
            launch.report(&params, &measured)
        }
        Command::Device(args) => args.run(),
    }
}

impl LaunchArgs {
    fn measure(&self) -> anyhow::Result<(TdParams, Measurement)> {
        let text = fs::read(&self.td_params).with_context(|| self.td_params.display().to_string())?;
        let params = TdParams::from_json(&text)?;
        let launch = match (self.qemu_pid, &self.argv_file) {
            (Some(pid), _) => Launch::of_process(pid)?,
            (None, Some(file)) => from_file(file)?,
            (None, None) => anyhow::bail!("name a launch with --qemu-pid or --argv-file"),
        };
        Ok((params, measure(&launch)?))
    }

    /// Writes the log where asked for, then prints the one line that says what was measured.
    fn report(&self, params: &TdParams, measured: &Measurement) -> anyhow::Result<()> {
        let mut line = json!({ "note": SIMULATED, "registers": measured.registers(params) });
        if let Some(path) = &self.event_log {
            write(path, &measured.event_log())?;
            if let Some(fields) = line.as_object_mut() {
                fields.insert("event_log".to_owned(), json!(path));
            }
        }
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")?;
        Ok(out.flush()?)
    }
}

impl DeviceArgs {
    fn run(self) -> anyhow::Result<()> {
        let parent = std::os::unix::process::parent_id();
        // Blocked from here on, so that measuring cleans up after itself; waited for below.
        let stop = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
        stop.thread_block()?;
        let platform = Arc::new(SimulatedPlatform::load(&self.pki)?);
        let (params, measured) = self.launch.measure()?;
        let report = TdReport {
            registers: measured.registers(&params),
            attributes: params.attributes,
            xfam: params.xfam,
            report_data: [0; 64],
        };
        let td = SimulatedTd::with(platform, report, self.quote_version, self.fault, QUOTE_TIME)
            .with_event_log(measured.events_logged());
        let listener = bind(&self.socket)?;
        self.launch.report(&params, &measured)?;
        let socket = self.socket.clone();
        std::thread::spawn(move || {
            let reason = device::serve(&td, &listener);
            eprintln!("tdx-sim ({SIMULATED}): the socket failed: {reason:?}");
            leave(&socket, 1);
        });
        let socket = self.socket.clone();
        std::thread::spawn(move || {
            while std::os::unix::process::parent_id() == parent {
                std::thread::sleep(PARENT_POLL);
            }
            leave(&socket, 0);
        });
        stop.wait()?;
        leave(&self.socket, 0)
    }
}

/// Binds, after removing a socket that an earlier run left.
fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(path).with_context(|| path.display().to_string())?;
    }
    UnixListener::bind(path).with_context(|| path.display().to_string())
}

/// Removes the socket and ends the process.
fn leave(socket: &Path, code: i32) -> ! {
    // It may be gone already.
    let _ = fs::remove_file(socket);
    std::process::exit(code)
}

fn from_file(file: &Path) -> anyhow::Result<Launch> {
    let text = fs::read(file).with_context(|| file.display().to_string())?;
    let mut arguments: Vec<String> = serde_json::from_slice(&text).with_context(|| file.display().to_string())?;
    anyhow::ensure!(!arguments.is_empty(), "{}: the array is empty", file.display());
    let program = arguments.remove(0);
    Ok(Launch::new(program.into(), arguments, std::env::current_dir()?))
}

/// Writes to a temporary file, then renames.
fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let temporary = path.with_extension(format!("{}.part", std::process::id()));
    let write = || {
        let mut out = fs::File::create(&temporary)?;
        out.write_all(bytes)?;
        out.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| path.display().to_string())
}

fn now() -> anyhow::Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

fn fault(text: &str) -> Result<Fault, String> {
    let known = || Fault::ALL.map(Fault::name).join(", ");
    Fault::ALL.into_iter().find(|fault| fault.name() == text).ok_or_else(|| format!("known faults: {}", known()))
}

fn quote_version(text: &str) -> Result<QuoteVersion, String> {
    match text {
        "4" => Ok(QuoteVersion::V4),
        "5" => Ok(QuoteVersion::V5),
        _ => Err("known versions: 4, 5".to_owned()),
    }
}

/// As measured on hardware.
const QUOTE_TIME: Duration = Duration::from_millis(40);
const PARENT_POLL: Duration = Duration::from_millis(500);
const EXAMPLES: &str = "Examples:
  tdx-sim init --pki run/pki
  tdx-sim device --pki run/pki --qemu-pid 4711 --td-params run/td-params.json --socket run/vsock_7002
  tdx-sim measure --argv-file argv.json --td-params td-params.json --event-log ccel.bin
  tdx-sim collateral --pki run/pki --fault revoked-pck --out revoked.json";
