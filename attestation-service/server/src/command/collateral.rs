// SPDX-License-Identifier: Apache-2.0
//! `collateral fetch` and `collateral status`, and the renewal beside `serve`.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use collateral::{Keeper, Refresher, Source, Status};
use gpu_verify::GpuAnchors;
use serde_json::json;
use tdx_verify::{Collateral, MAX_COLLATERAL_LEN, TrustAnchors};
use tokio::signal::unix::Signal;

use super::now;
use crate::{
    cli::{CollateralCommand, ServeArgs, SourceArgs},
    gpu_files::{GpuFileArgs, GpuFiles},
    input,
    outcome::Outcome,
    service::{KnownCollateral, Service},
};

pub(super) fn run(command: &CollateralCommand, anchors: &TrustAnchors) -> anyhow::Result<Outcome> {
    let outcome = match command {
        CollateralCommand::Fetch { collateral_dir, pccs, source } => fetch(collateral_dir, pccs, source, anchors)?,
        CollateralCommand::Status { collateral_dir } => status(&open(collateral_dir, anchors)?)?,
    };
    Ok(outcome.under(anchors))
}

fn fetch(dir: &Path, pccs: &str, args: &SourceArgs, anchors: &TrustAnchors) -> anyhow::Result<Outcome> {
    let keeper = open(dir, anchors)?;
    let refresher = refresher(&keeper, pccs, args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut lines, mut list, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
    anyhow::ensure!(!refresher.wanted().is_empty(), "name the kinds of platforms with --fmspc");
    for wanted in refresher.wanted() {
        eprintln!("fetching collateral for {}", wanted.fmspc);
        match runtime.block_on(refresher.fetch(wanted, now())) {
            Ok(facts) => {
                lines.push(format!(
                    "{} TCB evaluation {}, valid until {}",
                    wanted.fmspc,
                    facts.tcb_evaluation_data_number,
                    date(facts.expires())
                ));
                list.push(json!({ "fmspc": wanted.fmspc, "expires": facts.expires(), "facts": facts }));
            }
            Err(error) => reasons.push(error.refusal()),
        }
    }
    Ok(Outcome::judged(lines, json!({ "fetched": list }), reasons))
}

fn status(keeper: &Keeper) -> anyhow::Result<Outcome> {
    let all = keeper.status(now())?;
    let lines = all.iter().map(line).collect();
    let reasons = all.iter().filter_map(|status| status.reason.clone()).collect();
    Ok(Outcome::judged(lines, json!({ "collateral": all }), reasons))
}

fn line(status: &Status) -> String {
    let mut line = format!("{}", status.fmspc);
    if let (Some(expires), Some(first)) = (status.expires, status.ends_first) {
        line += &format!(" valid until {} ({first} ends first)", date(expires));
    }
    if let Some(facts) = &status.facts {
        line += &format!(", TCB evaluation {}", facts.tcb_evaluation_data_number);
    }
    if let Some(early) = &status.early {
        line += &format!(
            "; evaluation {} is published and commonly in force from {}: platforms below its level of {} fall out then",
            early.tcb_evaluation_data_number,
            date(early.expected),
            date(early.newest_level)
        );
    }
    line
}

/// The collateral of a running service: files, and a directory that is renewed.
pub(super) struct Renewal {
    held: Arc<Held>,
    refresher: Option<Refresher>,
}

/// What a service was told to read, and what it read of it.
pub(super) struct Held {
    paths: Vec<PathBuf>,
    /// Locked from reading to being in force, so that nothing older comes after something newer.
    files: Mutex<Vec<Collateral>>,
    keeper: Option<Keeper>,
    gpu: GpuFileArgs,
    gpu_anchors: GpuAnchors,
}

impl Held {
    /// Gives the service what is kept, and the files as they were read last.
    fn use_kept(&self, service: &Service) {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        self.put_in_force(service, &files);
    }

    fn put_in_force(&self, service: &Service, files: &[Collateral]) {
        if let Some(known) = known(self.keeper.as_ref(), files.to_vec()) {
            service.set_collateral(known);
        }
    }

    /// Reads everything that is a file again. What can't be used stays as it was read before, each kind for itself.
    fn reload(&self, service: &Service) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let read = read_files(&self.paths);
        match &read {
            Ok(again) => files.clone_from(again),
            Err(error) => kept_as_it_was(service, "collateral_malformed", error),
        }
        self.put_in_force(service, &files);
        drop(files);
        let gpu = GpuFiles::read(&self.gpu);
        let whole = read.is_ok() && gpu.is_ok();
        match gpu {
            Ok(gpu) => service.set_gpu_files(gpu.under(self.gpu_anchors.clone())),
            Err(error) => kept_as_it_was(service, "gpu_files", &format!("{error:#}")),
        }
        service.forget_standing();
        if whole {
            tracing::info!(collateral = self.paths.len(), "files were read again");
            service.count(["reloaded"]);
        }
    }
}

fn kept_as_it_was(service: &Service, code: &'static str, error: &str) {
    tracing::error!(code, error, "files were not read again; what was read before stays");
    service.count([code]);
}

/// All of them, or the first that can't be used.
fn read_files(paths: &[PathBuf]) -> Result<Vec<Collateral>, String> {
    let read = |path: &PathBuf| {
        let bytes = input::read(path, MAX_COLLATERAL_LEN).map_err(|error| format!("{error:#}"))?;
        Collateral::from_json(&bytes).map_err(|error| format!("{}: {error}", path.display()))
    };
    paths.iter().map(read).collect()
}

/// Reads files again at each SIGHUP, for ever, also while a source is slow.
pub(super) async fn reload_at(mut hangup: Signal, held: Arc<Held>, service: Arc<Service>) {
    while hangup.recv().await.is_some() {
        let (held, service) = (Arc::clone(&held), Arc::clone(&service));
        // A panic inside is reported by the runtime; what was in force stays.
        let _ = tokio::task::spawn_blocking(move || held.reload(&service)).await;
    }
}

impl Renewal {
    pub(super) fn new(
        args: &ServeArgs,
        files: Vec<Collateral>,
        anchors: &TrustAnchors,
        gpu_anchors: &GpuAnchors,
    ) -> anyhow::Result<Self> {
        let keeper = args.collateral_dir.as_deref().map(|dir| open(dir, anchors)).transpose()?;
        let refresher = match (&keeper, &args.pccs) {
            (Some(keeper), Some(pccs)) => Some(refresher(keeper, pccs, &args.source)?),
            _ => None,
        };
        let (paths, gpu) = (args.collateral.clone(), args.gpu.clone());
        let held = Held { paths, files: Mutex::new(files), keeper, gpu, gpu_anchors: gpu_anchors.clone() };
        Ok(Self { held: Arc::new(held), refresher })
    }

    /// What SIGHUP reads again.
    pub(super) fn held(&self) -> Arc<Held> {
        Arc::clone(&self.held)
    }

    /// Fetches what is due, and gives the service what is kept.
    async fn step(&mut self, service: &Arc<Service>) {
        if let Some(refresher) = &mut self.refresher {
            for (fmspc, result) in refresher.refresh(now()).await {
                match result {
                    Ok(facts) => {
                        tracing::info!(%fmspc, number = facts.tcb_evaluation_data_number, expires = facts.expires(), "collateral renewed");
                        service.count(["collateral_renewed"]);
                    }
                    Err(error) => {
                        let code = error.refusal().code;
                        tracing::warn!(%fmspc, code, %error, "collateral was not renewed");
                        service.count([code.as_str()]);
                    }
                }
            }
        }
        self.use_kept(service).await;
    }

    /// Gives the service what is kept.
    async fn use_kept(&self, service: &Arc<Service>) {
        let (held, service) = (Arc::clone(&self.held), Arc::clone(service));
        if held.keeper.is_some() {
            // A panic inside is reported by the runtime; what was in force stays.
            let _ = tokio::task::spawn_blocking(move || held.use_kept(&service)).await;
        }
    }

    /// What is kept, and what a source gives that answers soon: one that does not keeps no service from starting.
    pub(super) async fn start(&mut self, service: &Arc<Service>) {
        self.use_kept(service).await;
        if tokio::time::timeout(START, self.step(service)).await.is_err() {
            tracing::warn!(code = "collateral_source", "the source is slow: guests are let in before it answered");
        }
    }

    /// [`Renewal::step`] every minute, for ever.
    pub(super) async fn run(mut self, service: Arc<Service>) {
        loop {
            tokio::time::sleep(EVERY).await;
            self.step(&service).await;
        }
    }
}

/// What is kept comes before files: it is renewed.
fn known(keeper: Option<&Keeper>, files: Vec<Collateral>) -> Option<KnownCollateral> {
    let Some(keeper) = keeper else { return Some(KnownCollateral { in_force: files, early: Vec::new() }) };
    let now = now();
    let kept = match keeper.load(now) {
        Ok(kept) => kept,
        Err(error) => {
            tracing::error!(code = "collateral_store", %error, "kept collateral can't be read; what was read before stays");
            return None;
        }
    };
    for (fmspc, error) in &kept.refused {
        tracing::warn!(%fmspc, code = error.refusal().code, %error, "kept collateral is not used");
    }
    let early = kept.usable.iter().filter_map(|loaded| keeper.early(loaded.fmspc, now).ok().flatten());
    let early = early.map(|loaded| loaded.collateral).collect();
    let in_force = kept.usable.into_iter().map(|loaded| loaded.collateral).chain(files).collect();
    Some(KnownCollateral { in_force, early })
}

fn open(dir: &Path, anchors: &TrustAnchors) -> anyhow::Result<Keeper> {
    Keeper::open(dir, anchors.clone()).with_context(|| format!("could not use {}", dir.display()))
}

fn refresher(keeper: &Keeper, pccs: &str, args: &SourceArgs) -> anyhow::Result<Refresher> {
    let authorities = || input::read(&args.pccs_ca, MAX_AUTHORITIES).map_err(std::io::Error::other);
    let source = Source::new(pccs, authorities).context("--pccs can't be used")?;
    Ok(Refresher::new(source, keeper.clone(), args.fmspc.clone())?)
}

/// A time for people.
fn date(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| seconds.to_string())
}

/// How often the directory is read, and looked through for what is due.
const EVERY: Duration = Duration::from_secs(60);
/// Longest wait for a source before guests are let in.
const START: Duration = Duration::from_secs(20);
const MAX_AUTHORITIES: usize = 4 << 20;
