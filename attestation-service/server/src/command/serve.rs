// SPDX-License-Identifier: Apache-2.0
//! `serve`: the running service.

use std::{
    io::{ErrorKind, Write as _},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use gpu_verify::GpuAnchors;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tdx_verify::{Collateral, MAX_COLLATERAL_LEN, TrustAnchors};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::timeout,
};
use types::Refusal;

use super::{
    audit::open_known,
    collateral::{Renewal, reload_at},
    now,
};
use crate::{
    cli::ServeArgs,
    gpu_files::GpuFiles,
    input,
    limits::Limits,
    listen::listen,
    memory, metrics,
    outcome::Outcome,
    service::{Service, policy},
};

/// Raises the limit of open files as far as it may be, and says how many connections fit in it.
fn make_room(connections: u32) -> anyhow::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = u64::from(connections).saturating_add(FILES_BESIDE);
    if current.is_some_and(|current| current < needed) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(maximum.unwrap_or(needed).min(needed)), maximum });
    }
    match getrlimit(Resource::Nofile).current {
        Some(current) if current < needed => bail!(
            "{connections} connections need {needed} open files, and the limit is {current}: raise it (LimitNOFILE= in a unit, ulimit -Hn in a shell), or give --connections {}",
            current.saturating_sub(FILES_BESIDE).max(1)
        ),
        _ => Ok(()),
    }
}

pub(super) fn serve(args: &ServeArgs, anchors: &TrustAnchors, gpu: &GpuAnchors) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // First of all: one that came while the store is opened would end the program.
    let hangup = runtime.block_on(async { signal(SignalKind::hangup()) })?;
    make_room(args.connections)?;
    let mut collateral = Vec::new();
    for path in &args.collateral {
        let bytes = input::read(path, MAX_COLLATERAL_LEN)?;
        match Collateral::from_json(&bytes) {
            Ok(read) => collateral.push(read),
            Err(error) => return Ok(malformed_collateral(path, &error)),
        }
    }
    let store = match open_known(&args.store, true, args.checkpoint.as_deref())? {
        Ok(store) => store,
        Err(refused) => return Ok(refused),
    };
    if args.pccs.is_some() && policy(&store)??.platform.min_tcb_evaluation_data_number == 0 {
        tracing::warn!(
            code = "tcb_evaluation_unbounded",
            "the source of collateral can choose an older TCB evaluation that Intel still signs: set platform.min_tcb_evaluation_data_number in the policy"
        );
    }
    let renewal = Renewal::new(args, collateral.clone(), anchors, gpu)?;
    let ServeArgs { client_rate, model_rate, open_challenges, connections, client_connections, .. } = *args;
    let limits =
        Limits { client_rate, model_rate, open_challenges, connections, client_connections, ..Limits::default() };
    let mut service = Service::new(store, anchors.clone(), collateral, Arc::new(now))?.with_limits(limits);
    if let Some(name) = &args.replica {
        service.name_replica(name)?;
    }
    let service = Arc::new(service.with_gpu_files(GpuFiles::read(&args.gpu)?.under(gpu.clone())));
    runtime.block_on(run(args, anchors, Arc::clone(&service), renewal, hangup))?;
    Ok(Outcome::accepted(vec!["stopped".to_owned()], json!({ "counters": service.counters() })))
}

async fn run(
    args: &ServeArgs,
    anchors: &TrustAnchors,
    service: Arc<Service>,
    mut renewal: Renewal,
    hangup: Signal,
) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // Over its file-size limit a write fails, as on a full disk: the request is refused, the service goes on.
    let _file_size = signal(SignalKind::from_raw(SIGXFSZ))?;
    let reloading = tokio::spawn(reload_at(hangup, renewal.held(), Arc::clone(&service)));
    renewal.start(&service).await;
    let listener = bind(args.listen).await?;
    let address = listener.local_addr()?;
    let measuring = match args.metrics {
        Some(address) => {
            let listener = bind(address).await?;
            eprintln!("metrics on {}", listener.local_addr()?);
            Some(tokio::spawn(metrics::serve(Arc::clone(&service), listener)))
        }
        None => None,
    };
    eprintln!("listening on {address}");
    tracing::info!(%address, pin = %service.identity().spki_sha256(), hardware = %anchors.hardware(), "listening");
    if let Some(path) = &args.ready_file {
        write_whole(path, address.to_string().as_bytes())?;
    }
    let stop = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping");
    };
    let pruned = Arc::clone(&service);
    let pruning = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(PRUNE_EVERY);
        loop {
            ticks.tick().await;
            let pruned = Arc::clone(&pruned);
            // A panic inside is reported by the runtime; the next tick tries again.
            let _ = tokio::task::spawn_blocking(move || pruned.prune()).await;
        }
    });
    let tidying = tokio::spawn(tidy(Arc::clone(&service)));
    let (end_beats, beats_end) = oneshot::channel();
    let beating = tokio::spawn(beat(Arc::clone(&service), beats_end));
    let renewing = tokio::spawn(renewal.run(Arc::clone(&service)));
    let ended = listen(Arc::clone(&service), listener, stop).await;
    // A beat that is under way would undo the leaving.
    drop(end_beats);
    let _ = timeout(LAST_BEAT, beating).await;
    // Whatever it made is void from here.
    let _ = tokio::task::spawn_blocking(move || service.leave()).await;
    reloading.abort();
    renewing.abort();
    if let Some(measuring) = measuring {
        measuring.abort();
    }
    pruning.abort();
    tidying.abort();
    Ok(ended?)
}

/// Gives freed memory back to the system while there is something to do, and once more when that ended.
async fn tidy(service: Arc<Service>) {
    let mut ticks = tokio::time::interval(TIDY_EVERY);
    let (mut done, mut again) = (service.gauges().done(), false);
    loop {
        ticks.tick().await;
        let now = service.gauges().done();
        if now != done || again {
            // A panic inside is reported by the runtime; the next tick tries again.
            let _ = tokio::task::spawn_blocking(memory::give_back_freed).await;
        }
        again = now != done;
        done = now;
    }
}

/// Tells other replicas that this one runs.
async fn beat(service: Arc<Service>, mut end: oneshot::Receiver<()>) {
    let mut ticks = tokio::time::interval(BEAT_EVERY);
    loop {
        tokio::select! {
            _ = &mut end => return,
            _ = ticks.tick() => {}
        }
        let service = Arc::clone(&service);
        // A panic inside is reported by the runtime; the next tick tries again.
        let _ = tokio::task::spawn_blocking(move || service.beat()).await;
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!(
                "{address} is in use: end the program that listens there, or give --listen another port (0 for a free one)"
            )
        }
        Err(error) => Err(error).with_context(|| format!("could not listen on {address}")),
    }
}

/// Open files beside connections: the store's, the log's, the listeners', those of collateral that is fetched.
const FILES_BESIDE: u64 = 128;
const SIGXFSZ: i32 = 25;
/// A third of the time after which it would count as stopped.
const BEAT_EVERY: Duration = Duration::from_secs(4);
/// How long the last one may take.
const LAST_BEAT: Duration = Duration::from_secs(5);
/// How often memory is given back.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// How often expired challenges are forgotten.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// Writes a small file so that no reader sees a part of it.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file =
        tempfile::NamedTempFile::new_in(dir).with_context(|| format!("could not write {}", path.display()))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).with_context(|| format!("could not write {}", path.display()))?;
    Ok(())
}

pub(super) fn malformed_collateral(path: &Path, error: &tdx_verify::CollateralError) -> Outcome {
    let field = path.display().to_string();
    Outcome::refused(vec![Refusal::new(
        "collateral_malformed",
        &field,
        error.to_string(),
        "fetch the collateral again from its source",
    )])
}
