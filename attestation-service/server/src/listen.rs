// SPDX-License-Identifier: Apache-2.0
//! Connections: TLS 1.3, limits, time-outs and the end of the service.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use attested_channel::{stream, tls};
use hyper::{
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::{
    activity::{Activity, Patience},
    http_api::{Shared, answer},
    identity::IdentityError,
    limits::Limits,
    service::{Exporter, Service},
    shares::Shares,
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
    let mut config = tls::server_config(service.identity().resolver()?)?;
    config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (notes, mut waiting) = mpsc::channel(NOTES);
    let limits = service.limits();
    let shared = Shared {
        service: Arc::clone(&service),
        appraisals: Arc::new(Semaphore::new(APPRAISALS)),
        reads: Arc::new(Semaphore::new(READS)),
        commands: Arc::new(Semaphore::new(COMMANDS)),
        bodies: memory(BODIES, &limits),
        answers: memory(ANSWERS, &limits),
        notes,
    };
    let writer = Arc::clone(&service);
    let scribe = tokio::task::spawn_blocking(move || {
        while let Some(note) = waiting.blocking_recv() {
            writer.note_refusal(note);
        }
    });
    let summing = tokio::spawn(sum_up(Arc::clone(&service)));
    let most = usize::try_from(limits.connections).unwrap_or(1);
    let slots = Arc::new(Semaphore::new(most));
    let windows = Windows::sharing(most);
    let open = Shares::new(most, usize::try_from(limits.client_connections).unwrap_or(most), 1);
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
                    let Some(share) = open.take(peer.ip(), 1) else {
                        // Closed at once: who is refused here could not be told why before a handshake.
                        service.count(["client_connections"]);
                        continue;
                    };
                    let times = Times { open: Arc::clone(&open), limits };
                    let (shared, acceptor) = (shared.clone(), acceptor.clone());
                    let connection = serve(shared, acceptor, stream, peer.ip(), windows, times, stopped.clone());
                    let counted = Open::count(Arc::clone(&service));
                    // Boxed: what a future captures and then awaits stands in it twice.
                    let connection = Box::pin(tokio::time::timeout(CONNECTION, connection));
                    connections.spawn(async move {
                        let _held = (slot, share, counted);
                        let _ = connection.await;
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

/// Memory of which a client gets a part as its connections are one: the same client may be many guests' host.
fn memory(bytes: usize, limits: &Limits) -> Arc<Shares> {
    let parts = (limits.connections / 2 / limits.client_connections.max(1)).clamp(1, MOST_PARTS);
    let most = bytes / usize::try_from(parts).unwrap_or(1);
    Shares::new(bytes, most, FIRST_BYTES)
}

/// How long a connection may do nothing: less where places are scarce.
struct Times {
    open: Arc<Shares>,
    limits: Limits,
}

impl Times {
    fn scarce(&self) -> bool {
        self.open.free() < self.open.total() / 4
    }

    fn handshake(&self) -> Duration {
        if self.scarce() { self.limits.handshake.min(SCARCE_HANDSHAKE) } else { self.limits.handshake }
    }

    fn patience(&self) -> Patience {
        let idle = if self.scarce() { SCARCE_IDLE } else { HEADERS };
        Patience { silent: self.handshake(), idle, sending: self.limits.sending }
    }
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
    windows: Windows,
    times: Times,
    mut stopped: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(tls)) = tokio::time::timeout(times.handshake(), acceptor.accept(stream)).await else { return };
    let activity = Activity::begin(Instant::now());
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let second = tls.get_ref().1.alpn_protocol() == Some(H2);
    let (stream, channel) = stream::share(TlsStream::Server(tls));
    // One for the connection: each stream of HTTP/2 is bound to the TLS connection that carries it.
    let exporter: Arc<Exporter> = Arc::new(move |challenge| channel.binding(challenge));
    let doing = activity.clone();
    let answering =
        service_fn(move |request| answer(shared.clone(), Arc::clone(&exporter), client, doing.clone(), request));
    let stream = TokioIo::new(stream);
    // Both builders give another type, which is polled, asked to end and polled again.
    macro_rules! run {
        ($connection:expr) => {{
            let connection = $connection;
            tokio::pin!(connection);
            let mut ending = false;
            loop {
                tokio::select! {
                    _ = connection.as_mut() => return,
                    _ = stopped.wait_for(|stopped| *stopped), if !ending => {
                        connection.as_mut().graceful_shutdown();
                        ending = true;
                    }
                    _ = looks.tick() => {
                        if activity.is_over(&times.patience(), Instant::now()) {
                            return;
                        }
                    }
                }
            }
        }};
    }
    if second {
        run!(http2_builder(windows).serve_connection(stream, answering));
    } else {
        run!(http1_builder().serve_connection(stream, answering));
    }
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(MAX_HEADERS);
    builder
}

/// HTTP/2 with everything bounded that a peer can make grow. A connection that resets streams faster than they are
/// taken up (CVE-2023-44487), or whose frames make resets necessary, ends.
fn http2_builder(windows: Windows) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(Streams::default());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_frame_size(FRAME)
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
    builder
}

/// Bytes that a peer of HTTP/2 may send ahead.
#[derive(Debug, Clone, Copy)]
struct Windows {
    stream: u32,
    connection: u32,
}

impl Windows {
    /// What one of so many connections may.
    fn sharing(connections: usize) -> Self {
        let share = ALL_WINDOWS.checked_div(connections).and_then(|share| u32::try_from(share).ok());
        let connection = share.unwrap_or(LARGEST_WINDOW).clamp(SMALLEST_WINDOW, LARGEST_WINDOW);
        Self { stream: connection.min(STREAM_WINDOW), connection }
    }
}

/// The requests of one connection of HTTP/2: they end with it, as those of HTTP/1.1 do.
#[derive(Clone, Default)]
struct Streams(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while streams.try_join_next().is_some() {}
        streams.spawn(stream);
    }
}

/// Appraisals at the same time.
const APPRAISALS: usize = 16;
/// Reads of the store for the public at the same time.
const READS: usize = 16;
/// Commands of owners at the same time.
const COMMANDS: usize = 4;
/// Bytes of requests' bodies that are in memory at the same time.
const BODIES: usize = 128 << 20;
/// Bytes of large answers that are in memory until their peers have taken them.
const ANSWERS: usize = 128 << 20;
/// Bytes that a client gets in any case, while there are any.
const FIRST_BYTES: usize = 64 * 1024;
/// A client's part of the memory is never smaller: the largest request fits into it.
const MOST_PARTS: u32 = 32;
/// ALPN's name of HTTP/2.
const H2: &[u8] = b"h2";
/// Requests at the same time on one connection of HTTP/2.
const STREAMS: u32 = 16;
/// Streams that were reset before anything was done about them.
const RESETS: usize = 20;
const MAX_HEADER_LIST: u32 = 16 * 1024;
const FRAME: u32 = 16 * 1024;
/// Most bytes that a peer of HTTP/2 may send ahead on one stream.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes that all peers together may send ahead, and what one may at least and at most.
const ALL_WINDOWS: usize = 256 << 20;
const SMALLEST_WINDOW: u32 = 64 * 1024;
const LARGEST_WINDOW: u32 = 1024 * 1024;
const SEND_BUFFER: usize = 256 * 1024;
/// How often, and for how long, an idle peer of HTTP/2 is asked whether it is there.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);
/// Refusals that wait for the audit log.
const NOTES: usize = 256;
const SUM_UP: Duration = Duration::from_secs(60);
/// A handshake, and from there to the first request, where less than a quarter of the places is free.
const SCARCE_HANDSHAKE: Duration = Duration::from_secs(5);
/// How often a connection is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The headers of one request, and idleness between two.
const HEADERS: Duration = Duration::from_secs(90);
/// The latter, where less than a quarter of the places is free.
const SCARCE_IDLE: Duration = Duration::from_secs(30);
/// The least that the library takes. Each connection of HTTP/1.1 has a buffer of this size, and fills it with what comes.
const MAX_HEADERS: usize = 8 * 1024;
/// A connection as a whole: a boot needs minutes under emulation.
const CONNECTION: Duration = Duration::from_secs(600);
/// How long open requests may take when the service ends.
pub const GRACE: Duration = Duration::from_secs(10);
