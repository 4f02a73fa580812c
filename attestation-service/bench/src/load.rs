// SPDX-License-Identifier: Apache-2.0
//! The service under load, over the wire.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use attestation_bench::{Guest, KEY, Program, Scene, Starter};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::caller::{Asked, Caller, Callers};
use crate::figure::{Figure, quantile};

/// Figures, and how the rate grows with the number of clients.
pub(crate) fn measure(scene: &Scene, program: PathBuf, seconds: u64) -> anyhow::Result<(Vec<Figure>, Value)> {
    let mut starter = Starter::new(program);
    for limit in ["--client-rate", "--model-rate", "--open-challenges"] {
        starter.arguments.extend([limit.to_owned(), "1000000".to_owned()]);
    }
    let most = open_files()?;
    // All come from one address.
    for limit in ["--connections", "--client-connections"] {
        starter.arguments.extend([limit.to_owned(), most.to_string()]);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let started = Started::new(&runtime, scene, &starter, seconds)?;
    let Started { service, load } = &started;
    let idle = resident(service)?;
    let mut growth = Vec::new();
    let mut best = Round::default();
    for clients in [1, 10, 100, 1000] {
        if let Some(round) = load.some(&runtime, service, clients, most)? {
            growth.push(round.document(clients));
            if round.rate > best.rate {
                best = round;
            }
        }
    }
    eprintln!("connections for one release each");
    let fresh = runtime.block_on(load.closed(service, 32, false))?;
    eprintln!("{RATE} a second");
    let processor = (processor_seconds(service)?, own_seconds());
    let (mut latencies, late) = runtime.block_on(load.open())?;
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let count = latencies.len() as f64;
    let processor = (processor_seconds(service)? - processor.0, own_seconds() - processor.1);
    eprintln!("open challenges");
    let before = resident(service)?;
    runtime.block_on(load.challenges(CHALLENGES))?;
    let memory = resident(service)?;
    started.end()?;
    // A service of its own: its memory is that of so many connections.
    let started = Started::new(&runtime, scene, &starter, seconds)?;
    if let Some(round) = started.load.some(&runtime, &started.service, MANY, most)? {
        growth.push(round.document(MANY));
    }
    started.end()?;
    let store = scene.beside()?;
    let logged = store.verify_audit()?.key_releases;
    let figures = vec![
        Figure::at_least("releases over TLS, entries synced", best.rate, "/s", 1000.0),
        Figure::plain("the same, best number of clients", best.clients, ""),
        Figure::at_least("the same, two cores for the service alone", 2.0 / best.processor, "/s", 1000.0),
        Figure::plain("service's processor time for a release", best.processor * 1000.0, "ms"),
        Figure::plain("the clients' processor time for the same", best.generator * 1000.0, "ms"),
        Figure::plain("releases, a connection for each", fresh.rate, "/s"),
        Figure::plain("the same, service's processor time", fresh.processor * 1000.0, "ms"),
        Figure::at_most("99 % of releases at 500/s", quantile(&mut latencies, 0.99) * 1000.0, "ms", 50.0),
        Figure::plain("half of releases at 500/s", quantile(&mut latencies, 0.5) * 1000.0, "ms"),
        Figure::plain("share of 500/s that was answered in time", late, "%"),
        Figure::plain("service's processor time for a release at 500/s", processor.0 / count * 1000.0, "ms"),
        Figure::plain("the clients' processor time for the same", processor.1 / count * 1000.0, "ms"),
        Figure::plain("memory at the start", idle, "MB"),
        Figure::plain("memory after the loads", before, "MB"),
        Figure::at_most("memory with 10,000 open challenges", memory, "MB", 100.0),
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        Figure::plain("entries on the verified audit log", logged as f64, ""),
    ];
    Ok((figures, growth.into()))
}

/// A service that released a key, which was opened and was the right one.
struct Started {
    service: Program,
    load: Load,
}

impl Started {
    fn new(runtime: &Runtime, scene: &Scene, starter: &Starter, seconds: u64) -> anyhow::Result<Self> {
        let service = starter.start(scene)?;
        let guest = Guest::boot(scene)?;
        runtime.block_on(async {
            let released = guest.ask(&mut Guest::connect(service.address, scene.pin()).await?).await?;
            anyhow::ensure!(*released.key == KEY, "another key was released");
            Ok(())
        })?;
        let callers = Callers::new(guest, service.address, scene.pin())?;
        Ok(Self { service, load: Load { callers, seconds } })
    }

    fn end(self) -> anyhow::Result<()> {
        let code = self.service.terminate()?;
        anyhow::ensure!(code == Some(0), "the service ended with {code:?}");
        Ok(())
    }
}

#[derive(Clone)]
struct Load {
    callers: Arc<Callers>,
    seconds: u64,
}

/// What one load came to.
#[derive(Debug, Default)]
struct Round {
    clients: f64,
    /// Refused because too many asked.
    busy: u64,
    /// Releases a second.
    rate: f64,
    /// The service's processor time for a release, seconds.
    processor: f64,
    /// The clients' own.
    generator: f64,
    /// Seconds until all were connected.
    connected: f64,
    /// The service's memory with all of them connected, MB.
    memory: f64,
    median: f64,
    p99: f64,
}

impl Round {
    fn document(&self, clients: u32) -> Value {
        json!({
            "clients": clients, "releases_per_second": self.rate, "median_ms": self.median * 1000.0,
            "p99_ms": self.p99 * 1000.0, "service_processor_ms": self.processor * 1000.0,
            "clients_processor_ms": self.generator * 1000.0, "refused_busy": self.busy,
            "connected_after_s": self.connected, "service_memory_mb": self.memory,
        })
    }
}

impl Load {
    /// [`Load::closed`] on kept connections, where the system lets so many be open.
    fn some(&self, runtime: &Runtime, service: &Program, clients: u32, most: u32) -> anyhow::Result<Option<Round>> {
        if clients > most {
            eprintln!("{clients} clients need more open files than the system allows ({most}): left out");
            return Ok(None);
        }
        eprintln!("{clients} clients on connections of their own");
        runtime.block_on(self.closed(service, clients, true)).map(Some)
    }

    /// Clients that ask again as soon as they are answered, on one connection each or on one for each release.
    async fn closed(&self, service: &Program, clients: u32, kept: bool) -> anyhow::Result<Round> {
        let began = Instant::now();
        let connections = self.connect(clients).await?;
        let connected = began.elapsed().as_secs_f64();
        let processor = processor_seconds(service)?;
        let generator = own_seconds();
        let started = Instant::now();
        let end = started + Duration::from_secs(self.seconds);
        let mut tasks = JoinSet::new();
        for mut connection in connections {
            let load = self.clone();
            tasks.spawn(async move {
                let (mut latencies, mut busy) = (Vec::new(), 0_u64);
                while Instant::now() < end {
                    let asked = Instant::now();
                    if !kept {
                        connection = load.callers.connect().await?;
                    }
                    match load.callers.ask(&mut connection).await? {
                        Asked::Released => latencies.push(asked.elapsed().as_secs_f64()),
                        Asked::Busy(after) => {
                            busy += 1;
                            tokio::time::sleep(after).await;
                        }
                    }
                }
                anyhow::Ok((latencies, busy))
            });
        }
        let (mut latencies, mut busy) = (Vec::new(), 0);
        while let Some(done) = tasks.join_next().await {
            let (mut answered, refused) = done??;
            latencies.append(&mut answered);
            busy += refused;
        }
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let count = latencies.len() as f64;
        Ok(Round {
            clients: clients.into(),
            busy,
            rate: count / started.elapsed().as_secs_f64(),
            processor: (processor_seconds(service)? - processor) / count,
            generator: (own_seconds() - generator) / count,
            connected,
            memory: resident(service)?,
            median: quantile(&mut latencies, 0.5),
            p99: quantile(&mut latencies, 0.99),
        })
    }

    /// So many connections, some of them at a time. Each asks for a challenge: who says nothing is not kept for long.
    async fn connect(&self, clients: u32) -> anyhow::Result<Vec<Caller>> {
        let mut made = Vec::new();
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            let callers = Arc::clone(&self.callers);
            tasks.spawn(async move {
                let mut caller = callers.connect().await?;
                caller.challenge().await?;
                anyhow::Ok(caller)
            });
            if tasks.len() >= AT_ONCE
                && let Some(done) = tasks.join_next().await
            {
                made.push(done??);
            }
        }
        while let Some(done) = tasks.join_next().await {
            made.push(done??);
        }
        Ok(made)
    }

    /// [`RATE`] releases a second whatever the answers do: latencies from the moment that each was due, and the share
    /// that was answered by the end.
    async fn open(&self) -> anyhow::Result<(Vec<f64>, f64)> {
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            idle.push(self.callers.connect().await?);
        }
        let (back, mut returned) = tokio::sync::mpsc::unbounded_channel();
        for connection in idle {
            back.send(connection)?;
        }
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        let total = RATE.saturating_mul(self.seconds);
        for number in 0..total {
            let due = started + Duration::from_secs(1) * u32::try_from(number)? / u32::try_from(RATE)?;
            tokio::time::sleep_until(due.into()).await;
            // No connection is free: what is due waits, and its latency shows it.
            let mut connection = returned.recv().await.context("connections")?;
            let (callers, back) = (Arc::clone(&self.callers), back.clone());
            tasks.spawn(async move {
                let asked = callers.ask(&mut connection).await?;
                anyhow::ensure!(asked == Asked::Released, "a release at {RATE}/s was refused as busy");
                // The receiver outlives all tasks.
                let _ = back.send(connection);
                anyhow::Ok(due.elapsed().as_secs_f64())
            });
        }
        let planned = Duration::from_secs(self.seconds).as_secs_f64();
        let took = started.elapsed().as_secs_f64();
        let mut latencies = Vec::new();
        while let Some(done) = tasks.join_next().await {
            latencies.push(done??);
        }
        Ok((latencies, (planned / took).min(1.0) * 100.0))
    }

    async fn challenges(&self, count: u32) -> anyhow::Result<()> {
        let mut connection = self.callers.connect().await?;
        for _ in 0..count {
            connection.challenge().await?;
        }
        Ok(())
    }
}

/// Raises this program's limit of open files as far as it may be, and gives the connections that fit in it and in the
/// service's.
fn open_files() -> anyhow::Result<u32> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let current = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let most = current.saturating_sub(FILES_BESIDE).clamp(1, MOST_CONNECTIONS);
    Ok(u32::try_from(most)?)
}

/// Processor time of this program so far.
fn own_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default().as_secs_f64()
}

/// User and system time of the service so far (proc(5), fields 14 and 15, in hundredths of a second).
fn processor_seconds(service: &Program) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", service.id().as_raw_nonzero()))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field).and_then(|ticks| ticks.parse::<f64>().ok()).context("stat");
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

/// Resident memory in MB.
fn resident(service: &Program) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.id().as_raw_nonzero()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0 / 1e6)
}

/// Handshakes at the same time.
const AT_ONCE: usize = 64;
/// Open files beside connections.
const FILES_BESIDE: u64 = 128;
/// With a quarter of its places free a service waits longer for those that say nothing.
const MOST_CONNECTIONS: u64 = 40_000;
/// The largest load.
const MANY: u32 = 10_000;
const RATE: u64 = 500;
const CONNECTIONS: usize = 64;
const CHALLENGES: u32 = 10_000;
