// SPDX-License-Identifier: Apache-2.0
//! `collateral fetch` and `collateral status`, and the renewal beside `serve`.

use std::{
    cmp::Reverse,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use collateral::{Fmspc, Keeper, Refresher, Source, Status};
use gpu_verify::GpuAnchors;
use serde_json::json;
use tdx_verify::{Collateral, CollateralFacts, MAX_COLLATERAL_LEN, TrustAnchors};
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
    known: Mutex<Known>,
    keeper: Option<Keeper>,
    anchors: TrustAnchors,
    gpu: GpuFileArgs,
    gpu_anchors: GpuAnchors,
}

/// What was read last.
#[derive(Debug, Default)]
struct Known {
    files: Vec<Collateral>,
    /// Of the directory: used on where what stands there can't be used any more, each until its own end.
    kept: Vec<Collateral>,
}

impl Held {
    /// Gives the service what is kept, and the files as they were read last.
    fn use_kept(&self, service: &Service) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        service.set_collateral(known.with(self.keeper.as_ref(), &self.anchors, now()));
    }

    /// Reads everything that is a file again. What can't be used stays as it was read before, each kind for itself.
    fn reload(&self, service: &Service) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let read = read_files(&self.paths);
        match &read {
            Ok(again) => known.files.clone_from(again),
            Err(error) => kept_as_it_was(service, "collateral_malformed", error),
        }
        service.set_collateral(known.with(self.keeper.as_ref(), &self.anchors, now()));
        drop(known);
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
        let known = Mutex::new(Known { files, kept: Vec::new() });
        let held = Held { paths, known, keeper, anchors: anchors.clone(), gpu, gpu_anchors: gpu_anchors.clone() };
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
            // What it gave until then.
            self.use_kept(service).await;
        }
    }

    /// Fetches what is due, and reads the directory, every minute, for ever. A source that takes long to answer keeps
    /// nothing out of force that is in the directory already.
    pub(super) async fn run(mut self, service: Arc<Service>) {
        let reading = Self { held: self.held(), refresher: None };
        let read = async {
            loop {
                tokio::time::sleep(EVERY).await;
                reading.use_kept(&service).await;
            }
        };
        let fetch = async {
            loop {
                tokio::time::sleep(EVERY).await;
                self.step(&service).await;
            }
        };
        tokio::join!(read, fetch);
    }
}

impl Known {
    /// The first one for a platform judges it. A file counts where it is of the same authority as what is kept, and
    /// not older than what ever was: then it is what somebody put there to be used, and comes first. One that is not valid now comes last.
    fn with(&mut self, keeper: Option<&Keeper>, anchors: &TrustAnchors, now: u64) -> KnownCollateral {
        let Some(keeper) = keeper else { return KnownCollateral { in_force: self.files.clone(), early: Vec::new() } };
        let mut early = Vec::new();
        match keeper.load(now) {
            Ok(read) => {
                for (fmspc, error) in &read.refused {
                    tracing::warn!(%fmspc, code = error.refusal().code, %error, "kept collateral is not used as it stands there");
                }
                let refused: Vec<_> = read.refused.iter().map(|(fmspc, _)| *fmspc).collect();
                self.kept.retain(|kept| refused.contains(&Fmspc::from_bytes(*kept.fmspc())));
                let ahead = read.usable.iter().filter_map(|loaded| keeper.early(loaded.fmspc, now).ok().flatten());
                early.extend(ahead.map(|loaded| loaded.collateral));
                self.kept.extend(read.usable.into_iter().map(|loaded| loaded.collateral));
            }
            Err(error) => {
                tracing::error!(code = "collateral_store", %error, "kept collateral can't be read; what was read before stays");
            }
        }
        let (mut valid, mut invalid) = (Vec::new(), Vec::new());
        for file in &self.files {
            match (keeper.admits(file, now), file.check(anchors, now)) {
                (Ok(()), Ok(facts)) => valid.push((Reverse(issued(&facts)), file)),
                (Ok(()), Err(_)) => invalid.push(file),
                (Err(error), _) => {
                    let fmspc = hex::encode(file.fmspc());
                    tracing::warn!(fmspc, code = error.refusal().code, %error, "a collateral file is not used beside what is kept");
                }
            }
        }
        // The newest first; files of one age stay in the order in which they were named.
        valid.sort_by_key(|(age, _)| *age);
        let valid = valid.into_iter().map(|(_, file)| file);
        KnownCollateral { in_force: valid.chain(&self.kept).chain(invalid).cloned().collect(), early }
    }
}

/// How new collateral is: by what can take a platform's trust away first.
const fn issued(facts: &CollateralFacts) -> [u64; 6] {
    [
        facts.tcb_evaluation_data_number as u64,
        facts.tcb_info.issued,
        facts.pck_crl.issued,
        facts.root_ca_crl.issued,
        facts.qe_evaluation_data_number as u64,
        facts.qe_identity.issued,
    ]
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use collateral::{PckCa, Wanted};
    use tdx_sim::SimulatedPlatform;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const DAY: u64 = 86_400;

    /// What can't be read stays in force as it was; no file that is older takes its place.
    #[test]
    fn unreadable_kept_collateral_gives_way_to_nothing_older() {
        let platform = SimulatedPlatform::generate(NOW).unwrap();
        let made = |at| platform.collateral(at, None).unwrap().to_json();
        let read = |text: &String| Collateral::from_json(text.as_bytes()).unwrap();
        let (older, newer) = (made(NOW - DAY), made(NOW));
        let directory = tempfile::tempdir().unwrap();
        let keeper = Keeper::open(directory.path(), TrustAnchors::custom(platform.root_der().to_vec())).unwrap();
        let wanted = Wanted { fmspc: Fmspc::from_bytes(*read(&newer).fmspc()), ca: PckCa::Platform };
        let anchors = TrustAnchors::custom(platform.root_der().to_vec());
        let ends = |known: &KnownCollateral| -> BTreeSet<u64> {
            known.in_force.iter().map(|held| held.check(&anchors, NOW).unwrap().tcb_info.issued).collect()
        };
        let mut known = Known { files: vec![read(&older)], kept: Vec::new() };
        let with_file = ends(&known.with(Some(&keeper), &anchors, NOW));
        assert_eq!(with_file.len(), 1, "nothing was kept yet: the file counts");
        keeper.keep(&wanted, newer.as_bytes(), None, NOW).unwrap();
        let kept = ends(&known.with(Some(&keeper), &anchors, NOW));
        assert!(kept.len() == 1 && kept > with_file, "{kept:?} {with_file:?}");
        // A record that is damaged, then the collateral itself.
        let path = |ending: &str| directory.path().join(format!("{}{ending}", wanted.fmspc));
        let good = std::fs::read(path(".kept.json")).unwrap();
        std::fs::write(path(".kept.json"), b"damaged").unwrap();
        assert_eq!(ends(&known.with(Some(&keeper), &anchors, NOW)), kept);
        // Who starts with that has nothing rather than something older.
        let mut fresh = Known { files: vec![read(&older)], kept: Vec::new() };
        assert_eq!(ends(&fresh.with(Some(&keeper), &anchors, NOW)), BTreeSet::new());
        std::fs::write(path(".kept.json"), good).unwrap();
        for replaced in ["damaged", &older] {
            std::fs::write(path(".json"), replaced).unwrap();
            assert_eq!(ends(&known.with(Some(&keeper), &anchors, NOW)), kept);
            assert_eq!(ends(&fresh.with(Some(&keeper), &anchors, NOW)), BTreeSet::new());
        }
        // What was taken away is gone.
        std::fs::remove_file(path(".json")).unwrap();
        assert_eq!(ends(&known.with(Some(&keeper), &anchors, NOW)), BTreeSet::new());
    }

    /// The first for a platform judges it: a file that somebody gave is used where it is newer than what is kept, or where
    /// that has ended; the newest of several.
    #[test]
    fn the_newest_that_is_valid_judges() {
        let platform = SimulatedPlatform::generate(NOW).unwrap();
        let made = |at| platform.collateral(at, None).unwrap().to_json();
        let read = |text: &String| Collateral::from_json(text.as_bytes()).unwrap();
        let anchors = TrustAnchors::custom(platform.root_der().to_vec());
        let directory = tempfile::tempdir().unwrap();
        let keeper = Keeper::open(directory.path(), anchors.clone()).unwrap();
        let [first, second, third] = [NOW - 2 * DAY, NOW - DAY, NOW].map(made);
        let wanted = Wanted { fmspc: Fmspc::from_bytes(*read(&first).fmspc()), ca: PckCa::Platform };
        keeper.keep(&wanted, second.as_bytes(), None, NOW).unwrap();
        let judges = |files: &[&String], at| {
            let mut known = Known { files: files.iter().map(|text| read(text)).collect(), kept: Vec::new() };
            // A service that ran before that time.
            let _ = known.with(Some(&keeper), &anchors, NOW);
            let all = known.with(Some(&keeper), &anchors, at).in_force;
            all.first().map(|first| *first.digest())
        };
        let digest = |text: &String| Some(*read(text).digest());
        assert_eq!(judges(&[], NOW), digest(&second));
        assert_eq!(judges(&[&first], NOW), digest(&second), "an older file");
        assert_eq!(judges(&[&third], NOW), digest(&third), "a newer one");
        assert_eq!(judges(&[&second, &third], NOW), digest(&third), "the newest, wherever it stands");
        let other_ca = platform.collateral_of_processor_ca(NOW).unwrap().to_json();
        read(&other_ca).check(&anchors, NOW).unwrap();
        assert_eq!(judges(&[&other_ca], NOW), digest(&second), "a newer one that judges none of these platforms");
        assert_eq!(judges(&[&other_ca, &third], NOW), digest(&third), "nor does it hide one that does");
        // What is kept has ended and nobody renews it: a file that has not is used, one that has as well is not.
        let [ended, valid] = [60, 50].map(|days| NOW + days * DAY).map(|at| (at, made(at)));
        assert_eq!(judges(&[&valid.1], ended.0), digest(&valid.1));
        assert_eq!(judges(&[&third], ended.0), digest(&second), "neither is valid: what is kept is what is named");
    }
}
