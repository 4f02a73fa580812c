// SPDX-License-Identifier: Apache-2.0
//! Starting a generation's keeper: `host-agent start`, in a session of its own, which outlives the daemon.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use types::Refusal;

use super::compose::{blocking, check_shape};
use super::config::Config;
use super::memory::Memory;
use super::paths::RunPlan;
use super::release::CheckedRelease;
use crate::account::{Account, Extra};
use crate::claim::Claim;
use crate::gpu::passing::{Hands, over_iommufd};
use crate::limits::{self, Limits};
use crate::record::{CONFIG_DISK, LaunchRecord, PID_FILE, RECORD, TD_PARAMS};
use crate::{files, launch, prepare};

/// How a keeper is started.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    pub(crate) run_dir: PathBuf,
    pub(crate) releases: PathBuf,
    pub(crate) attempt: u32,
    pub(crate) memory: Memory,
    /// What is published now, if it was found good: a damaged copy of the same release is made anew from it.
    pub(crate) published: Option<Arc<CheckedRelease>>,
    /// Notified when a keeper that this process started ends.
    pub(crate) ended: Arc<Notify>,
    /// Who binds the guest's GPUs, where the agent does.
    pub(crate) hands: Option<Hands>,
}

/// Verifies what is to be launched once more, and starts its keeper. Done when the keeper holds the run directory.
pub(crate) async fn start(keeper: Keeper, config: Arc<Config>) -> Result<(), Vec<Refusal>> {
    let ours = keeper.clone();
    let account = config.account().map_err(|reason| vec![reason])?;
    let (guests, cache) = (account.clone(), config.cache.dir.clone());
    let demand = config.agent.guest_limits;
    let (run, entrance) = blocking(move || {
        let (run, limits) = ready(&ours, &guests, &cache)?;
        let entrance = limits::enter(demand, &ours.memory.root, &ours.run_dir, &limits);
        Ok((run, entrance.map_err(|reason| vec![*reason])?))
    })
    .await?;
    let child = spawn(&keeper, &config, &run, &account, entrance.as_deref())
        .map_err(|error| vec![not_started(format!("{error:#}"))])?;
    let holds = wait_for_claim(child, &keeper).await;
    if holds { Ok(()) } else { Err(vec![not_started(last_words(&keeper.run_dir))]) }
}

/// Checks release, files, shape, QEMU and memory, has the GPUs bound, and finds a port.
fn ready(keeper: &Keeper, account: &Account, cache: &Path) -> Result<(RunPlan, Limits), Vec<Refusal>> {
    let Keeper { run_dir, releases, hands, .. } = keeper;
    let unusable = |error: String| {
        let fix = "`host-agent restart` composes the guest anew";
        vec![Refusal::new("run_directory_unusable", "agent.state_dir", error, fix)]
    };
    let shared = run_dir.parent().map_or(Ok(()), |guest| account.directory(guest));
    shared.and_then(|()| account.directory(run_dir)).map_err(|error| unusable(format!("{error:#}")))?;
    launch::make_room(run_dir, account.uid()).map_err(|error| unusable(format!("{error:#}")))?;
    let mut record = LaunchRecord::load(run_dir).map_err(|error| unusable(format!("{error:#}")))?;
    let run = RunPlan::load(run_dir).ok_or_else(|| unusable(format!("{} has no plan", run_dir.display())))?;
    check_shape(&record, &run, releases).or_else(|reasons| match &keeper.published {
        Some(published) if *published.digest() == run.release => {
            published.stage(releases).and_then(|_| check_shape(&record, &run, releases))
        }
        _ => Err(reasons),
    })?;
    let qemu = prepare::qemu_version(&record.qemu).map_err(|error| unusable(format!("{error:#}")))?;
    if qemu != record.shape.facts().qemu {
        let detail = format!("QEMU is {qemu}, the guest was composed for {}", record.shape.facts().qemu);
        let fix = "`host-agent reload`: the guest is composed anew";
        return Err(vec![Refusal::new(QEMU_CHANGED, "hardware.qemu", detail, fix)]);
    }
    // Now, and not when it was composed: with `replace` the one before has gone meanwhile.
    keeper.memory.check(record.shape.facts().memory_mib)?;
    let gpus = record.passed_on().map_err(|error| unusable(error.to_string()))?;
    if let (Some(hands), false) = (hands, gpus.is_empty()) {
        hands.bind(&gpus, account)?;
    }
    record.iommufd = over_iommufd(&keeper.memory.root, &gpus);
    // A port that was free when the guest was composed may be taken by now; nothing measured depends on it.
    record.listen = private_port().map_err(|error| unusable(format!("no free port: {error}")))?;
    record.store(run_dir).map_err(|error| unusable(format!("{error:#}")))?;
    open_to(account, run_dir, &record, cache).map_err(|error| unusable(format!("{error:#}")))?;
    Ok((run, Limits::of(&record.shape, !record.kvm)))
}

/// Lets the account read what the guest is started from.
fn open_to(account: &Account, run_dir: &Path, record: &LaunchRecord, cache: &Path) -> anyhow::Result<()> {
    if *account == Account::Own {
        return Ok(());
    }
    for file in [RECORD, CONFIG_DISK, TD_PARAMS] {
        account.lets_read(&run_dir.join(file))?;
    }
    if let Some(releases) = record.image.parent() {
        account.lets_enter(releases)?;
    }
    account.lets_read_all(&record.image)?;
    let cache = cache.canonicalize().context("cache.dir")?;
    for directory in record.model_disk.ancestors().skip(1).take_while(|directory| directory.starts_with(&cache)) {
        account.lets_enter(directory)?;
    }
    account.lets_read(&record.model_disk)
}

fn private_port() -> std::io::Result<SocketAddrV4> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

fn spawn(
    keeper: &Keeper,
    config: &Config,
    run: &RunPlan,
    account: &Account,
    entrance: Option<&Path>,
) -> anyhow::Result<Child> {
    let mut command = own_program(account, Extra::None, entrance)?;
    command.arg("start").arg("--run-dir").arg(&keeper.run_dir).arg("--json");
    command.arg("--vhost-device-vsock").arg(&config.hardware.vhost_device_vsock);
    command.args(["--attempt", &keeper.attempt.to_string(), "--boot-timeout", &run.boot_deadline_s.to_string()]);
    command.args(["--silence-timeout", &run.silence_deadline_s.to_string()]);
    if let Some(blobs) = &config.hardware.gpu_blobs {
        command.arg("--gpu-blobs").arg(blobs);
    }
    if let Some(simulate) = &config.simulate {
        command.arg("--simulator").arg(&simulate.simulator).arg("--simulator-pki").arg(&simulate.pki);
    }
    detached(command, &keeper.run_dir.join(LOG))
}

/// This program, in a session of its own, in the account's name.
pub(crate) fn own_program(account: &Account, extra: Extra, entrance: Option<&Path>) -> anyhow::Result<Command> {
    let program = std::env::current_exe().context("this program's path")?;
    // While the package is upgraded, the kernel says that the file is gone; the new one has its name.
    let text = program.to_string_lossy().into_owned();
    let program = text.strip_suffix(" (deleted)").map_or(program, PathBuf::from);
    Ok(account.command(&program, extra, entrance))
}

/// Starts a process that does not end with this one; its words go to `log`.
pub(crate) fn detached(mut command: Command, log: &Path) -> anyhow::Result<Child> {
    let output = files::anew(log).with_context(|| format!("cannot write {}", log.display()))?;
    let errors = output.try_clone().context("log")?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors).current_dir("/");
    command.spawn().context("cannot start setsid (util-linux)")
}

async fn wait_for_claim(mut child: Child, keeper: &Keeper) -> bool {
    let pid_file = keeper.run_dir.join(PID_FILE);
    let mut left = CLAIM_POLLS;
    loop {
        let gone = matches!(child.try_wait(), Ok(Some(_)) | Err(_));
        // Read in this order: a keeper that held the directory and is gone was started.
        let holds = Claim::holder(&pid_file).is_some();
        if holds || gone || left == 0 {
            let ended = Arc::clone(&keeper.ended);
            tokio::spawn(async move {
                let _ = child.wait().await;
                ended.notify_one();
            });
            return holds
                || (gone
                    && crate::progress::Progress::load(&keeper.run_dir).is_some_and(|p| p.attempt == keeper.attempt));
        }
        left -= 1;
        tokio::time::sleep(CLAIM_POLL).await;
    }
}

fn not_started(detail: String) -> Refusal {
    Refusal::new("keeper_not_started", "guests", detail, "see keeper.log in the run directory (`host-agent logs`)")
}

/// The end of the keeper's log. It is the host's own text: nothing of a guest is in it.
fn last_words(run_dir: &Path) -> String {
    let log = files::read_shared(&run_dir.join(LOG), 64 * 1024).unwrap_or_default();
    let text = String::from_utf8_lossy(&log).into_owned();
    text.lines().last().unwrap_or("it ended without a word").chars().take(500).collect()
}

/// What a keeper says, in its run directory.
pub(crate) const LOG: &str = "keeper.log";
/// Code for a QEMU that is another than the one that a guest was composed for.
pub(crate) const QEMU_CHANGED: &str = "qemu_changed";
const CLAIM_POLL: Duration = Duration::from_millis(10);
const CLAIM_POLLS: u32 = 1_500;
