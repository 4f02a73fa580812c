// SPDX-License-Identifier: Apache-2.0
//! A connection that has proven to whom it leads.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use appraise::{Accepted, Verdict};
use attested_channel::{
    DeliveredReceipt, GuestCertificate, StoredProof, launch_digest,
    receipt::channel_id,
    stream::{Channel, share},
    tls::{client_config, is_full_handshake},
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use types::{ConnectionProof, Document as _, Evidence, Hex32, Sha256Digest};

use crate::{
    error::ClientError,
    openai,
    receipts::{BookError, Session, check_receipt},
    upstream::Upstream,
    verifier::{GuestSide, OwnSide, Verifier, unix_now},
};

/// A connection whose newest proof was accepted. A new proof is asked for when the verdict has expired.
#[derive(Debug)]
pub struct AttestedConnection {
    wire: Wire,
    verifier: Arc<Verifier>,
    proven: Proven,
    /// How many receipts the guest was known to have signed when the newest request was sent.
    receipts_before: u64,
    /// When it was proven first.
    since: Instant,
    /// Whose requests [`crate::chat`] sends.
    api_key: Option<HeaderValue>,
}

#[derive(Debug)]
struct Wire {
    upstream: Upstream,
    sender: http1::SendRequest<Full<Bytes>>,
    channel: Channel<TcpStream>,
    spki_sha256: Sha256Digest,
}

#[derive(Debug)]
struct Proven {
    accepted: Accepted,
    verdict: Arc<Verdict>,
    evidence: Arc<Evidence>,
    binding: [u8; 32],
    cover: Cover,
}

/// What was given as an API key cannot be one. Does not name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an API key is one or more visible ASCII characters")]
pub struct InvalidApiKey;

/// How long a verdict counts, by two clocks: setting the wall clock back extends nothing, and time that the monotonic
/// clock leaves out (a machine asleep) does not either.
#[derive(Debug)]
struct Cover {
    until: Instant,
    expires: u64,
}

impl Cover {
    fn new(asked: Instant, now: u64, expires: u64) -> Self {
        let lasts = Duration::from_secs(expires.saturating_sub(now));
        Self { until: asked.checked_add(lasts).unwrap_or(asked), expires }
    }

    fn holds(&self, at: Instant, now: u64) -> bool {
        at < self.until && now < self.expires
    }
}

/// Connects to a guest and has it prove itself.
///
/// # Errors
/// [`ClientError`]; refusals carry all independent reasons.
pub async fn connect(upstream: &Upstream, verifier: &Arc<Verifier>) -> Result<AttestedConnection, ClientError> {
    let mut wire = within(CONNECT_TIME, "connecting", dial(upstream)).await?;
    let proven = within(PROOF_TIME, "the proof was made", prove(&mut wire, verifier)).await?;
    let receipts_before = verifier.book().known().count(proven.accepted.instance_key());
    let (verifier, since) = (Arc::clone(verifier), Instant::now());
    Ok(AttestedConnection { wire, verifier, proven, receipts_before, since, api_key: None })
}

impl AttestedConnection {
    /// The connection, on which [`crate::chat`] sends this key: the guest's model has tenants, and one of them asks. It goes
    /// to the guest alone, which has proven itself.
    ///
    /// # Errors
    /// [`InvalidApiKey`].
    pub fn with_api_key(mut self, key: &str) -> Result<Self, InvalidApiKey> {
        let is_key = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        let value = HeaderValue::try_from(format!("Bearer {key}")).ok().filter(|_| is_key);
        let mut value = value.ok_or(InvalidApiKey)?;
        // Printed headers do not show it.
        value.set_sensitive(true);
        self.api_key = Some(value);
        Ok(self)
    }

    pub(crate) fn api_key(&self) -> Option<&HeaderValue> {
        self.api_key.as_ref()
    }

    /// How long it has been since it was proven first.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// The newest verdict, with every check and register.
    pub fn verdict(&self) -> &Verdict {
        &self.proven.verdict
    }

    /// The guest's evidence document.
    #[must_use]
    pub fn evidence(&self) -> &Evidence {
        &self.proven.evidence
    }

    /// What receipts of this connection must say.
    #[must_use]
    pub fn session(&self) -> Session {
        let Proven { accepted, verdict, binding, .. } = &self.proven;
        Session {
            instance_key: *accepted.instance_key(),
            evidence: *accepted.evidence(),
            model: accepted.model().clone(),
            launch: launch_digest(&verdict.claims().registers),
            channel: channel_id(binding),
            receipts_before: self.receipts_before,
        }
    }

    /// Checks the receipt of the newest request's answer, and takes it into the verifier's book.
    pub(crate) async fn accept_receipt(
        &self,
        receipt: DeliveredReceipt,
        request_body: &[u8],
        response: &[u8],
    ) -> Result<(), ClientError> {
        let session = self.session();
        check_receipt(&receipt, &session, request_body, response).map_err(ClientError::Refused)?;
        let (book, evidence) = (Arc::clone(self.verifier.book()), Arc::clone(&self.proven.evidence));
        let taken = tokio::task::spawn_blocking(move || book.take(&receipt, &session, &evidence)).await;
        match taken {
            Ok(taken) => taken.map(drop).map_err(|error| of_book("receipt_not_stored", error)),
            Err(_) => Err(ClientError::Broken("the receipt was stored")),
        }
    }

    /// Whether the newest proof still covers the connection.
    #[must_use]
    pub fn is_covered(&self) -> bool {
        self.proven.cover.holds(Instant::now(), unix_now())
    }

    /// Whether the connection can take a request.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.wire.sender.is_closed()
    }

    /// Who judged it.
    pub(crate) fn verifier(&self) -> &Arc<Verifier> {
        &self.verifier
    }

    /// Asks for a new proof, over the same connection.
    ///
    /// # Errors
    /// [`ClientError`]. The connection must not be used then.
    pub async fn renew(&mut self) -> Result<(), ClientError> {
        let verifier = Arc::clone(&self.verifier);
        self.proven = within(PROOF_TIME, "the proof was made", prove(&mut self.wire, &verifier)).await?;
        Ok(())
    }

    /// Asks for a new proof where the last one has expired.
    ///
    /// # Errors
    /// As [`Self::send`], which does this, too.
    pub(crate) async fn cover(&mut self) -> Result<(), ClientError> {
        if self.is_covered() {
            return Ok(());
        }
        self.renew().await.map_err(|error| match error {
            ClientError::Broken(_) => ClientError::Unsent,
            other => other,
        })
    }

    /// Sends a request and gives the head of the answer, after a new proof where the last one has expired.
    ///
    /// # Errors
    /// [`ClientError`]: the proof was refused, or the connection broke. [`ClientError::Unsent`] alone says that the guest
    /// has seen nothing of the request.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: http::HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        self.cover().await?;
        self.wire.check_tickets()?;
        self.receipts_before = self.verifier.book().known().count(self.proven.accepted.instance_key());
        self.wire.send(method, path, headers, body).await
    }
}

async fn dial(upstream: &Upstream) -> Result<Wire, ClientError> {
    let unreachable = |source| ClientError::Unreachable { upstream: upstream.to_string(), source };
    let tcp = TcpStream::connect((upstream.host(), upstream.port())).await.map_err(unreachable)?;
    // Without it small events wait for acknowledgements; a failure costs time only.
    let _ = tcp.set_nodelay(true);
    let settings = client_config().map_err(|error| ClientError::of_handshake(&std::io::Error::other(error)))?;
    // The name is sent to nobody: server names are off.
    let name = ServerName::try_from(SERVER_NAME).map_err(|_| ClientError::Broken("naming the guest"))?;
    let connector = TlsConnector::from(Arc::new(settings));
    let tls = connector.connect(name, tcp).await.map_err(|error| ClientError::of_handshake(&error))?;
    let session = tls.get_ref().1;
    if !is_full_handshake(session.handshake_kind()) {
        return Err(resumption("the handshake resumed another session"));
    }
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or(ClientError::Broken("the certificate was read"))?;
    let certificate = GuestCertificate::from_der(leaf).map_err(|error| {
        ClientError::refuse(error.code(), "certificate", error.to_string(), "connect to a guest's attested API")
    })?;
    let (stream, channel) = share(tls.into());
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|_| ClientError::Broken("HTTP began"))?;
    // Its end shows in the sender.
    tokio::spawn(connection);
    Ok(Wire { upstream: upstream.clone(), sender, channel, spki_sha256: certificate.spki_sha256 })
}

/// Challenge, proof, evidence, verdict.
async fn prove(wire: &mut Wire, verifier: &Verifier) -> Result<Proven, ClientError> {
    // Answers go on over other connections: a guest must count what was known before it was asked, and no more.
    let known = verifier.book().known();
    let mut challenge = [0; 32];
    getrandom::fill(&mut challenge).map_err(|_| ClientError::Randomness)?;
    let exporter = wire.channel.binding(&challenge).map_err(|_| ClientError::Broken("the exporter was computed"))?;
    let body = format!("{{\"challenge\":\"{}\"}}", Hex32::new(challenge));
    let proof = wire.fetch(Method::POST, "/v1/attestation", body, ConnectionProof::MAX_BYTES, "proof").await?;
    let proof = ConnectionProof::from_canonical(&proof).map_err(|error| {
        ClientError::refuse("proof_malformed", "proof", error.to_string(), "connect to a guest's attested API")
    })?;
    let evidence = match verifier.known(&proof.evidence) {
        Some(evidence) => evidence,
        None => {
            let path = format!("/v1/attestation/evidence/{}", proof.evidence);
            let bytes = wire.fetch(Method::GET, &path, String::new(), Evidence::MAX_BYTES, "evidence").await?;
            verifier.learn(&proof.evidence, &bytes)?
        }
    };
    wire.check_tickets()?;
    let (asked, now) = (Instant::now(), unix_now());
    let own = OwnSide {
        guest: GuestSide::Server,
        challenge: &challenge,
        exporter: &exporter,
        spki_sha256: &wire.spki_sha256,
    };
    let (accepted, verdict) = verifier.judge(&proof, &evidence, own, now)?;
    let cover = Cover::new(asked, now, accepted.expires());
    let stored = StoredProof::new(challenge, exporter, proof);
    let taken = if verifier.book().writes() {
        let (book, of_guest) = (Arc::clone(verifier.book()), Arc::clone(&evidence));
        let taken = tokio::task::spawn_blocking(move || book.take_proof(&stored, &of_guest, &known)).await;
        taken.map_err(|_| ClientError::Broken("the proof was stored"))?
    } else {
        verifier.book().take_proof(&stored, &evidence, &known)
    };
    taken.map_err(|error| of_book("proof_not_stored", error))?;
    Ok(Proven { accepted, verdict, evidence, binding: exporter, cover })
}

impl Wire {
    /// Sends a request and gives the head of the answer.
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: http::HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::new(Full::from(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|_| ClientError::Broken("the path was written"))?;
        *request.headers_mut() = headers;
        let host = self.upstream.to_string().replacen("https://", "", 1);
        let host = HeaderValue::from_str(&host).map_err(|_| ClientError::Broken("the host was written"))?;
        request.headers_mut().insert(header::HOST, host);
        self.sender.ready().await.map_err(|_| ClientError::Unsent)?;
        // A request that comes back was not begun to be written.
        self.sender.try_send_request(request).await.map_err(|error| match error.message() {
            Some(_) => ClientError::Unsent,
            None => ClientError::Broken("an answer was awaited"),
        })
    }

    /// A whole answer of at most `most` bytes, or the refusal that it is missing.
    async fn fetch(
        &mut self,
        method: Method,
        path: &str,
        body: String,
        most: usize,
        what: &'static str,
    ) -> Result<Bytes, ClientError> {
        let response = self.send(method, path, http::HeaderMap::new(), body.into()).await?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), most.max(MAX_ERROR)).collect().await;
        let bytes = bytes.map_err(|_| ClientError::Broken("proof and evidence were read"))?.to_bytes();
        match status {
            StatusCode::OK => Ok(bytes),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                Err(ClientError::Answered { status: status.as_u16(), code: openai::error_code(&bytes) })
            }
            _ => Err(ClientError::refuse(
                &format!("{what}_missing"),
                what,
                format!("the server answered {} instead of giving its {what}", status.as_u16()),
                "connect to a guest's attested API",
            )),
        }
    }

    /// Tickets were never asked for: a server that sends them means to resume.
    fn check_tickets(&self) -> Result<(), ClientError> {
        match self.channel.tickets_received() {
            0 => Ok(()),
            _ => Err(resumption("the server sent session tickets")),
        }
    }
}

fn of_book(code: &str, error: BookError) -> ClientError {
    match error {
        BookError::Refused(reasons) => ClientError::Refused(reasons),
        BookError::Store { .. } | BookError::Folder(_) => {
            let fix = "free space, or choose another folder with --receipts";
            ClientError::refuse(code, "receipts", error.to_string(), fix)
        }
    }
}

fn resumption(detail: &str) -> ClientError {
    let fix = "connect to a guest's attested API: it resumes no sessions";
    ClientError::refuse("resumption_offered", "tls", detail, fix)
}

async fn within<T>(
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    tokio::time::timeout(limit, work).await.map_err(|_| ClientError::Broken(what))?
}

const SERVER_NAME: &str = "chrysalis.invalid";
const CONNECT_TIME: Duration = Duration::from_secs(30);
const PROOF_TIME: Duration = Duration::from_secs(60);
const MAX_ERROR: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_ends_by_whichever_clock_says_so_first() {
        let (start, now) = (Instant::now(), 1_800_000_000);
        let cover = Cover::new(start, now, now + 600);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(cover.holds(after(599), now + 599));
        assert!(!cover.holds(after(600), now));
        // The machine slept: its monotonic clock did not.
        assert!(!cover.holds(after(1), now + 600));
        assert!(!Cover::new(start, now, now - 1).holds(start, now - 2));
    }
}
