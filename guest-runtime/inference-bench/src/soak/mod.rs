// SPDX-License-Identifier: Apache-2.0
//! Load of all kinds for some minutes: mixed lengths, clients that leave or are killed, requests that are refused. Afterwards
//! memory must have been flat, no answer may run for nobody, and the chain of receipts must be whole.

mod afterwards;
mod clients;
mod ledger;
mod memory;
mod process;
mod random;
mod talk;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use attested_channel::SignedReceipt;
use client::{Upstream, Verifier};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use types::ModelId;

use self::ledger::Ledger;
use self::memory::Sample;
use self::random::Random;
use crate::programs::{Attested, Room};
use crate::{Binaries, policy};

pub(crate) use self::process::client;

#[derive(Debug, clap::Args)]
pub(crate) struct Soak {
    #[command(flatten)]
    binaries: Binaries,
    /// Minutes of load.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_080))]
    minutes: u32,
    /// Of what the clients do; drawn and printed where it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Clients of this process.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=64))]
    clients: u16,
    /// Clients that are processes and are killed.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    processes: u16,
}

/// Something that must hold.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) passed: bool,
    pub(crate) detail: String,
}

impl Check {
    /// Shows it as soon as it is known: some take a while.
    fn told(self) -> Self {
        let Self { name, passed, detail } = &self;
        eprintln!("{} {name:<18} {detail}", if *passed { "ok   " } else { "WRONG" });
        self
    }
}

/// What all clients share.
pub(crate) struct World {
    pub(crate) upstream: Upstream,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) model: ModelId,
    /// Of the simulated platform's files.
    pub(crate) directory: PathBuf,
    /// How many requests were made that are refused.
    pub(crate) refusals: AtomicU64,
    ended: AtomicBool,
    ledger: Mutex<Ledger>,
    counts: Mutex<BTreeMap<String, u64>>,
    /// What went otherwise than it should.
    faults: Mutex<Vec<String>>,
}

impl World {
    fn new(guest: &Attested, directory: PathBuf) -> anyhow::Result<Self> {
        Ok(Self {
            upstream: Upstream::new("127.0.0.1", guest.address.port()),
            verifier: policy::verifier(&directory)?,
            model: policy::model()?,
            directory,
            refusals: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            ledger: Mutex::default(),
            counts: Mutex::default(),
            faults: Mutex::default(),
        })
    }

    pub(crate) fn goes_on(&self) -> bool {
        !self.ended.load(Ordering::Relaxed)
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// Takes the receipt of an answer that somebody has heard out.
    pub(crate) fn receipt(&self, signed: SignedReceipt) -> anyhow::Result<()> {
        let mut ledger = self.ledger();
        if ledger.take(signed)? {
            ledger.delivered += 1;
        }
        Ok(())
    }

    pub(crate) fn left(&self, id: String) {
        self.ledger().left(id);
    }

    pub(crate) fn count(&self, what: &str) {
        *lock(&self.counts).entry(what.to_owned()).or_default() += 1;
    }

    pub(crate) fn fault(&self, what: &str, error: &anyhow::Error) {
        self.count("fault");
        let mut faults = lock(&self.faults);
        if faults.len() < MOST_FAULTS {
            eprintln!("fault: {what}: {error:#}");
            faults.push(format!("{what}: {error:#}"));
        }
    }
}

/// Runs it, prints one JSON document, and gives whether all checks hold.
pub(crate) async fn run(arguments: &Soak) -> anyhow::Result<bool> {
    let seed = arguments.seed.unwrap_or_else(drawn);
    let length = Duration::from_secs(u64::from(arguments.minutes) * 60);
    eprintln!("{} minutes of load, seed {seed}", arguments.minutes);
    let directory = tempfile::tempdir()?;
    let mut guest = Attested::start(&arguments.binaries, directory.path(), ROOM)?;
    let world = Arc::new(World::new(&guest, directory.path().to_owned())?);
    let descriptors = afterwards::settled(&world, &guest.serve).await?;
    clients::each_once(&world, Random::new(seed)).await?;
    let samples = load(arguments, &world, &guest, seed, length).await?;

    eprintln!("the load has ended");
    let mut checks: Vec<Check> = memory::checks(&samples).into_iter().map(Check::told).collect();
    checks.push(faults(&world).told());
    checks.push(afterwards::engine_is_idle(&guest.engine).await?.told());
    checks.push(afterwards::descriptors_are_closed(&guest.serve, descriptors).await?.told());
    checks.push(afterwards::all_places_are_free(&world).await?.told());
    checks.push(afterwards::all_cells_are_free(&world).await?.told());
    checks.push(afterwards::receipts_are_complete(&world).await?.told());
    let alive = guest.serve.is_alive() && guest.engine.is_alive() && guest.attester.is_alive();
    checks.push(Check { name: "processes", passed: alive, detail: format!("all run: {alive}") }.told());
    let passed = checks.iter().all(|check| check.passed);
    println!("{}", document(arguments, seed, &world, &samples, &checks));
    Ok(passed)
}

/// Runs all clients for so long, and looks at memory meanwhile.
async fn load(
    arguments: &Soak,
    world: &Arc<World>,
    guest: &Attested,
    seed: u64,
    length: Duration,
) -> anyhow::Result<Vec<Sample>> {
    let (mut random, mut running) = (Random::new(seed), JoinSet::new());
    for _ in 0..arguments.clients {
        running.spawn(clients::client(Arc::clone(world), Random::new(random.next())));
    }
    for _ in 0..arguments.processes {
        running.spawn(process::keep_killing(Arc::clone(world), Random::new(random.next())));
    }
    let (begun, mut samples, mut told) = (Instant::now(), Vec::new(), Instant::now());
    let every = (length / SAMPLES).max(Duration::from_millis(250));
    while begun.elapsed() < length {
        tokio::time::sleep(every).await;
        let receipts = world.ledger().len();
        samples.push(Sample::take(guest, begun.elapsed().as_secs_f64(), receipts)?);
        if let Err(error) = afterwards::collect(world).await {
            world.fault("collect", &error);
        }
        if told.elapsed() >= TELL {
            told = Instant::now();
            tell(begun, length, samples.last(), world);
        }
    }
    world.ended.store(true, Ordering::Relaxed);
    let left = Instant::now();
    while let Some(ended) = tokio::time::timeout(LEAVE, running.join_next()).await.ok().flatten() {
        ended?;
    }
    anyhow::ensure!(running.is_empty(), "{} clients still wait after {} s", running.len(), left.elapsed().as_secs());
    Ok(samples)
}

fn tell(begun: Instant, length: Duration, sample: Option<&Sample>, world: &World) {
    let [serve, engine, attester] = sample.map(|sample| sample.resident.map(|bytes| bytes >> 20)).unwrap_or_default();
    let (counts, receipts) = (lock(&world.counts).clone(), world.ledger().len());
    let requests: u64 = counts.values().sum();
    eprintln!(
        "{:>5} of {} s: {requests} requests and kills, {receipts} receipts; serve {serve}, engine {engine}, attester {attester} MiB",
        begun.elapsed().as_secs(),
        length.as_secs(),
    );
}

/// Everybody was answered as one is, and everything that is tried was tried.
fn faults(world: &World) -> Check {
    let (counts, faults) = (lock(&world.counts).clone(), lock(&world.faults).clone());
    let missing: Vec<&str> = TRIED.into_iter().filter(|name| !counts.contains_key(*name)).collect();
    let detail = match (faults.first(), missing.is_empty()) {
        (Some(first), _) => format!("{} faults, the first: {first}", counts.get("fault").copied().unwrap_or_default()),
        (None, false) => format!("never tried: {}", missing.join(", ")),
        (None, true) => format!("none, and all of {} things were tried", TRIED.len()),
    };
    Check { name: "faults", passed: faults.is_empty() && missing.is_empty(), detail }
}

fn document(arguments: &Soak, seed: u64, world: &World, samples: &[Sample], checks: &[Check]) -> Value {
    let ledger = world.ledger();
    let reasons: Vec<Value> = checks
        .iter()
        .filter(|check| !check.passed)
        .map(|check| {
            let fix = "run it again with the same seed, and look at what the processes did";
            json!({ "code": "soak_check_failed", "field": check.name, "detail": check.detail, "fix": fix })
        })
        .collect();
    let checks: Vec<Value> =
        checks.iter().map(|c| json!({ "name": c.name, "passed": c.passed, "detail": c.detail })).collect();
    let memory: Vec<Value> =
        samples.iter().map(|s| json!([s.second, s.resident[0], s.resident[1], s.resident[2]])).collect();
    json!({
        "accepted": reasons.is_empty(), "reasons": reasons, "seed": seed, "minutes": arguments.minutes,
        "clients": arguments.clients, "processes": arguments.processes, "checks": checks,
        "counts": *lock(&world.counts), "faults": *lock(&world.faults),
        "receipts": { "all": ledger.len(), "delivered": ledger.delivered, "fetched": ledger.fetched },
        "memory_quarters": memory::quarters(samples), "memory": memory,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A seed from the clock: another one each time.
fn drawn() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ now.as_secs().rotate_left(20)
}

/// A small cache, so that there is never room for all: prefixes are given up, answers stopped and continued.
const ROOM: Room = Room { context: 512, cache: 2048 };
/// Samples of a run, at most.
const SAMPLES: u32 = 240;
/// How long the last requests may take.
const LEAVE: Duration = Duration::from_secs(300);
/// How often a person is told.
const TELL: Duration = Duration::from_secs(10);
/// Faults that are kept as text.
const MOST_FAULTS: usize = 20;
/// What a run must have done to say anything.
const TRIED: [&str; 14] = [
    "stream",
    "choices",
    "form",
    "whole",
    "slow",
    "leave",
    "vanish",
    "refused",
    "killed",
    "request_too_large",
    "context_length_exceeded",
    "invalid_json",
    "invalid_value",
    "unsupported_parameter",
];
