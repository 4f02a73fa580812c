// SPDX-License-Identifier: Apache-2.0
//! Starting a guest and watching over it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use guest_link::{BLOB_PORT, LinkListener, SERVICE_PORT, SIMULATED_DEVICE_PORT, STATUS_PORT, StatusLine, VsockHost};
use model_cache::HeldPack;
use qemu::{Accelerator, HostGpus, ImageFiles, LaunchSpec, PortForward, Tee, VsockBackend};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::mpsc;
use types::EventName;

use crate::account::Account;
use crate::claim::Claim;
use crate::cli::StartArgs;
use crate::door::Door;
use crate::events::Event;
use crate::numa::NumaPlace;
use crate::process::{Guarded, SCRATCH};
use crate::pulse::{self, Beat, Pace};
use crate::qmp::Qmp;
use crate::record::{CONFIG_DISK, LaunchRecord, PID_FILE, STATE, TD_PARAMS, VSOCK};
use crate::report::Reporter;
use crate::{files, image, orphans};

/// Starts the guest and stays until it ends. Exit code 2 when the guest halted itself.
pub(crate) fn run(args: &StartArgs, run_dir: &Path, record: &LaunchRecord) -> anyhow::Result<ExitCode> {
    if let Err(reason) = Account::refuse_root(record.simulated) {
        eprintln!("refused: {reason}");
        if args.json {
            println!("{}", serde_json::json!({ "reasons": [reason] }));
        }
        return Ok(ExitCode::from(2));
    }
    let run_dir = run_dir.canonicalize().context("run directory")?;
    let _claim = Claim::take(&run_dir.join(PID_FILE))?;
    let report = Reporter::new(args.json, args.attempt, &run_dir);
    orphans::end(&run_dir);
    // A cache keeps a pack that somebody holds.
    let _model = HeldPack::lock_disk(&record.model_disk)
        .with_context(|| format!("cannot hold the model's disk {}", record.model_disk.display()))?;
    // One thread: the kernel ends the children when the thread that started them ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    runtime.block_on(supervise(args, &run_dir, record, &report))
}

/// Says how the guest of a run directory is.
pub(crate) fn status(run_dir: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let running = Claim::holder(&run_dir.join(PID_FILE));
    let state = files::read_shared(&run_dir.join(STATE), MAX_STATE).ok();
    let last: Option<Event> = state.as_deref().and_then(|bytes| serde_json::from_slice(bytes).ok());
    let pid = running.as_ref().and_then(|holder| holder.pid);
    if json {
        println!("{}", serde_json::json!({ "running": running.is_some(), "agent_pid": pid, "last_event": last }));
    } else {
        let pid = pid.map_or("?".to_owned(), |pid| pid.to_string());
        match (&running, last) {
            (Some(_), Some(event)) => println!("running under process {pid}; last: {event}"),
            (Some(_), None) => println!("running under process {pid}; no event yet"),
            (None, Some(event)) => println!("not running; last: {event}"),
            (None, None) => println!("not running; never started"),
        }
    }
    Ok(if running.is_some() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// Asks the keeper of a run directory to end its guest, and waits for it.
pub(crate) fn stop(run_dir: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let pid_file = run_dir.join(PID_FILE);
    if Claim::holder(&pid_file).is_none() {
        println!("{}", if json { "{\"stopped\":false}" } else { "not running" });
        return Ok(ExitCode::SUCCESS);
    }
    let deadline = Instant::now() + STOP_TIMEOUT;
    let mut asked = false;
    while let Some(holder) = Claim::holder(&pid_file) {
        // It says which process it is a moment after it took the directory.
        asked = asked || holder.signal(Signal::TERM, holder.owner());
        anyhow::ensure!(Instant::now() < deadline, "the process that holds {} does not end", run_dir.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("{}", if json { "{\"stopped\":true}" } else { "stopped" });
    Ok(ExitCode::SUCCESS)
}

/// Removes what keepers left in a run directory that ran as somebody else than `owner`, unless one holds it: the next one
/// could neither write nor remove that.
pub(crate) fn make_room(run_dir: &Path, owner: u32) -> anyhow::Result<()> {
    if Claim::holder(&run_dir.join(PID_FILE)).is_some() {
        return Ok(());
    }
    let scratch = run_dir.join(SCRATCH);
    if let Some(found) = scratch.symlink_metadata().ok().filter(|found| found.uid() != owner) {
        // No link is followed, neither this nor one in it.
        let removed = if found.is_dir() { fs::remove_dir_all(&scratch) } else { fs::remove_file(&scratch) };
        removed.context("left by another user")?;
    }
    let files = MADE.into_iter().map(|name| run_dir.join(name));
    files::remove_foreign(files.chain(sockets(run_dir)), owner).context("left by another user")
}

async fn supervise(
    args: &StartArgs,
    run_dir: &Path,
    record: &LaunchRecord,
    report: &Reporter,
) -> anyhow::Result<ExitCode> {
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut guest = tokio::select! {
        started = Guest::start(args, run_dir, record, report) => started.inspect_err(|error| {
            report.tell(&Event::Ended { reason: format!("{error:#}") });
        })?,
        _ = interrupt.recv() => return Ok(ExitCode::FAILURE),
        _ = terminate.recv() => return Ok(ExitCode::FAILURE),
    };
    let outcome = tokio::select! {
        outcome = guest.watch(args, run_dir, record, report) => outcome,
        _ = interrupt.recv() => Outcome::Stopped,
        _ = terminate.recv() => Outcome::Stopped,
    };
    guest.stop().await;
    let (reason, code) = match outcome {
        Outcome::Stopped => ("stopped on request".to_owned(), ExitCode::SUCCESS),
        Outcome::Halted => ("the guest halted itself".to_owned(), ExitCode::from(2)),
        Outcome::Failed(reason) => (reason, ExitCode::FAILURE),
    };
    report.tell(&Event::Ended { reason });
    Ok(code)
}

enum Outcome {
    Stopped,
    Halted,
    Failed(String),
}

struct Guest {
    qemu: Guarded,
    vsock: Option<Guarded>,
    simulator: Option<Guarded>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    lines: mpsc::Receiver<StatusLine>,
    started: Instant,
}

impl Guest {
    async fn start(args: &StartArgs, run_dir: &Path, record: &LaunchRecord, report: &Reporter) -> anyhow::Result<Self> {
        clear(run_dir)?;
        let host = vsock_host(run_dir, record);
        let vsock = match &host {
            VsockHost::VhostUser { uds_path } if record.simulated => Some(start_vsock(args, run_dir, uds_path).await?),
            _ => None,
        };
        let (sender, lines) = mpsc::channel(64);
        let service = LinkListener::bind(&host, SERVICE_PORT)?;
        let status = LinkListener::bind(&host, STATUS_PORT)?;
        let target = record.service;
        let mut tasks = vec![
            tokio::spawn(async move { drop(guest_link::forward(service, target).await) }),
            // Each line once, so that no guest fills keeper.log.
            tokio::spawn(async move { drop(guest_link::receive_status(status, sender).await) }),
        ];
        if let Some(directory) = args.gpu_blobs.clone() {
            let blobs = LinkListener::bind(&host, BLOB_PORT)?;
            tasks.push(tokio::spawn(async move { drop(guest_link::serve_blobs(blobs, directory).await) }));
        }
        let qmp_path = run_dir.join("qmp.sock");
        let arguments = qemu::arguments(&launch_spec(run_dir, record, &qmp_path)?)?;
        let (program, arguments) = placed(record, arguments);
        let qemu = Guarded::spawn("QEMU", &program, &arguments, run_dir, "qemu.log", false)?;
        let mut qmp = Qmp::connect(&qmp_path).await?;
        let (simulator, measured) = if record.simulated {
            let (simulator, measured) = start_simulator(args, run_dir, &host, qemu.pid()).await?;
            (Some(simulator), Some(measured))
        } else {
            (None, None)
        };
        report.tell(&Event::Started { qemu_pid: qemu.pid(), simulated: record.simulated, measured });
        let started = Instant::now();
        qmp.command("cont").await?;
        Ok(Self { qemu, vsock, simulator, tasks, lines, started })
    }

    async fn watch(&mut self, args: &StartArgs, run_dir: &Path, record: &LaunchRecord, report: &Reporter) -> Outcome {
        let StartArgs { boot_timeout, silence_timeout, .. } = *args;
        let (tell, mut beats) = mpsc::channel(1);
        let mut tell = Some(tell);
        let deadline = self.started + Duration::from_secs(boot_timeout);
        let mut serving = boot_timeout == 0;
        let mut halted = false;
        loop {
            tokio::select! {
                biased;
                Some(line) = self.lines.recv() => {
                    let since = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
                    report.tell(&Event::of_status(line, since));
                    match line {
                        StatusLine::PhaseDone { phase: EventName::Serve, .. } => {
                            serving = true;
                            report.tell(&Event::Serving { address: record.listen });
                            // Said once, asked by one.
                            if let Some(tell) = tell.take() {
                                let pace = Pace::with_limit(silence_timeout);
                                let door = Door::of(run_dir, record.listen);
                                self.tasks.push(tokio::spawn(pulse::watch(door, pace, tell)));
                            }
                        }
                        StatusLine::Halted { .. } => halted = true,
                        _ => {}
                    }
                }
                Some(beat) = beats.recv() => match beat {
                    Beat::Silent => report.tell(&Event::Silent),
                    Beat::Answers => report.tell(&Event::Answers),
                    Beat::Lost => return Outcome::Failed(format!("the guest served and was silent for {silence_timeout} s")),
                },
                reason = self.qemu.wait() => {
                    return if halted { Outcome::Halted } else { Outcome::Failed(reason) };
                }
                reason = ended(&mut self.vsock) => return Outcome::Failed(reason),
                reason = ended(&mut self.simulator) => return Outcome::Failed(reason),
                () = report.due() => report.store(),
                () = tokio::time::sleep_until(deadline.into()), if !serving => {
                    let reason = format!("the guest did not serve within {boot_timeout} s: see qemu.log in the run directory");
                    return Outcome::Failed(reason);
                }
            }
        }
    }

    async fn stop(mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.qemu.stop().await;
        for child in [&mut self.simulator, &mut self.vsock].into_iter().flatten() {
            child.stop().await;
        }
    }
}

/// QEMU, on the processors of its node (taskset, util-linux).
fn placed(record: &LaunchRecord, arguments: Vec<String>) -> (PathBuf, Vec<String>) {
    let Some(NumaPlace { cpus, .. }) = &record.numa else { return (record.qemu.clone(), arguments) };
    let qemu = record.qemu.display().to_string();
    let first = ["--cpu-list".to_owned(), cpus.clone(), qemu];
    ("taskset".into(), first.into_iter().chain(arguments).collect())
}

async fn ended(child: &mut Option<Guarded>) -> String {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

fn vsock_host(run_dir: &Path, record: &LaunchRecord) -> VsockHost {
    if record.simulated || record.switched {
        VsockHost::VhostUser { uds_path: run_dir.join(VSOCK) }
    } else {
        VsockHost::Kernel { cid: record.cid }
    }
}

fn launch_spec(run_dir: &Path, record: &LaunchRecord, qmp: &Path) -> anyhow::Result<LaunchSpec> {
    let command_line = files::read_capped(&record.image.join("cmdline"), 4096)?;
    Ok(LaunchSpec {
        shape: record.shape.clone(),
        image: ImageFiles {
            firmware: record.image.join("firmware.fd"),
            kernel: record.image.join("vmlinuz"),
            initrd: record.image.join("initrd"),
            command_line: String::from_utf8(command_line).context("the image's command line is not text")?,
        },
        tee: if record.simulated {
            Tee::Simulated
        } else {
            Tee::Tdx { mr_config_id: record.mr_config_id, quote_socket: record.quote_socket.clone() }
        },
        accelerator: if record.kvm { Accelerator::Kvm } else { Accelerator::Tcg },
        config_disk: run_dir.join(CONFIG_DISK),
        model_disk: record.model_disk.clone(),
        root_disk: image::root_disk(&record.image),
        gpus: HostGpus { addresses: record.gpus.clone(), switches: record.nvswitches.clone(), iommufd: record.iommufd },
        numa_node: record.numa.as_ref().map(|place| place.node),
        network: PortForward { listen: record.listen, address: record.guest_address, port: record.guest_port },
        vsock: if record.simulated {
            VsockBackend::VhostUser { socket: run_dir.join("vhost.sock") }
        } else {
            VsockBackend::Kernel { cid: record.cid }
        },
        qmp: qmp.to_owned(),
        paused: true,
    })
}

/// Removes what a crash left behind: sockets, and temporary files of helpers that were killed.
fn clear(run_dir: &Path) -> anyhow::Result<()> {
    for path in sockets(run_dir) {
        // The directory is ours (claimed): what is not there needs nothing.
        let _ = fs::remove_file(path);
    }
    let scratch = run_dir.join(SCRATCH);
    let _ = fs::remove_dir_all(&scratch);
    files::private_directory(&scratch)
}

/// All sockets that a keeper and its helpers make in a run directory.
fn sockets(run_dir: &Path) -> Vec<PathBuf> {
    let vsock = VsockHost::VhostUser { uds_path: run_dir.join(VSOCK) };
    let ports = [SERVICE_PORT, STATUS_PORT, BLOB_PORT, SIMULATED_DEVICE_PORT];
    let sockets = ports.into_iter().filter_map(|port| vsock.unix_path(port));
    sockets.chain(["qmp.sock", "vhost.sock", VSOCK].map(|name| run_dir.join(name))).collect()
}

async fn start_vsock(args: &StartArgs, run_dir: &Path, uds_path: &Path) -> anyhow::Result<Guarded> {
    let socket = run_dir.join("vhost.sock");
    let vm = format!("guest-cid=3,socket={},uds-path={}", socket.display(), uds_path.display());
    let arguments = ["--vm".to_owned(), vm];
    let mut child =
        Guarded::spawn("vhost-device-vsock", &args.vhost_device_vsock, &arguments, run_dir, VSOCK_LOG, false)?;
    wait_for(&mut child, &socket).await.with_context(|| format!("see {}", run_dir.join(VSOCK_LOG).display()))?;
    Ok(child)
}

async fn start_simulator(
    args: &StartArgs,
    run_dir: &Path,
    host: &VsockHost,
    qemu_pid: u32,
) -> anyhow::Result<(Guarded, serde_json::Value)> {
    let program = args.simulator.as_deref().context("--tee simulated needs --simulator")?;
    let pki = args.simulator_pki.as_deref().context("--tee simulated needs --simulator-pki")?;
    let socket = host.unix_path(SIMULATED_DEVICE_PORT).context("simulated hardware needs a Unix socket")?;
    let text = |path: &Path| path.display().to_string();
    let arguments = [
        "device".to_owned(),
        "--pki".to_owned(),
        text(pki),
        "--qemu-pid".to_owned(),
        qemu_pid.to_string(),
        "--td-params".to_owned(),
        text(&run_dir.join(TD_PARAMS)),
        "--socket".to_owned(),
        text(&socket),
    ];
    let mut child = Guarded::spawn("the simulator", program, &arguments, run_dir, "simulator.log", true)?;
    let stdout = child.take_stdout().context("the simulator has no output")?;
    let mut line = Vec::new();
    let mut reader = BufReader::new(stdout.take(1 << 20));
    tokio::time::timeout(SIMULATOR_TIMEOUT, reader.read_until(b'\n', &mut line))
        .await
        .context("the simulator is not ready")??;
    let measured = serde_json::from_slice(&line).with_context(|| {
        format!("the simulator did not measure the launch: see {}", run_dir.join("simulator.log").display())
    })?;
    wait_for(&mut child, &socket).await?;
    Ok((child, measured))
}

/// Waits until `socket` exists or the child ends.
async fn wait_for(child: &mut Guarded, socket: &Path) -> anyhow::Result<()> {
    let appears = async {
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        appeared = tokio::time::timeout(SOCKET_TIMEOUT, appears) => {
            appeared.with_context(|| format!("{} does not appear", socket.display()))
        }
        reason = child.wait() => Err(anyhow::anyhow!(reason)),
    }
}

/// Files that a keeper and its helpers make in a run directory. The keeper's log is the daemon's to open.
const MADE: [&str; 8] =
    [PID_FILE, STATE, "state.json.new", "progress.json", "progress.json.new", "qemu.log", VSOCK_LOG, "simulator.log"];
const VSOCK_LOG: &str = "vhost-device-vsock.log";
const SOCKET_TIMEOUT: Duration = Duration::from_secs(20);
const SIMULATOR_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_STATE: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_users_temporary_files_make_room_and_their_links_are_not_followed() {
        let (place, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (scratch, kept) = (place.path().join(SCRATCH), elsewhere.path().join("kept"));
        fs::write(&kept, "").unwrap();
        let own = place.path().metadata().unwrap().uid();
        let link = |at: &Path| std::os::unix::fs::symlink(elsewhere.path(), at).unwrap();
        link(&scratch);
        make_room(place.path(), own + 1).unwrap();
        assert!(scratch.symlink_metadata().is_err() && kept.exists());
        fs::create_dir(&scratch).unwrap();
        link(&scratch.join("link"));
        make_room(place.path(), own).unwrap();
        assert!(scratch.exists(), "one's own stays until the next start");
        make_room(place.path(), own + 1).unwrap();
        assert!(scratch.symlink_metadata().is_err() && kept.exists());
        fs::create_dir(&scratch).unwrap();
        fs::write(scratch.join("left"), "").unwrap();
        clear(place.path()).unwrap();
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    }
}
