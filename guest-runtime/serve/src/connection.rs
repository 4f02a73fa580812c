// SPDX-License-Identifier: Apache-2.0
//! The listener and the life of a connection.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use attested_channel::{stream::share, tls::is_full_handshake};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use types::{Document as _, Evidence, GuestConfig, ModelId, tenants::TenantsError};

use crate::{
    accounts::{Accounts, TenantsDocument},
    api::{Clock, Connection, State, handle},
    attester::{Attester, AttesterError},
    client_address,
    drain::{Drain, DrainLink},
    engine::{Engine, EngineError},
    identities::Identities,
    limits::Limits,
    receipts::Receipts,
    shares::{Place, Shares},
    stall::StallGuard,
};

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Options {
    /// The attester's serving socket.
    pub attester: PathBuf,
    /// The engine's socket.
    pub engine: PathBuf,
    /// Address of the API. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether each connection begins with a header of the PROXY protocol that says whose it is.
    pub proxy_protocol: bool,
    /// What one client can cost.
    pub limits: Limits,
    /// Who may ask the model; without it, whoever has proven the guest to himself.
    pub tenants: Option<TenantsDocument>,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The attester.
    #[error(transparent)]
    Attester(#[from] AttesterError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Evidence or configuration in the attester's identity are no documents.
    #[error("the attester's identity is malformed")]
    Identity,
    /// The document of tenants is malformed, or for another model.
    #[error("the document of tenants is refused: {0}")]
    Tenants(#[from] TenantsError),
    /// The TLS library refused its settings.
    #[error("the TLS settings were refused")]
    Tls(#[from] rustls::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The attester's connection ended.
    #[error(transparent)]
    Attester(AttesterError),
    /// The engine's connection ended.
    #[error(transparent)]
    Engine(EngineError),
}

/// A server that listens, but does not answer before [`Server::run`].
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    proxy_protocol: bool,
    state: Arc<State>,
    attester: Running<AttesterError>,
    engine: Running<EngineError>,
    host: Option<DrainLink>,
}

/// Runs a connection and ends with it.
type Running<E> = Pin<Box<dyn Future<Output = E> + Send>>;

impl Server {
    /// Connects to attester and engine, waits until the engine is ready, and listens. Needs a runtime with several
    /// threads, since handshakes are signed by the attester.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let Options { attester: attester_path, engine: engine_path, listen, proxy_protocol, limits, tenants } = options;
        let (attester, attester_run) = Attester::connect(&attester_path).await?;
        // The connection must be read while the identity is asked for.
        let mut attester_run: Running<AttesterError> = Box::pin(attester_run);
        let identity = tokio::select! {
            identity = attester.identity() => identity?,
            error = &mut attester_run => return Err(error.into()),
        };
        let clock = Clock::at(identity.unix);
        let model = model_of(identity.evidence.as_slice()).ok_or(StartError::Identity)?;
        let accounts = tenants.map(|document| Accounts::read(&document, &model)).transpose()?;
        let identities = Identities::new(attester.clone(), &attester_path, identity)?;
        let (engine, engine_run) = Engine::connect(&engine_path, &limits).await?;
        let listen_error = |source| StartError::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let state = Arc::new(State {
            attester,
            engine,
            identities,
            model,
            clock,
            receipts: Receipts::new(limits.receipts),
            accounts,
            signing: Arc::new(Semaphore::new(limits.receipts)),
            limits,
            drain: Drain::default(),
        });
        let (attester, engine) = (attester_run, Box::pin(engine_run));
        Ok(Self { listener, address, proxy_protocol, state, attester, engine, host: None })
    }

    /// Has it finish when the host says so over `link`.
    #[must_use]
    pub fn heeding(self, link: DrainLink) -> Self {
        Self { host: Some(link), ..self }
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until attester or engine are gone: without them there is nothing to say. When it was told to finish it
    /// goes on running, without connections: ending the guest is the host's part.
    pub async fn run(self) -> Ended {
        let Self { listener, proxy_protocol, state, attester, engine, host, .. } = self;
        let told = Arc::clone(&state);
        let heed = async {
            match host {
                Some(link) => link.listen(&told.drain).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = attester => Ended::Attester(error),
            error = engine => Ended::Engine(error),
            never = accept(listener, proxy_protocol, state) => match never {},
            never = told.identities.follow() => match never {},
            never = heed => match never {},
            never = forget_idle(&told) => match never {},
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({})", self.address)
    }
}

/// Has the engine forget what it keeps for tenants that ask nothing.
async fn forget_idle(state: &State) -> Infallible {
    let Some(accounts) = &state.accounts else { return std::future::pending().await };
    loop {
        tokio::time::sleep(state.limits.tenant_idle / 4).await;
        accounts.forget_idle(state.limits.tenant_idle);
    }
}

async fn accept(listener: TcpListener, proxy_protocol: bool, state: Arc<State>) -> Infallible {
    let seats = Shares::new(state.limits.connections);
    let nameless = proxy_protocol.then(|| Arc::new(Semaphore::new(state.limits.nameless)));
    let told = Arc::clone(&state);
    // Who was sent here a moment ago is still answered.
    let closes = async {
        told.drain.begun().await;
        tokio::time::sleep(told.limits.grace).await;
    };
    tokio::pin!(closes);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut closes => break,
            accepted = next(&listener, nameless.as_ref()) => accepted,
        };
        let Ok((stream, peer, place)) = accepted else {
            // Out of descriptors, most likely: give connections time to end.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let begun = Instant::now();
        if let Some(place) = place {
            tokio::spawn(named(stream, peer, Arc::clone(&state), Arc::clone(&seats), begun, place));
        } else if let Ok(seat) = seats.take(peer.ip(), 1) {
            tokio::spawn(serve(stream, peer.ip(), Arc::clone(&state), begun, seat));
        }
    }
    drop(listener);
    std::future::pending().await
}

/// The next connection. Where a proxy is to say whose it is, it has a place among those of which that is not known yet.
async fn next(
    listener: &TcpListener,
    nameless: Option<&Arc<Semaphore>>,
) -> io::Result<(TcpStream, SocketAddr, Option<OwnedSemaphorePermit>)> {
    let place = match nameless {
        // It is never closed.
        Some(places) => Some(Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?),
        None => None,
    };
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, place))
}

/// Serves a connection once it has said whose it is. One that says anything else, or nothing in time, is closed.
async fn named(
    mut stream: TcpStream,
    peer: SocketAddr,
    state: Arc<State>,
    seats: Arc<Shares>,
    begun: Instant,
    place: OwnedSemaphorePermit,
) {
    let deadline = begun.checked_add(state.limits.handshake).unwrap_or(begun);
    let Ok(Some(address)) = timeout_at(deadline, client_address::read(&mut stream, peer)).await else { return };
    let Ok(seat) = seats.take(address, 1) else { return };
    drop(place);
    serve(stream, address, state, begun, seat).await;
}

/// Whatever ends a connection is between the two ends of it: nothing is reported.
async fn serve(stream: TcpStream, address: IpAddr, state: Arc<State>, begun: Instant, _seat: Place) {
    let _ = stream.set_nodelay(true);
    let limits = state.limits;
    let shown = state.identities.newest();
    let deadline = begun.checked_add(limits.handshake).unwrap_or(begun);
    let Ok(Ok(stream)) = timeout_at(deadline, shown.tls.accept(stream)).await else { return };
    if !is_full_handshake(stream.get_ref().1.handshake_kind()) {
        return;
    }
    let (stream, channel) = share(stream.into());
    let mut tenant = [0; 32];
    if getrandom::fill(&mut tenant).is_err() {
        return;
    }
    let lease = state.engine.tenant(tenant, address.into());
    let connection = Arc::new(Connection::new(channel, lease, shown));
    let stream = StallGuard::new(stream, limits.stall, connection.is_answering());
    let service = service_fn(|request| handle(Arc::clone(&state), Arc::clone(&connection), request));
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(http);
    tokio::select! {
        biased;
        _ = http.as_mut() => return,
        () = may_close(&state, &connection) => {}
    }
    // A request that has come is read: whether there is one is known when the system was asked once more.
    tokio::select! {
        biased;
        _ = http.as_mut() => return,
        () = tokio::time::sleep(LAST_LOOK) => {}
    }
    // At once if nothing runs on it, after the answer otherwise.
    http.as_mut().graceful_shutdown();
    let _ = http.await;
}

/// Ends when the key that the connection began with will soon be gone, or when the guest shall finish and the connection has
/// got an answer, or had time to ask for one: who has just proven the guest to himself is not sent away with nothing.
async fn may_close(state: &State, connection: &Connection) {
    let drained = async {
        state.drain.begun().await;
        let _ = tokio::time::timeout(state.limits.grace, connection.asked()).await;
    };
    tokio::select! {
        () = drained => {}
        () = connection.shown.ends.begun() => {}
    }
}

fn model_of(evidence: &[u8]) -> Option<ModelId> {
    let evidence = Evidence::from_canonical(evidence).ok()?;
    let config = GuestConfig::parse(evidence.guest_config.as_slice()).ok()?;
    Some(config.model.0)
}

/// The runtime asks the system for data and looks at its clock at the same time.
const LAST_LOOK: Duration = Duration::from_millis(2);
/// Most bytes of a request's head, and of what is read ahead of a body.
const MAX_HEAD: usize = 64 << 10;
