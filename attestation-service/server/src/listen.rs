// SPDX-License-Identifier: Apache-2.0
//! Connections: TLS 1.3, limits, time-outs and the end of the service.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use attested_channel::{stream, tls};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::{
    http_api::{Shared, answer},
    identity::IdentityError,
    service::{Exporter, Service},
};

/// Why the listener did not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The TLS settings.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Serves connections of `listener` until `stop` completes; then open requests get [`GRACE`] to end.
///
/// # Errors
/// [`ListenError`] before the first connection.
pub async fn listen(
    service: Arc<Service>,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<(), ListenError> {
    let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(service.identity().resolver()?)?));
    let (notes, mut waiting) = mpsc::channel(NOTES);
    let shared = Shared { service: Arc::clone(&service), appraisals: Arc::new(Semaphore::new(APPRAISALS)), notes };
    let writer = Arc::clone(&service);
    let scribe = tokio::task::spawn_blocking(move || {
        while let Some(note) = waiting.blocking_recv() {
            writer.note_refusal(note);
        }
    });
    let summing = tokio::spawn(sum_up(Arc::clone(&service)));
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let slot = tokio::select! {
            () = &mut stop => break,
            Ok(slot) = Arc::clone(&slots).acquire_owned() => slot,
        };
        tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let connection = serve(shared.clone(), acceptor.clone(), stream, peer.ip(), stopped.clone());
                    let open = Open::count(Arc::clone(&service));
                    connections.spawn(async move {
                        let (_slot, _open) = (slot, open);
                        let _ = tokio::time::timeout(CONNECTION, connection).await;
                    });
                }
                Err(error) => {
                    // Out of descriptors, as a rule: others must end first.
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    service.gauges().stopping.store(true, Ordering::Relaxed);
    let _ = stopping.send(true);
    let _ = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
    connections.shutdown().await;
    drop(shared);
    // The last notes are written: the channel has no sender any more.
    let _ = scribe.await;
    summing.abort();
    let _ = tokio::task::spawn_blocking(move || service.sum_up_refusals()).await;
    Ok(())
}

/// A connection that is counted as long as it is open.
struct Open(Arc<Service>);

impl Open {
    fn count(service: Arc<Service>) -> Self {
        service.gauges().connections.fetch_add(1, Ordering::Relaxed);
        Self(service)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.gauges().connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Enters what was only counted in the audit log, every minute.
async fn sum_up(service: Arc<Service>) {
    loop {
        tokio::time::sleep(SUM_UP).await;
        let service = Arc::clone(&service);
        // A panic inside is reported by the runtime; the next turn tries again.
        let _ = tokio::task::spawn_blocking(move || service.sum_up_refusals()).await;
    }
}

async fn serve(
    shared: Shared,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    client: IpAddr,
    mut stopped: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(tls)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    let (stream, channel) = stream::share(TlsStream::Server(tls));
    let exporter: Arc<Exporter> = Arc::new(move |challenge| channel.binding(challenge));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(MAX_HEADERS)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request| answer(shared.clone(), Arc::clone(&exporter), client, request)),
        );
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopped.wait_for(|stopped| *stopped) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Connections at the same time; more wait in the kernel's queue.
const CONNECTIONS: usize = 1024;
/// Appraisals at the same time.
const APPRAISALS: usize = 16;
/// Refusals that wait for the audit log.
const NOTES: usize = 256;
const SUM_UP: Duration = Duration::from_secs(60);
const HANDSHAKE: Duration = Duration::from_secs(30);
/// The headers of one request, and idleness between two.
const HEADERS: Duration = Duration::from_secs(90);
const MAX_HEADERS: usize = 16 * 1024;
/// A connection as a whole: a boot needs minutes under emulation.
const CONNECTION: Duration = Duration::from_secs(600);
/// How long open requests may take when the service ends.
pub const GRACE: Duration = Duration::from_secs(10);
