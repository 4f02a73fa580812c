// SPDX-License-Identifier: Apache-2.0
//! The attestation service: reached by vsock through the host, which may drop and delay bytes, not read or change them.

use std::time::Duration;

use release_client::{
    ClientError, ServiceConnection,
    key_release_protocol::{ModelKey, ReleaseKeyPair, UnwrapErr},
};
use tokio::{net::UnixStream, runtime::Runtime, time::timeout};
use types::{GuestConfig, Hex32, ModelId, evidence::AttestedTime};

use crate::boot::Failure;
use crate::boot::{Code, Fails as _};

/// A connection whose other end holds the pinned key.
pub(crate) struct Service {
    runtime: Runtime,
    connection: ServiceConnection,
}

impl Service {
    /// Connects to the port and the pin of the configuration.
    pub(crate) fn connect(config: &GuestConfig) -> Result<Self, Failure> {
        let link = &config.service;
        let stream = linux_sys::vsock::to_host(link.vsock_port.0, None).map_err(Code::ServiceUnreachable.because())?;
        stream.set_nonblocking(true).map_err(Code::ServiceUnreachable.because())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Code::ServiceUnreachable.because())?;
        let connection = runtime.block_on(async {
            let stream = UnixStream::from_std(stream).map_err(Code::ServiceUnreachable.because())?;
            ServiceConnection::connect(stream, link.spki_sha256.0).await.map_err(failure)
        })?;
        Ok(Self { runtime, connection })
    }

    /// A time signed for a nonce of ours, not before `floor`.
    pub(crate) fn time(&mut self, floor: u64) -> Result<AttestedTime, Failure> {
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(Code::NoRandomness.because())?;
        let time = self.runtime.block_on(self.connection.time(Hex32::new(nonce), 0)).map_err(failure)?;
        if time.unix < floor {
            return Err(Code::TimeBeforeFloor.because()(time.unix));
        }
        Ok(time)
    }

    /// The key of `model`. `evidence` gets challenge, exporter of this connection, and the public half of a key that
    /// exists for this release alone.
    pub(crate) fn model_key(
        &mut self,
        model: &ModelId,
        evidence: impl FnOnce(Hex32, Hex32, Hex32) -> Result<Vec<u8>, Failure>,
    ) -> Result<ModelKey, Failure> {
        let Self { runtime, connection } = self;
        let released = async {
            let challenge = connection.challenge().await.map_err(failure)?;
            let pair = ReleaseKeyPair::generate(&mut UnwrapErr(getrandom::SysRng));
            let (bytes, binding) = (Hex32::new(*challenge.challenge()), Hex32::new(*challenge.binding()));
            let evidence = evidence(bytes, binding, *pair.public())?;
            connection.release(challenge, model, evidence, pair).await.map_err(failure)
        };
        let limited = runtime.block_on(async { timeout(PATIENCE, released).await });
        Ok(limited.map_err(Code::ServiceTimeout.because())??.key)
    }
}

fn failure(error: ClientError) -> Failure {
    let code = match error {
        ClientError::Refused(_) => Code::KeyRefused,
        ClientError::Timeout { .. } => Code::ServiceTimeout,
        ClientError::Pin => Code::ServiceNotPinned,
        ClientError::Tls(_) | ClientError::Http(_) => Code::ServiceUnreachable,
        ClientError::Channel(_) | ClientError::Answer { .. } => Code::ServiceProtocol,
        ClientError::Time(_) => Code::TimeNotSigned,
        ClientError::Audit(_) | ClientError::Seal(_) => Code::KeyNotOpened,
    };
    code.because()(error)
}

/// All of a release, evidence included.
const PATIENCE: Duration = Duration::from_secs(300);
