// SPDX-License-Identifier: Apache-2.0
//! A guest that costs the machine little, for loads: it proves itself as any other, and looks at no answer but its status.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use attestation_bench::{Guest, model};
use attested_channel::{stream, tls};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use key_release::{ChallengeAnswer, KeyReleaseRequest, ReleaseKeyPair, UnwrapErr};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};
use types::{Base64, Document as _, Hex32, ModelId, Sha256Digest};

/// What all callers of one load have in common. All keys are sealed to the same key, and opened by nobody.
pub(crate) struct Callers {
    guest: Guest,
    address: SocketAddr,
    connector: TlsConnector,
    name: ServerName<'static>,
    model: ModelId,
    hpke_key: Hex32,
}

/// One connection, whose service has the pinned key.
pub(crate) struct Caller {
    sender: SendRequest<Full<Bytes>>,
    channel: stream::Channel<TcpStream>,
    driver: tokio::task::JoinHandle<()>,
}

/// How a request for a key ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// With a key.
    Released,
    /// Not now; the service says after how long.
    Busy(Duration),
}

impl Callers {
    pub(crate) fn new(guest: Guest, address: SocketAddr, pin: Sha256Digest) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            guest,
            address,
            connector: TlsConnector::from(Arc::new(tls::pinned_client_config(pin)?)),
            name: ServerName::try_from("attestation-service.invalid")?,
            model: model()?,
            hpke_key: *ReleaseKeyPair::generate(&mut UnwrapErr(getrandom::SysRng)).public(),
        }))
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<Caller> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let tls = self.connector.connect(self.name.clone(), stream).await?;
        let (stream, channel) = stream::share(TlsStream::Client(tls));
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move {
            // An error here shows in the request under way.
            let _ = connection.await;
        });
        Ok(Caller { sender, channel, driver })
    }

    /// The whole protocol but for the opening of the key.
    pub(crate) async fn ask(&self, caller: &mut Caller) -> anyhow::Result<Asked> {
        let (status, body, _) = caller.send("/v1/challenges", Vec::new()).await?;
        anyhow::ensure!(status == StatusCode::OK, "a challenge: {status} {}", String::from_utf8_lossy(&body));
        let ChallengeAnswer { token, .. } = serde_json::from_slice(&body).context("a challenge")?;
        let challenge = token.challenge();
        let evidence = self.guest.evidence(&challenge, &caller.channel.binding(&challenge)?, &self.hpke_key)?;
        let request = KeyReleaseRequest {
            schema: KeyReleaseRequest::SCHEMA.to_owned(),
            token,
            model: self.model.clone(),
            evidence: Base64::new(evidence).context("evidence")?,
            work: None,
        };
        let (status, body, after) = caller.send("/v1/key-release", request.to_canonical()?).await?;
        match status {
            StatusCode::OK => Ok(Asked::Released),
            // More ask than are answered in five seconds: that is what the code is for.
            StatusCode::TOO_MANY_REQUESTS if body.windows(6).any(|part| part == b"\"busy\"") => Ok(Asked::Busy(after)),
            _ => anyhow::bail!("a key: {status} {}", String::from_utf8_lossy(&body)),
        }
    }
}

impl Caller {
    /// Asks for a challenge and forgets it.
    pub(crate) async fn challenge(&mut self) -> anyhow::Result<()> {
        let (status, ..) = self.send("/v1/challenges", Vec::new()).await?;
        anyhow::ensure!(status == StatusCode::OK, "a challenge: {status}");
        Ok(())
    }

    async fn send(&mut self, path: &str, body: Vec<u8>) -> anyhow::Result<(StatusCode, Bytes, Duration)> {
        let request = Request::post(path)
            .header(header::HOST, "attestation-service.invalid")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        let said = answer.headers().get(header::RETRY_AFTER).and_then(|said| said.to_str().ok());
        let after = Duration::from_secs(said.and_then(|said| said.parse().ok()).unwrap_or(1));
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| anyhow::anyhow!(e))?;
        Ok((status, body.to_bytes(), after))
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

const MAX_ANSWER: usize = 256 * 1024;
