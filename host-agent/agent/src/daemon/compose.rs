// SPDX-License-Identifier: Apache-2.0
//! Composing a generation: its release copied, its model fetched, its run directory written.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use model_cache::{Cache, FetchProgress, Limits, Request};
use types::Refusal;

use super::declare::Plan;
use super::memory::Memory;
use super::release;
use crate::prepare;
use crate::record::LaunchRecord;

/// How far the model of a generation is.
pub(crate) type Fetching = Arc<Mutex<Option<FetchProgress>>>;

/// Where, and with what, a generation is composed.
#[derive(Debug, Clone)]
pub(crate) struct Workshop {
    pub(crate) run_dir: PathBuf,
    pub(crate) releases: PathBuf,
    pub(crate) cache: Cache,
    pub(crate) cid: u32,
    pub(crate) memory: Memory,
    pub(crate) fetching: Fetching,
}

/// Composes a generation in its run directory.
pub(crate) async fn compose(plan: Arc<Plan>, workshop: Workshop) -> Result<(), Vec<Refusal>> {
    let (checked, releases) = (Arc::clone(&plan.release), workshop.releases.clone());
    let image = blocking(move || checked.stage(&releases)).await?;
    let request = Request {
        root: &plan.run.pack,
        identity: Some(&plan.identity),
        sources: &plan.sources,
        limits: Limits::default(),
    };
    let note = |progress| {
        *workshop.fetching.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress);
    };
    let fetched = workshop.cache.fetch(&request, &note).await;
    *workshop.fetching.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let held = fetched.map_err(|error| error.refusals())?;
    // The pack is held until the run directory, through which it is found, is written.
    blocking(move || write_run_dir(&plan, &workshop, image, held.disk())).await
}

fn write_run_dir(plan: &Plan, workshop: &Workshop, image: PathBuf, disk: &Path) -> Result<(), Vec<Refusal>> {
    workshop.memory.check(plan.arguments.memory_mib)?;
    let mut arguments = plan.arguments.clone();
    arguments.run_dir.clone_from(&workshop.run_dir);
    arguments.image = image;
    arguments.model_disk = Some(disk.to_owned());
    arguments.cid = workshop.cid;
    let failed = |error: anyhow::Error| {
        let full = error.chain().any(|cause| {
            let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            matches!(kind, Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
        });
        let code = if full { "disk_full" } else { "not_composed" };
        let fix =
            if full { "make room below agent.state_dir" } else { "correct what is named, then `host-agent restart`" };
        vec![Refusal::new(code, "guests", format!("{error:#}"), fix)]
    };
    // The guest's directory, then the generation's: nobody but root makes directories in them.
    if let Some(guest) = workshop.run_dir.parent() {
        plan.account.directory(guest).map_err(failed)?;
    }
    plan.account.directory(&workshop.run_dir).map_err(failed)?;
    plan.run.store(&workshop.run_dir).map_err(failed)?;
    let record = prepare::run(&arguments).map_err(failed)?;
    check_shape(&record, &plan.run, &workshop.releases)
}

/// Whether the release says what this machine measures.
pub(crate) fn check_shape(
    record: &LaunchRecord,
    run: &super::paths::RunPlan,
    releases: &Path,
) -> Result<(), Vec<Refusal>> {
    let verified = release::verify_staged(&release::staged(releases, &run.release), super::now_unix())?;
    if run.unpublished_shape {
        return Ok(());
    }
    verified.registers_for(&record.shape).map(drop).map_err(|error| {
        let fix = format!("{}; or set unpublished_shape if your clients accept such guests", error.fix());
        vec![Refusal::new("shape_not_published", "guests", error.to_string(), fix)]
    })
}

/// The lowest context identifier that nobody has.
pub(crate) fn free_cid(taken: &BTreeSet<u32>) -> u32 {
    (FIRST_CID..u32::MAX).find(|cid| !taken.contains(cid)).unwrap_or(FIRST_CID)
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Vec<Refusal>> + Send + 'static,
) -> Result<T, Vec<Refusal>> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(vec![agent_failed(&error)]))
}

/// Work of the agent's own that ended without a result.
pub(crate) fn agent_failed(error: &tokio::task::JoinError) -> Refusal {
    Refusal::new("agent_failed", "agent", error.to_string(), "show it to the publisher of the agent")
}

/// 0 to 2 are reserved (vsock(7)).
const FIRST_CID: u32 = 3;
