// SPDX-License-Identifier: Apache-2.0
//! `host-agent agent`: the loop.

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

use super::config::{Config, HardwareSection, OnStop};
use super::control::{self, Answer, Asked, Command};
use super::declare::{Declaration, Fronts, declare};
use super::effects::Effects;
use super::host::{Host, Look};
use super::paths::Paths;
use super::state_file;
use super::status::{CacheStatus, Known, Status};
use super::tcb;
use crate::claim::Claim;
use crate::cli::Surroundings;
use crate::gpu::passing::Hands;
use crate::limits::Groups;
use crate::record::VSOCK;
use crate::{files, metrics};

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

fn check(args: &DaemonArgs) -> ExitCode {
    let reasons = match Config::load(&args.config) {
        // Ports of guests that run already are held by their fronts: whoever asks for a check of a running host wants to
        // know about the rest.
        Ok(config) => {
            let fronts = config.guests.iter().map(|(name, guest)| (name.clone(), guest.listen));
            let running = Claim::holder(&Paths::new(&config.agent.state_dir).lock()).is_some();
            let fronts = if running { fronts.collect() } else { Fronts::new() };
            let declarations = declare(&config, &fronts);
            let declared = declarations.into_values().filter_map(|declaration| declaration.declared.spec.err());
            declared.flatten().chain(config.account().err()).collect()
        }
        Err(reasons) => reasons,
    };
    if reasons.is_empty() {
        println!("{}", if args.json { "{\"accepted\":true,\"reasons\":[]}" } else { "it can be run" });
        return ExitCode::SUCCESS;
    }
    refuse(&reasons, args.json)
}

fn refuse(reasons: &[Refusal], json: bool) -> ExitCode {
    let mut distinct: Vec<&Refusal> = Vec::new();
    for reason in reasons {
        if !distinct.contains(&reason) {
            distinct.push(reason);
        }
    }
    if json {
        println!("{}", serde_json::json!({ "accepted": false, "reasons": distinct }));
    } else {
        for reason in distinct {
            eprintln!("refused: {reason}");
        }
    }
    ExitCode::from(2)
}

fn start_log(form: LogForm) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CHRYSALIS_LOG").unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // A second subscriber in one process is a test's matter: the first stays.
    let _ = match form {
        LogForm::Text => log.try_init(),
        LogForm::Json => log.json().try_init(),
    };
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
        for port in [guest_link::SERVICE_PORT, guest_link::STATUS_PORT] {
            let routes = Arc::clone(&self.host.routes);
            let route = move |cid| {
                let routes = routes.lock().unwrap_or_else(PoisonError::into_inner);
                routes.get(&cid).map(|run_dir| run_dir.join(VSOCK))
            };
            links.spawn(guest_link::switch(port, route));
        }
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
            self.effects.act(action, &self.config, &self.declarations);
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

    async fn answer(&mut self, (command, reply): Asked) {
        let answer = match command {
            Command::Status => {
                let status = self.status.borrow().clone();
                status.map_or(Answer::Refused(Vec::new()), |status| Answer::Status(Box::new((*status).clone())))
            }
            Command::Stop(guest) => self.known(&guest, FleetState::stop),
            Command::Restart(guest) => self.known(&guest, FleetState::restart),
            Command::Reload => match self.reload().await {
                Ok(()) => Answer::Done,
                Err(reasons) => Answer::Refused(reasons),
            },
            Command::Drain => {
                self.ending = true;
                Answer::Done
            }
        };
        // Who asked may be gone.
        let _ = reply.send(answer);
    }

    fn known(&mut self, guest: &GuestName, change: impl Fn(&mut FleetState, &GuestName) -> bool) -> Answer {
        let mut next = self.state.clone();
        if change(&mut next, guest) {
            // Who is told that it is done can rely on it, whatever happens to this process.
            return match self.write_down(next) {
                Ok(()) => Answer::Done,
                Err(reason) => Answer::Refused(vec![reason]),
            };
        }
        let detail = format!("there is no guest {guest}");
        Answer::Refused(vec![Refusal::new("guest_unknown", "guest", detail, "`host-agent status` names them")])
    }

    /// Takes the file anew. What it says of a guest that is refused changes nothing of that guest; a file that is
    /// refused changes nothing at all.
    async fn reload(&mut self) -> Result<(), Vec<Refusal>> {
        let config = Config::load(&self.path).and_then(|config| self.fits(config)).inspect_err(|reasons| {
            reasons.iter().for_each(|reason| tracing::warn!(code = %reason.code, "configuration refused: {reason}"));
            self.reasons = reasons.clone();
        })?;
        self.config = Arc::new(config);
        self.reasons.clear();
        let look = self.host.look().await;
        self.declare(&look).await;
        tracing::info!(guests = self.declarations.len(), "configuration taken");
        let refused = self.declarations.values().filter_map(|declaration| declaration.declared.spec.clone().err());
        let refused: Vec<Refusal> = refused.flatten().collect();
        if refused.is_empty() { Ok(()) } else { Err(refused) }
    }

    /// What a running daemon cannot change.
    fn fits(&self, config: Config) -> Result<Config, Vec<Refusal>> {
        let fixed = [
            ("agent.state_dir", config.agent.state_dir != self.config.agent.state_dir),
            ("agent.control_socket", config.agent.control_socket != self.config.agent.control_socket),
            ("agent.user", config.agent.user != self.config.agent.user),
            ("agent.metrics_listen", config.agent.metrics_listen != self.config.agent.metrics_listen),
            ("cache", config.cache != self.config.cache),
            ("hardware.bind_gpus", config.hardware.bind_gpus != self.config.hardware.bind_gpus),
            ("hardware.root", config.hardware.root != self.config.hardware.root),
            ("tcb", config.tcb != self.config.tcb),
            ("simulate", config.simulate.is_some() != self.config.simulate.is_some()),
        ];
        let changed = fixed.iter().filter(|(_, changed)| *changed);
        let reasons: Vec<Refusal> = changed
            .map(|(field, _)| {
                let detail = "it is read at the agent's start only";
                Refusal::new("config_needs_restart", field, detail, "systemctl restart chrysalis-agent; guests go on")
            })
            .collect();
        if reasons.is_empty() { Ok(config) } else { Err(reasons) }
    }

    async fn declare(&mut self, look: &Look) {
        let fronts: Fronts =
            look.fronts.iter().filter_map(|(name, front)| Some((name.clone(), front.listen?))).collect();
        let config = Arc::clone(&self.config);
        let declared = tokio::task::spawn_blocking(move || declare(&config, &fronts)).await;
        match declared {
            Ok(declarations) => self.declarations = declarations,
            Err(error) => tracing::error!("declaring failed, the last declaration holds: {error}"),
        }
        for (name, declaration) in &self.declarations {
            if let Err(reasons) = &declaration.declared.spec {
                reasons
                    .iter()
                    .for_each(|reason| tracing::warn!(guest = %name, code = %reason.code, "refused: {reason}"));
            }
        }
        self.declared_at = Instant::now();
    }

    /// Declares anew what was refused, once in a while: a port may be free by now, a file mended.
    async fn redeclare(&mut self, look: &Look) {
        let refused = self.declarations.values().any(|declaration| declaration.declared.spec.is_err());
        let qemu_changed = look
            .guests
            .values()
            .flat_map(|guest| guest.generations.values())
            .any(|seen| seen.failure.iter().flatten().any(|reason| reason.code == super::keeper::QEMU_CHANGED));
        if qemu_changed || (refused && self.declared_at.elapsed() > REDECLARE) {
            self.declare(look).await;
        }
    }

    /// True if the daemon ends now.
    fn end(&mut self) -> bool {
        match self.config.agent.on_stop {
            OnStop::Keep => true,
            // The second signal does not wait.
            OnStop::Drain if self.ending => true,
            OnStop::Drain => {
                tracing::info!("draining");
                self.ending = true;
                false
            }
        }
    }
}

/// The hands that bind GPUs, where the agent is to.
fn hands(config: &Config, paths: &Paths, surroundings: &Surroundings) -> Option<Hands> {
    let HardwareSection { root, bind_gpus, .. } = &config.hardware;
    let hands = Hands { root: root.clone(), journal: paths.gpus(), sysfs: surroundings.sysfs };
    bind_gpus.then_some(hands)
}

fn boot_id() -> anyhow::Result<String> {
    let bytes = files::read_capped("/proc/sys/kernel/random/boot_id".as_ref(), 64)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// Milliseconds since boot, those of sleep included.
fn now_ms() -> u64 {
    let Ok(time) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME) else { return 0 };
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec()), u64::try_from(time.tv_nsec()));
    seconds.unwrap_or(0).saturating_mul(1000).saturating_add(nanoseconds.unwrap_or(0) / 1_000_000)
}

/// Any number.
fn jitter() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}

const SOON: Duration = Duration::from_millis(100);
const LATER: Duration = Duration::from_secs(1);
const TIDY: Duration = Duration::from_secs(60);
const REDECLARE: Duration = Duration::from_secs(60);
