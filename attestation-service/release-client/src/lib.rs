// SPDX-License-Identifier: Apache-2.0
//! The guest side of key release: attested time, challenge, release, over any byte stream.
//!
//! The stream is forwarded by the host, who may drop, delay or change bytes; TLS with the pinned key of the service
//! ends here. Needs a tokio runtime, of one thread if one likes, with timers.

pub mod answer;
mod error;
mod retry;

use std::{sync::Arc, time::Duration};

use attested_channel::stream;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use key_release_protocol::{
    ChallengeAnswer, EntryProof, KeyReleaseAnswer, KeyReleaseRequest, ModelKey, ReleaseKeyPair, Search, Token, Work,
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use types::{Base64, Document, Hex32, ModelId, Sha256Digest, evidence::AttestedTime};
use zeroize::Zeroizing;

use answer::SMALL;
pub use error::ClientError;
pub use key_release_protocol;
pub use retry::Retries;

/// A connection to the service whose key was checked against the pin.
pub struct ServiceConnection {
    sender: SendRequest<Full<Bytes>>,
    exporter: Exporter,
    pin: Sha256Digest,
    driver: tokio::task::JoinHandle<()>,
    retry_after: Option<Duration>,
}

/// Gives the connection's exporter for a challenge.
type Exporter = Box<dyn Fn(&[u8; 32]) -> Result<[u8; 32], rustls::Error> + Send + Sync>;

/// A challenge of the service, and what binds it to the connection that it came over.
#[derive(Debug, Clone)]
pub struct Challenge {
    token: Token,
    challenge: [u8; 32],
    binding: [u8; 32],
    expires: u64,
    work: Option<Work>,
}

/// A model key that was released to this guest.
pub struct Released {
    /// The key, zeroized when dropped.
    pub key: ModelKey,
    /// The document of the model's tenants, which holds to its rules and is for this model; `None` where the model has
    /// none. Zeroized when dropped.
    pub tenants: Option<Zeroizing<Vec<u8>>>,
    /// Its version.
    pub key_version: u32,
    /// Proof that the release stands in the service's audit log. Its path was verified; the log's signature was
    /// not, since the guest knows only the pinned TLS key.
    pub audit: EntryProof,
}

/// A command of an owner that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct OwnerAnswer {
    /// The model.
    pub model: ModelId,
    /// The command's sequence.
    pub sequence: u64,
    /// Index of its entry in the service's audit log.
    pub audit_index: u64,
}

impl ServiceConnection {
    /// Makes TLS over `stream` with the service whose SPKI hashes to `pin`.
    ///
    /// # Errors
    /// [`ClientError::Pin`] for another key, otherwise [`ClientError::Tls`], [`ClientError::Http`],
    /// [`ClientError::Timeout`].
    pub async fn connect<S>(stream: S, pin: Sha256Digest) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(attested_channel::tls::pinned_client_config(pin)?));
        let name = ServerName::try_from("attestation-service.invalid")
            .map_err(|_| rustls::Error::General("the server's name".to_owned()))?;
        let tls = limited("the TLS handshake", HANDSHAKE, connector.connect(name, stream)).await?.map_err(handshake)?;
        let (stream, channel) = stream::share(tokio_rustls::TlsStream::Client(tls));
        let (sender, connection) = http1::Builder::new().max_buf_size(HEADERS).handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move {
            // An error here shows in the request under way.
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            exporter: Box::new(move |challenge| channel.binding(challenge)),
            pin,
            driver,
            retry_after: None,
        })
    }

    /// After how long the service wants to be asked again; `None` where its last answer was no refusal for now only
    /// (429, 503). It says this of itself: the caller sets the bounds.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The connection has ended: another request needs another one.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Asks for the time. The signature, the nonce and the pin are verified, and that the time is not before `floor`
    /// (seconds since 1970). The host can still delay the answer: it is a lower bound of now.
    ///
    /// # Errors
    /// [`ClientError::Time`] names the rule.
    pub async fn time(&mut self, nonce: Hex32, floor: u64) -> Result<AttestedTime, ClientError> {
        let path = format!("/v1/time?nonce={nonce}");
        let body = self.exchange(answer::TIME, Method::GET, &path, Vec::new(), SMALL).await?;
        answer::time(&body, &nonce, &self.pin, floor)
    }

    /// Asks for a challenge and takes this connection's exporter for it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn challenge(&mut self) -> Result<Challenge, ClientError> {
        let body = self.exchange(answer::CHALLENGE, Method::POST, "/v1/challenges", Vec::new(), SMALL).await?;
        let ChallengeAnswer { expires, token, work } = answer::challenge(&body)?;
        let challenge = token.challenge();
        let binding = (self.exporter)(&challenge)?;
        Ok(Challenge { token, challenge, binding, expires, work })
    }

    /// Hands in `evidence` (canonical bytes, made for `challenge` and the public half of `key`) and opens the key of
    /// `model`.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the service's reasons; [`ClientError::Audit`] or [`ClientError::Seal`] for an
    /// answer that is not what was asked for.
    pub async fn release(
        &mut self,
        challenge: Challenge,
        model: &ModelId,
        evidence: Vec<u8>,
        key: ReleaseKeyPair,
    ) -> Result<Released, ClientError> {
        let step = answer::RELEASE;
        let digest = Sha256Digest::of(&evidence);
        let work = solve(&challenge).await?;
        let request = KeyReleaseRequest {
            schema: KeyReleaseRequest::SCHEMA.to_owned(),
            token: challenge.token,
            model: model.clone(),
            evidence: Base64::new(evidence)
                .ok_or_else(|| ClientError::Answer { step, rule: "the evidence is too large".to_owned() })?,
            work,
        };
        let request = request.to_canonical().map_err(|e| ClientError::Answer { step, rule: e.to_string() })?;
        let max = KeyReleaseAnswer::MAX_BYTES;
        let body = self.exchange(step, Method::POST, "/v1/key-release", request, max).await?;
        answer::released(&body, &challenge.challenge, model, &digest, key)
    }

    /// The service's keys, as it sent them: whether the pinned key signed them is for the caller.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn service_keys(&mut self) -> Result<Bytes, ClientError> {
        self.exchange("GET /v1/service", Method::GET, "/v1/service", Vec::new(), SMALL).await
    }

    /// Sends a command that a model's owner signed.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the service's reasons, ….
    pub async fn owner_command(&mut self, signed: Vec<u8>) -> Result<OwnerAnswer, ClientError> {
        let body = self.exchange(answer::COMMAND, Method::POST, "/v1/owner-commands", signed, SMALL).await?;
        answer::command(&body)
    }

    async fn exchange(
        &mut self,
        step: &'static str,
        method: Method,
        path: &str,
        body: Vec<u8>,
        max: usize,
    ) -> Result<Bytes, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "attestation-service.invalid")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| ClientError::Answer { step, rule: e.to_string() })?;
        self.retry_after = None;
        limited(step, ANSWER, async {
            self.sender.ready().await?;
            let answer = self.sender.send_request(request).await?;
            let status = answer.status();
            if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
                let said = answer.headers().get(http::header::RETRY_AFTER).and_then(|said| said.to_str().ok());
                self.retry_after = Some(Duration::from_secs(said.and_then(|said| said.parse().ok()).unwrap_or(1)));
            }
            let max = if status == StatusCode::OK { max } else { MAX_REFUSAL };
            let body = whole(step, answer.into_body(), max).await?;
            if status == StatusCode::OK { Ok(body) } else { Err(answer::refusal(step, status.as_u16(), &body)) }
        })
        .await?
    }
}

impl Drop for ServiceConnection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Challenge {
    /// The challenge that the evidence must answer.
    #[must_use]
    pub const fn challenge(&self) -> &[u8; 32] {
        &self.challenge
    }

    /// This connection's exporter for the challenge.
    #[must_use]
    pub const fn binding(&self) -> &[u8; 32] {
        &self.binding
    }

    /// Seconds since 1970, by the service's clock, at which the challenge ends.
    #[must_use]
    pub const fn expires(&self) -> u64 {
        self.expires
    }

    /// Bits of work that the service asks for; 0 where it asks for none.
    #[must_use]
    pub const fn work_bits(&self) -> u8 {
        match self.work {
            Some(work) => work.bits,
            None => 0,
        }
    }

    /// The token that names the challenge to the service.
    #[must_use]
    pub const fn token(&self) -> &Token {
        &self.token
    }
}

/// Does the work that a busy service asked for, within bounds. Other tasks have their turn meanwhile.
async fn solve(challenge: &Challenge) -> Result<Option<u64>, ClientError> {
    let Some(work) = challenge.work else { return Ok(None) };
    let mut search = Search::new(challenge.token, work).ok_or(ClientError::Work { bits: work.bits })?;
    // That a search of so many tries fails has a probability of e^-16.
    let tries = 16_u64.saturating_mul(1 << u32::from(work.bits).min(32));
    for _ in 0..=tries / PORTION {
        if let Some(found) = search.portion(PORTION) {
            return Ok(Some(found));
        }
        tokio::task::yield_now().await;
    }
    Err(ClientError::Work { bits: work.bits })
}

async fn limited<T>(step: &'static str, limit: Duration, future: impl Future<Output = T>) -> Result<T, ClientError> {
    timeout(limit, future).await.map_err(|_| ClientError::Timeout { step, seconds: limit.as_secs() })
}

/// A body of at most `max` bytes. One that breaks off is the connection's error: another try may bring the whole.
async fn whole(step: &'static str, body: Incoming, max: usize) -> Result<Bytes, ClientError> {
    match Limited::new(body, max).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) => Err(match error.downcast::<hyper::Error>() {
            Ok(broken) => ClientError::Http(*broken),
            Err(_) => ClientError::Answer { step, rule: format!("not a body of at most {max} bytes") },
        }),
    }
}

fn handshake(error: std::io::Error) -> ClientError {
    let pin = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some_and(|inner| {
        *inner == rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure)
    });
    if pin { ClientError::Pin } else { ClientError::Tls(error) }
}

const HANDSHAKE: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(60);
/// Hashes between two turns of other tasks.
const PORTION: u64 = 4096;
const MAX_REFUSAL: usize = 256 * 1024;
const HEADERS: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use key_release_protocol::{MAX_WORK_BITS, is_solution};

    use super::*;

    fn challenge(bits: Option<u8>) -> Challenge {
        let token = Token::from_bytes([7; Token::LEN]);
        let work = bits.map(|bits| Work { bits });
        Challenge { token, challenge: token.challenge(), binding: [0; 32], expires: 0, work }
    }

    async fn body_of(answer: &'static [u8], max: usize) -> Result<Bytes, ClientError> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (near, mut far) = tokio::io::duplex(4096);
        let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
        tokio::spawn(connection);
        tokio::spawn(async move {
            let _ = far.read(&mut [0; 4096]).await;
            far.write_all(answer).await.unwrap();
        });
        let answer = sender.send_request(Request::new(Full::new(Bytes::new()))).await.unwrap();
        whole("a step", answer.into_body(), max).await
    }

    /// What broke off may be asked for again; what is too long is wrong for good.
    #[tokio::test]
    async fn a_body_that_breaks_off_is_the_connection_s_error() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabcde";
        assert_eq!(&*body_of(answer, 5).await.unwrap(), b"abcde");
        assert!(matches!(body_of(answer, 4).await, Err(ClientError::Answer { .. })));
        let broken = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc";
        assert!(matches!(body_of(broken, 5).await, Err(ClientError::Http(_))));
    }

    /// A service cannot hold its guests up by asking for more than is bearable.
    #[tokio::test]
    async fn work_is_done_within_bounds() {
        assert!(matches!(solve(&challenge(None)).await, Ok(None)));
        let found = solve(&challenge(Some(14))).await.unwrap().unwrap();
        assert!(is_solution(challenge(None).token(), 14, found));
        for bits in [MAX_WORK_BITS + 1, 64, 255] {
            let refused = solve(&challenge(Some(bits))).await.unwrap_err();
            assert!(matches!(refused, ClientError::Work { bits: found } if found == bits), "{refused}");
        }
    }
}
