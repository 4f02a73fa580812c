// SPDX-License-Identifier: Apache-2.0
//! The local endpoint: plain HTTP on loopback, one pool of attested connections behind it.

mod forward;
mod pool;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{connection::AttestedConnection, upstream::Upstream, verifier::Verifier};
use pool::Pool;

/// A proxy that listens, but does not answer before [`Proxy::run`].
#[derive(Debug)]
pub(crate) struct Proxy {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// What all local connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pool: Pool,
    /// How long the guest may take until an answer begins.
    patience: Duration,
}

/// A running proxy.
#[derive(Debug)]
pub(crate) struct Handle(Arc<Shared>);

impl Handle {
    /// Judges the guest by another policy from now on. Requests that were sent get their answers; the next one goes over a
    /// connection that the new policy accepted.
    pub(crate) fn judge_by(&self, verifier: Arc<Verifier>) {
        self.0.pool.judge_by(verifier);
    }
}

/// The address can't be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}; choose a free port with --listen")]
pub(crate) struct BindError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

impl Proxy {
    /// Listens. `first` is the connection that was verified at start.
    pub(crate) async fn bind(
        listen: SocketAddr,
        upstream: Upstream,
        verifier: Arc<Verifier>,
        first: AttestedConnection,
        patience: Duration,
    ) -> Result<Self, BindError> {
        let error = |source| BindError { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(error)?;
        let address = listener.local_addr().map_err(error)?;
        let shared = Arc::new(Shared { pool: Pool::new(upstream, verifier, first), patience });
        Ok(Self { listener, address, shared })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What is asked of it while it runs.
    pub(crate) fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Answers until `stop`.
    pub(crate) async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listener, shared, .. } = self;
        tokio::select! {
            () = stop => {}
            () = accept(listener, shared) => {}
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let seats = Arc::new(Semaphore::new(MAX_LOCAL));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else { continue };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let service = service_fn(|request| forward::handle(Arc::clone(&shared), request));
            // The local client sees how it ends.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(seat);
        });
    }
}

const MAX_LOCAL: usize = 256;
const MAX_HEAD: usize = 64 << 10;
