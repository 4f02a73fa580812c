// SPDX-License-Identifier: Apache-2.0
//! The attestation service: reached by vsock through the host, which may drop and delay bytes, not read or change them.

use std::time::Duration;

use release_client::{
    ClientError, Released, Retries, ServiceConnection,
    key_release_protocol::{ReleaseKeyPair, UnwrapErr},
};
use tokio::{
    net::UnixStream,
    runtime::Runtime,
    time::{sleep, timeout},
};
use types::{GuestConfig, Hex32, ModelId, Sha256Digest, evidence::AttestedTime};

use crate::boot::Failure;
use crate::boot::{Code, Fails as _};

/// A connection whose other end holds the pinned key.
pub(crate) struct Service {
    runtime: Runtime,
    link: Link,
    connection: ServiceConnection,
}

/// Where the service is, and which key it has.
#[derive(Clone, Copy)]
struct Link {
    port: u32,
    pin: Sha256Digest,
}

/// Why a try came to nothing.
enum Fault {
    /// With the service: another try may do.
    Service(ClientError),
    /// In the guest.
    Guest(Failure),
}

impl Service {
    /// Connects to the port and the pin of the configuration.
    pub(crate) fn connect(config: &GuestConfig) -> Result<Self, Failure> {
        let link = Link { port: config.service.vsock_port.0, pin: config.service.spki_sha256.0 };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Code::ServiceUnreachable.because())?;
        let connection = runtime.block_on(link.connect(&mut Retries::new(CONNECTS)))?;
        Ok(Self { runtime, link, connection })
    }

    /// A time signed for a nonce of ours, not before `floor`.
    pub(crate) fn time(&mut self, floor: u64) -> Result<AttestedTime, Failure> {
        let time = self.ask(async |connection| {
            let mut nonce = [0; 32];
            getrandom::fill(&mut nonce).map_err(Code::NoRandomness.because()).map_err(Fault::Guest)?;
            connection.time(Hex32::new(nonce), 0).await.map_err(Fault::Service)
        })?;
        if time.unix < floor {
            return Err(Code::TimeBeforeFloor.because()(time.unix));
        }
        Ok(time)
    }

    /// The key of `model`, and the document of its tenants. `evidence` gets challenge, exporter of this connection, and the public half of a key that
    /// exists for this try alone.
    pub(crate) fn model_key(
        &mut self,
        model: &ModelId,
        mut evidence: impl FnMut(Hex32, Hex32, Hex32) -> Result<Vec<u8>, Failure>,
    ) -> Result<Released, Failure> {
        self.ask(async |connection| {
            let challenge = connection.challenge().await.map_err(Fault::Service)?;
            let pair = ReleaseKeyPair::generate(&mut UnwrapErr(getrandom::SysRng));
            let (bytes, binding) = (Hex32::new(*challenge.challenge()), Hex32::new(*challenge.binding()));
            let evidence = evidence(bytes, binding, *pair.public()).map_err(Fault::Guest)?;
            connection.release(challenge, model, evidence, pair).await.map_err(Fault::Service)
        })
    }

    /// Asks, and asks again, all anew, while the service is busy or the connection breaks.
    fn ask<T>(&mut self, ask: impl AsyncFnMut(&mut ServiceConnection) -> Result<T, Fault>) -> Result<T, Failure> {
        let Self { runtime, link, connection } = self;
        runtime.block_on(async {
            timeout(PATIENCE, link.ask(connection, ask)).await.map_err(Code::ServiceTimeout.because())?
        })
    }
}

impl Link {
    async fn ask<T>(
        self,
        connection: &mut ServiceConnection,
        mut ask: impl AsyncFnMut(&mut ServiceConnection) -> Result<T, Fault>,
    ) -> Result<T, Failure> {
        let mut retries = Retries::new(TRIES);
        loop {
            let error = match ask(connection).await {
                Ok(answer) => return Ok(answer),
                Err(Fault::Guest(failure)) => return Err(failure),
                Err(Fault::Service(error)) => error,
            };
            let said = connection.retry_after();
            let passing = match error {
                ClientError::Refused(_) => said.is_some(),
                ClientError::Http(_) => true,
                _ => false,
            };
            let pause = if passing { retries.next_pause(said, chance()) } else { None };
            let Some(pause) = pause else { return Err(failure(error)) };
            sleep(pause).await;
            if connection.is_closed() || matches!(error, ClientError::Http(_)) {
                *connection = self.connect(&mut retries).await?;
            }
        }
    }

    /// A connection that is closed before it is made comes from a service without a free place, as a rule.
    async fn connect(self, retries: &mut Retries) -> Result<ServiceConnection, Failure> {
        loop {
            let stream = match linux_sys::vsock::to_host(self.port, None) {
                Ok(stream) => stream,
                // The host's side of the link is being started again, as a rule.
                Err(error) => {
                    let Some(pause) = retries.next_pause(None, chance()) else {
                        return Err(Code::ServiceUnreachable.because()(error));
                    };
                    sleep(pause).await;
                    continue;
                }
            };
            stream.set_nonblocking(true).map_err(Code::ServiceUnreachable.because())?;
            let stream = UnixStream::from_std(stream).map_err(Code::ServiceUnreachable.because())?;
            match ServiceConnection::connect(stream, self.pin).await {
                Err(error @ (ClientError::Tls(_) | ClientError::Http(_))) => {
                    let Some(pause) = retries.next_pause(None, chance()) else { return Err(failure(error)) };
                    sleep(pause).await;
                }
                connected => return connected.map_err(failure),
            }
        }
    }
}

/// Spreads the tries of guests that were refused together; without randomness they come together.
fn chance() -> u16 {
    let mut bytes = [0; 2];
    let _ = getrandom::fill(&mut bytes);
    u16::from_be_bytes(bytes)
}

fn failure(error: ClientError) -> Failure {
    let code = match error {
        ClientError::Refused(_) => Code::KeyRefused,
        ClientError::Timeout { .. } => Code::ServiceTimeout,
        ClientError::Pin => Code::ServiceNotPinned,
        ClientError::Tls(_) | ClientError::Http(_) => Code::ServiceUnreachable,
        ClientError::Channel(_) | ClientError::Answer { .. } | ClientError::Work { .. } => Code::ServiceProtocol,
        ClientError::Time(_) => Code::TimeNotSigned,
        ClientError::Audit(_) | ClientError::Seal(_) => Code::KeyNotOpened,
    };
    code.because()(error)
}

/// All of a release, evidence and further tries included.
const PATIENCE: Duration = Duration::from_secs(300);
/// Further tries of one request: about two minutes of a service that is busy.
const TRIES: u32 = 10;
/// Further tries of the first connection.
const CONNECTS: u32 = 4;
