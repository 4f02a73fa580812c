// SPDX-License-Identifier: Apache-2.0
//! `host-agent agent`: the loop.

mod moment;
mod orders;
mod start;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use fleet::{Declared, FleetState, GuestName, Now, StepInput};
use model_cache::Cache;
use tdx_verify::TrustAnchors;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use types::Refusal;

use super::config::Config;
use super::control;
use super::declare::Declaration;
use super::effects::Effects;
use super::host::{Host, Look};
use super::paths::Paths;
use super::state_file;
use super::status::{CacheStatus, Known, Status};
use super::tcb;
use crate::claim::Claim;
use crate::cli::Surroundings;
use crate::limits::Groups;
use crate::record::VSOCK;
use crate::{files, metrics};
use moment::{boot_id, hands, jitter, now_ms};
use start::{check, refuse, start_log};

/// The daemon.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  host-agent agent --check\n  host-agent agent --config /etc/chrysalis/agent.toml --log json\n  host-agent status\n  host-agent restart chat-1"
)]
pub(crate) struct DaemonArgs {
    /// What is declared (docs/host-agent.md).
    #[arg(long, default_value = "/etc/chrysalis/agent.toml")]
    config: PathBuf,
    /// Only say whether it could be run, and why not: exit code 0 or 2.
    #[arg(long)]
    check: bool,
    /// Form of the log on standard error.
    #[arg(long, value_enum, default_value_t = LogForm::Text)]
    log: LogForm,
    /// With --check: print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogForm {
    Text,
    Json,
}

/// Runs the daemon until it is ended. Exit code 2 when the configuration is refused.
pub(crate) fn run(args: &DaemonArgs, surroundings: &Surroundings) -> anyhow::Result<ExitCode> {
    if args.check {
        return Ok(check(args));
    }
    start_log(args.log);
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(reasons) => return Ok(refuse(&reasons, args.json)),
    };
    let account = match config.account() {
        Ok(account) => account,
        Err(reason) => return Ok(refuse(&[reason], args.json)),
    };
    files::private_directory(&config.agent.state_dir)?;
    // One name, whatever links lead there: launch records and processes carry the same.
    let state_dir = config.agent.state_dir.canonicalize().context("agent.state_dir")?;
    let paths = Paths::new(&state_dir);
    files::private_directory(&paths.guests())?;
    let paths = match paths.shared_with(account, Groups::find(&config.hardware.root).ok()) {
        Ok(paths) => paths,
        Err(reason) => return Ok(refuse(&[reason], args.json)),
    };
    let _claim = Claim::take(&paths.lock())
        .with_context(|| format!("another agent works in {}", config.agent.state_dir.display()))?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("runtime")?;
    runtime.block_on(async {
        Daemon::new(args.config.clone(), config, paths, surroundings)?.run(&surroundings.anchors).await
    })
}

struct Daemon {
    path: PathBuf,
    config: Arc<Config>,
    paths: Paths,
    cache: Cache,
    state: FleetState,
    /// What is on the disk.
    written: Option<FleetState>,
    declarations: BTreeMap<GuestName, Declaration>,
    host: Host,
    effects: Effects,
    reasons: Vec<Refusal>,
    tcb: tcb::Shared,
    status: watch::Sender<Option<Arc<Status>>>,
    /// Guests are drained, then the daemon ends.
    ending: bool,
    tidied: Option<Instant>,
    declared_at: Instant,
}

impl Daemon {
    fn new(path: PathBuf, config: Config, paths: Paths, surroundings: &Surroundings) -> anyhow::Result<Self> {
        let quota = config.cache.quota_gib.saturating_mul(1 << 30);
        let cache = Cache::open(&config.cache.dir, quota)?;
        let state = state_file::load(&paths.state(), &boot_id()?)?;
        Ok(Self {
            path,
            host: Host::new(paths.clone()),
            effects: Effects::new(paths.clone(), cache.clone(), hands(&config, &paths, surroundings)),
            config: Arc::new(config),
            cache,
            paths,
            state,
            written: None,
            declarations: BTreeMap::new(),
            reasons: Vec::new(),
            tcb: tcb::Shared::default(),
            status: watch::Sender::new(None),
            ending: false,
            tidied: None,
            declared_at: Instant::now(),
        })
    }

    async fn run(mut self, anchors: &TrustAnchors) -> anyhow::Result<ExitCode> {
        let (mut hangup, mut terminate) = (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (sender, mut commands) = mpsc::channel(16);
        let listener = control::bind(&self.config.agent.control_socket, self.config.agent.control_access)?;
        let control = tokio::spawn(control::serve(listener, sender));
        let metrics = match self.config.agent.metrics_listen {
            Some(address) => Some(tokio::spawn(metrics::serve(metrics::bind(address).await?, self.status.subscribe()))),
            None => None,
        };
        let tcb = match &self.config.tcb {
            Some(section) => Some(tokio::spawn(tcb::Watch::new(section, anchors, self.tcb.clone())?.run())),
            None => None,
        };
        let mut links = self.take_links();
        let look = self.host.look().await;
        self.declare(&look).await;
        tracing::info!(guests = self.declarations.len(), simulated = self.config.simulate.is_some(), "ready");
        if self.config.simulate.is_some() {
            tracing::warn!("hardware simulated: no client with a release's policy accepts these guests");
        }
        let wake = Arc::clone(&self.effects.wake);
        loop {
            let acted = self.step().await;
            if self.ending && self.state.guests.is_empty() {
                self.effects.release_the_last().await;
                break;
            }
            let pause = if acted { SOON } else { LATER };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = wake.notified() => {}
                Some(asked) = commands.recv() => self.answer(asked).await,
                Some(ended) = links.join_next() => {
                    tracing::error!("guests cannot reach their services any more: {ended:?}");
                    return Ok(ExitCode::FAILURE);
                }
                _ = hangup.recv() => { let _ = self.reload().await; }
                _ = terminate.recv() => if self.end() { break },
                _ = interrupt.recv() => if self.end() { break },
            }
        }
        control.abort();
        for task in [metrics, tcb].into_iter().flatten() {
            task.abort();
        }
        let _ = std::fs::remove_file(&self.config.agent.control_socket);
        tracing::info!("ended");
        Ok(ExitCode::SUCCESS)
    }

    /// Takes the vsock connections of all guests of the kernel's vsock, which one process alone can.
    fn take_links(&self) -> JoinSet<Result<(), guest_link::LinkError>> {
        let mut links = JoinSet::new();
        if self.config.simulate.is_some() {
            return links;
        }
        let taken = |port| {
            let routes = Arc::clone(&self.host.routes);
            let route = move |cid| {
                let routes = routes.lock().unwrap_or_else(PoisonError::into_inner);
                routes.get(&cid).map(|run_dir| run_dir.join(VSOCK))
            };
            guest_link::switch(port, self.paths.account.uid(), route)
        };
        for port in [guest_link::SERVICE_PORT, guest_link::STATUS_PORT] {
            links.spawn(taken(port));
        }
        // Also where `gpu_blobs` is not set yet: it counts at a guest's next start. Who has no keeper that gives any is closed.
        let blobs = taken(guest_link::BLOB_PORT);
        // Guests serve without: they compare less.
        links.spawn(async move {
            let ended = blobs.await;
            tracing::error!("guests get no files of hardware.gpu_blobs any more: {ended:?}");
            std::future::pending().await
        });
        links
    }

    /// Looks, decides, writes down, acts. True if there was something to do.
    async fn step(&mut self) -> bool {
        let mut look = self.host.look().await;
        self.effects.complete(&mut look.guests).await;
        self.verify_blamed(&mut look);
        self.redeclare(&look).await;
        let declared: BTreeMap<GuestName, Declared> = if self.ending {
            BTreeMap::new()
        } else {
            self.declarations.iter().map(|(name, declaration)| (name.clone(), declaration.declared.clone())).collect()
        };
        let mut next = self.state.clone();
        let now = Now { ms: now_ms(), jitter: jitter(), backoff: self.config.agent.backoff() };
        let actions = next.step(&StepInput { declared: &declared, observed: &look.guests, now });
        // Nothing is done that is not written down: after a crash it would not be known of.
        let written = self.write_down(next);
        self.reasons.retain(|reason| !state_file::says_unwritten(reason));
        if let Err(reason) = written {
            self.reasons.push(reason);
            self.publish(&look);
            return false;
        }
        self.move_fronts(&look);
        self.publish(&look);
        self.effects.release_gpus();
        let busy = !actions.is_empty();
        for action in actions {
            self.effects.act(action, &look, &self.config, &self.declarations);
        }
        if self.tidied.is_none_or(|at| at.elapsed() > TIDY) {
            self.tidied = Some(Instant::now());
            let plans = self.declarations.values().filter_map(|declaration| declaration.plan.as_ref());
            self.effects.tidy(plans.map(|plan| plan.run.release).collect());
        }
        busy
    }

    /// Looks after packs that guests say are wrong. While one is verified only guests that run hold it.
    fn verify_blamed(&mut self, look: &mut Look) {
        for (name, guest) in &self.state.guests {
            for generation in guest.active.iter().chain(&guest.candidate) {
                let seen = look.guests.get_mut(name).and_then(|seen| seen.generations.get_mut(&generation.number));
                if let Some(seen) = seen {
                    self.effects.verify_blamed(&(name.clone(), generation.number), seen);
                }
            }
        }
        self.host.let_go(self.effects.verifying());
    }

    /// Takes `next` as the state once it is on the disk.
    fn write_down(&mut self, next: FleetState) -> Result<(), Refusal> {
        if self.written.as_ref() != Some(&next) {
            state_file::store(&self.paths.state(), &next)
                .inspect_err(|reason| tracing::error!(code = %reason.code, "nothing is changed: {reason}"))?;
            self.written = Some(next.clone());
        }
        self.state = next;
        Ok(())
    }

    fn move_fronts(&self, look: &Look) {
        for (name, declaration) in &self.declarations {
            let listens = look.fronts.get(name).and_then(|front| front.listen);
            if declaration.declared.spec.is_ok() && listens.is_some_and(|listens| listens != declaration.listen) {
                self.effects.move_front(name, declaration.listen);
            }
        }
    }

    fn publish(&self, look: &Look) {
        *self.tcb.serving.lock().unwrap_or_else(PoisonError::into_inner) = look.serving();
        let packs = self.cache.list().unwrap_or_default();
        let cache = CacheStatus {
            bytes: packs.iter().fold(0, |sum, pack| sum.saturating_add(pack.bytes)),
            quota: self.cache.quota(),
            packs: u64::try_from(packs.len()).unwrap_or(u64::MAX),
        };
        let known = Known { look, effects: &self.effects, declarations: &self.declarations, now_ms: now_ms() };
        let status = Status {
            schema: "chrysalis/agent-status/v1".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            simulated: self.config.simulate.is_some(),
            guests: self.state.guests.iter().map(|(name, state)| known.guest(name, state)).collect(),
            cache,
            tcb: self.tcb.status.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            reasons: self.reasons.clone(),
        };
        self.status.send_replace(Some(Arc::new(status)));
    }
}

const SOON: Duration = Duration::from_millis(100);
const LATER: Duration = Duration::from_secs(1);
const TIDY: Duration = Duration::from_secs(60);
