// SPDX-License-Identifier: Apache-2.0
//! Paths, methods and bodies.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    task::{Context, Poll},
    time::Instant,
};

use attested_channel::stream::Channel;
use bytes::Bytes;
use engine_protocol::{ModelFacts, Work};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, mpsc, watch},
};
use types::{Hex32, ModelId, Sha256Digest};
use zeroize::Zeroizing;

use crate::{
    accounts::{Account, Accounts},
    attester::{Attester, AttesterError},
    completion,
    drain::Drain,
    embeddings,
    engine::{Asker, Engine, Lease},
    error::ApiError,
    identities::{Identities, Shown},
    limits::Limits,
    receipts::Receipts,
    request::Kind,
};

/// What all connections share.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) attester: Attester,
    pub(crate) engine: Engine,
    pub(crate) identities: Identities,
    pub(crate) model: ModelId,
    pub(crate) clock: Clock,
    pub(crate) receipts: Receipts,
    /// Who may ask, where not everybody may.
    pub(crate) accounts: Option<Accounts>,
    /// Places for receipts that are being signed.
    pub(crate) signing: Arc<Semaphore>,
    pub(crate) limits: Limits,
    pub(crate) drain: Drain,
}

/// Attested time plus monotonic progress: the host owns the wall clock.
#[derive(Debug)]
pub(crate) struct Clock {
    unix: u64,
    since: Instant,
}

impl Clock {
    pub(crate) fn at(unix: u64) -> Self {
        Self { unix, since: Instant::now() }
    }

    pub(crate) fn unix(&self) -> u64 {
        self.unix.saturating_add(self.since.elapsed().as_secs())
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    channel: Channel<TcpStream>,
    /// The key that it began with.
    pub(crate) shown: Arc<Shown>,
    /// Whose requests come here where the model has no tenants: nobody's but this connection's.
    lease: Arc<Lease>,
    /// Whether the engine works for it.
    is_answering: Arc<AtomicBool>,
    /// Binding of the newest proof.
    proof: Mutex<Option<[u8; 32]>>,
    /// Whether it asked for more than attestation.
    asked: watch::Sender<bool>,
}

impl Connection {
    pub(crate) fn new(channel: Channel<TcpStream>, lease: Arc<Lease>, shown: Arc<Shown>) -> Self {
        let (proof, asked, is_answering) = (Mutex::new(None), watch::Sender::new(false), Arc::default());
        Self { channel, shown, lease, is_answering, proof, asked }
    }

    /// Tells whether the engine works for the connection.
    pub(crate) fn is_answering(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_answering)
    }

    /// Who asks the engine, by a request that counts from here.
    fn asker(&self, state: &State, account: Option<&Arc<Account>>) -> Result<Asker, ApiError> {
        let (lease, charge) = match account {
            Some(account) => {
                let charge = account.enter()?;
                (account.lease(&state.engine)?, Some(charge))
            }
            None => (Arc::clone(&self.lease), None),
        };
        Ok(Asker { lease, is_answering: self.is_answering(), charge })
    }

    /// The newest proof, for a request that needs one; without one nothing but attestation is answered.
    fn proven(&self) -> Result<Proof, ApiError> {
        let binding = *self.proof.lock().unwrap_or_else(PoisonError::into_inner);
        let binding = binding.ok_or_else(ApiError::attestation_required)?;
        self.asked.send_replace(true);
        Ok(Proof { binding, evidence: self.shown.evidence_digest })
    }

    /// Ends when a request came that needs a proof, and there was one.
    pub(crate) async fn asked(&self) {
        // The sender is in our hands: there is an end to wait for.
        let _ = self.asked.subscribe().wait_for(|asked| *asked).await;
    }
}

/// By what a connection was proven.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Proof {
    /// Binding of the newest proof.
    pub(crate) binding: [u8; 32],
    /// The evidence that proofs of this connection name.
    pub(crate) evidence: Sha256Digest,
}

/// A body that is whole, or one that is written while it is sent.
#[derive(Debug)]
pub(crate) enum AnswerBody {
    Whole(Option<Bytes>),
    Events(mpsc::Receiver<Bytes>),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Events(events) => events.poll_recv(cx).map(|event| event.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// Answers one request.
pub(crate) async fn handle(
    state: Arc<State>,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Infallible> {
    let mut account = None;
    let answered = route(&state, &connection, request, &mut account).await;
    let mut response = answered.unwrap_or_else(|error| refuse(&error));
    if let Some(account) = account {
        account.tell(response.headers_mut());
    }
    if connection.shown.ends.has_begun() || state.drain.has_begun() && *connection.asked.borrow() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

async fn route(
    state: &Arc<State>,
    connection: &Connection,
    request: Request<Incoming>,
    asks: &mut Option<Arc<Account>>,
) -> Result<Response<AnswerBody>, ApiError> {
    let path = request.uri().path().to_owned();
    let get = |answer: Result<Response<AnswerBody>, ApiError>| {
        if request.method() == Method::GET { answer } else { Err(ApiError::method_not_allowed()) }
    };
    if let Some(digest) = path.strip_prefix("/v1/attestation/evidence/") {
        return get(evidence(state, digest));
    }
    if path == "/v1/attestation" {
        return attest(state, connection, post(request)?).await;
    }
    let proof = connection.proven()?;
    // Whatever is not about the guest itself is its tenants' alone, where it has some.
    let account = state.accounts.as_ref().map(|accounts| accounts.of(request.headers())).transpose()?;
    *asks = account.cloned();
    if let Some(id) = path.strip_prefix("/v1/receipts/") {
        let reader = account.map(|account| account.number());
        return get(state
            .receipts
            .of(id, reader)
            .map(|bytes| json(bytes.into()))
            .ok_or(ApiError::not_found("receipt")));
    }
    if let Some(name) = path.strip_prefix("/v1/models/") {
        return get(names(&state.model, name).then(|| model(state)).ok_or_else(ApiError::model_not_found));
    }
    match path.as_str() {
        "/v1/models" => get(Ok(models(state))),
        "/v1/embeddings" => {
            let body = post(request)?;
            let Work::Embed { dimensions } = state.engine.facts().work else { return Err(ApiError::wrong_endpoint()) };
            let asker = connection.asker(state, account)?;
            let body = read_body(body, &state.limits).await?;
            embeddings::answer(state, dimensions, asker, proof, &body).await
        }
        "/v1/chat/completions" | "/v1/completions" => {
            let kind = if path == "/v1/completions" { Kind::Text } else { Kind::Chat };
            let body = post(request)?;
            if state.engine.facts().work != Work::Generate {
                return Err(ApiError::wrong_endpoint());
            }
            let asker = connection.asker(state, account)?;
            let body = read_body(body, &state.limits).await?;
            completion::answer(state, kind, asker, proof, &body).await
        }
        _ => Err(ApiError::not_found("path")),
    }
}

fn post(request: Request<Incoming>) -> Result<Incoming, ApiError> {
    if request.method() == Method::POST { Ok(request.into_body()) } else { Err(ApiError::method_not_allowed()) }
}

/// A proof over this connection's own exporter. Challenge and binding never come from the same message.
async fn attest(state: &State, connection: &Connection, body: Incoming) -> Result<Response<AnswerBody>, ApiError> {
    let body = read_body(body, &Limits { body_bytes: MAX_CHALLENGE_BODY, ..state.limits }).await?;
    let Challenge { challenge } =
        serde_json::from_slice(&body).map_err(|error| ApiError::malformed_json(error.line(), error.column()))?;
    let binding = connection.channel.binding(challenge.as_bytes()).map_err(|_| ApiError::internal())?;
    let key = connection.shown.key;
    let proof = state.attester.prove(key, challenge, Hex32::new(binding)).await.map_err(|error| of_attester(&error))?;
    *connection.proof.lock().unwrap_or_else(PoisonError::into_inner) = Some(binding);
    Ok(json(proof))
}

fn evidence(state: &State, digest: &str) -> Result<Response<AnswerBody>, ApiError> {
    let evidence = digest.parse().ok().and_then(|digest| state.identities.evidence(&digest));
    evidence.map(|evidence| whole(StatusCode::OK, evidence)).ok_or(ApiError::not_found("evidence document"))
}

/// Whether a client's name means this model: its name, name and revision, or the full name.
pub(crate) fn names(model: &ModelId, asked: &str) -> bool {
    let full = model.to_string();
    asked == model.name()
        || asked == full
        || full.strip_prefix(asked).is_some_and(|rest| asked.contains('@') && rest.starts_with(':'))
}

fn models(state: &State) -> Response<AnswerBody> {
    json(serde_json::to_vec(&ModelList { object: "list", data: [entry(state)] }).unwrap_or_default())
}

fn model(state: &State) -> Response<AnswerBody> {
    json(serde_json::to_vec(&entry(state)).unwrap_or_default())
}

fn entry(state: &State) -> ModelEntry {
    let ModelFacts { context, work, .. } = state.engine.facts();
    let (endpoints, embedding_dimensions): (&[_], _) = match work {
        Work::Generate => (&["/v1/chat/completions", "/v1/completions"], None),
        Work::Embed { dimensions } => (&["/v1/embeddings"], Some(dimensions)),
    };
    ModelEntry {
        id: state.model.to_string(),
        object: "model",
        created: state.clock.unix,
        owned_by: "chrysalis",
        context_window: context,
        endpoints,
        embedding_dimensions,
    }
}

/// Reads a body into memory that is wiped afterwards.
async fn read_body(body: Incoming, limits: &Limits) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    let max = limits.body_bytes;
    let announced = body.size_hint().lower();
    if announced > max as u64 {
        return Err(ApiError::body_too_large(max));
    }
    let mut limited = Limited::new(body, max);
    // With its final size from the start no copy is left behind by growing.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(announced).unwrap_or(0)));
    let reading = async {
        while let Some(frame) = limited.frame().await {
            let frame = frame.map_err(|error| match error.downcast_ref() {
                Some(http_body_util::LengthLimitError { .. }) => ApiError::body_too_large(max),
                None => ApiError::body_broken(),
            })?;
            bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
        Ok(())
    };
    tokio::time::timeout(limits.body, reading).await.map_err(|_| ApiError::body_timeout())??;
    Ok(bytes)
}

pub(crate) fn of_attester(error: &AttesterError) -> ApiError {
    match error {
        AttesterError::Refused(attester_protocol::Failure::Busy) => ApiError::busy(),
        _ => ApiError::attester_failed(),
    }
}

fn refuse(error: &ApiError) -> Response<AnswerBody> {
    let mut response = whole(error.status, error.to_json().into());
    let headers = response.headers_mut();
    if error.status == StatusCode::TOO_MANY_REQUESTS {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(error.retry.unwrap_or(1)));
    }
    if error.status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

pub(crate) fn json(bytes: Vec<u8>) -> Response<AnswerBody> {
    whole(StatusCode::OK, bytes.into())
}

fn whole(status: StatusCode, bytes: Bytes) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Whole(Some(bytes)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Challenge {
    challenge: Hex32,
}

#[derive(Serialize)]
struct ModelList {
    object: &'static str,
    data: [ModelEntry; 1],
}

#[derive(Serialize)]
struct ModelEntry {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    context_window: u32,
    /// What it is for.
    endpoints: &'static [&'static str],
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding_dimensions: Option<u32>,
}

/// `{"challenge":"…64 digits…"}` and some white space.
const MAX_CHALLENGE_BODY: usize = 256;

#[cfg(test)]
mod tests {
    use types::Blake3Digest;

    use super::*;

    #[test]
    fn a_model_has_three_names_and_no_others() {
        let model = ModelId::new("m", "1.5", Blake3Digest::of(b"m")).unwrap();
        let full = model.to_string();
        for name in ["m", "m@1.5", &full] {
            assert!(names(&model, name), "{name}");
        }
        for name in ["", "m@", "m@1", "M", "m@1.5:", "m@1.5:00", "gpt-4o", &format!("{full} ")] {
            assert!(!names(&model, name), "{name}");
        }
    }
}
