// SPDX-License-Identifier: Apache-2.0
//! The HTTP endpoints of `docs/protocol.md`, "Attestation service".

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderMap, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue},
    request::Parts,
};
use hyper::body::Incoming;
use key_release::{KeyReleaseRequest, SignedOwnerCommand};
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore,
    mpsc::{self, error::TrySendError},
};
use types::{Document as _, Hex32, Refusal, canonical};

use crate::{
    activity::Activity,
    body::{self, Answered, Unread, Whole},
    limits::Limits,
    openapi,
    reply::Refused,
    routes::{self, BYTES, Endpoint, Found, JSON, TEXT},
    service::{Exporter, Granted, RefusalNote, Service},
    shares::{Share, Shares},
};

/// What is answered, or the refusal.
type Reply = Result<Answer, Refused>;

/// Media type and body of an answer, and the body's share of the memory where it is large.
struct Answer {
    kind: &'static str,
    body: Bytes,
    share: Option<Share>,
    /// The attestation result that goes with a key.
    ear: Option<String>,
}

impl Answer {
    fn small(kind: &'static str, body: impl Into<Bytes>) -> Self {
        Self { kind, body: body.into(), share: None, ear: None }
    }
}

/// What all connections share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) service: Arc<Service>,
    /// Appraisals at the same time.
    pub(crate) appraisals: Arc<Semaphore>,
    /// Reads of the store for the public at the same time.
    pub(crate) reads: Arc<Semaphore>,
    /// Commands of owners at the same time: those that are looked at, one of which may be carried out.
    pub(crate) commands: Arc<Semaphore>,
    /// Memory for bodies of requests, in bytes.
    pub(crate) bodies: Arc<Shares>,
    /// Memory for answers that are large, in bytes.
    pub(crate) answers: Arc<Shares>,
    /// Refusals on their way to the audit log; what does not fit is counted for an entry that sums up.
    pub(crate) notes: mpsc::Sender<RefusalNote>,
}

/// Answers one request. Never fails: a refusal is an answer.
pub(crate) async fn answer(
    shared: Shared,
    exporter: Arc<Exporter>,
    client: IpAddr,
    activity: Activity,
    request: Request<Incoming>,
) -> Result<Response<Answered>, core::convert::Infallible> {
    let _asked = activity.request();
    let routed = async {
        shared.service.admit(client)?;
        route(&shared, exporter, client, request).await
    };
    let reply = match tokio::time::timeout(shared.service.limits().request, routed).await {
        Ok(reply) => reply,
        // Reading has a limit of its own, which is shorter: this is no fault of the client, who may try again.
        Err(_) => Err(Refused::unable("service_unavailable", &"the request was not done within its time")),
    };
    shared.service.gauges().requests.fetch_add(1, Ordering::Relaxed);
    let response = |status, answer| response(status, answer, &activity);
    Ok(match reply {
        Ok(mut answer) => {
            let ear = answer.ear.take().and_then(|token| HeaderValue::try_from(token).ok());
            let mut response = response(StatusCode::OK, answer);
            if let Some(token) = ear {
                response.headers_mut().insert(EAR, token);
            }
            response
        }
        Err(refused) => {
            tracing::info!(status = refused.status.as_u16(), codes = refused.codes().join(","), "refused");
            shared.service.count(refused.codes());
            let mut response = response(refused.status, Answer::small(JSON, refused.to_json()));
            if let Some(method) = refused.allow.and_then(|method| HeaderValue::from_str(method.as_str()).ok()) {
                response.headers_mut().insert(ALLOW, method);
            }
            response
        }
    })
}

async fn route(shared: &Shared, exporter: Arc<Exporter>, client: IpAddr, request: Request<Incoming>) -> Reply {
    let (parts, body) = request.into_parts();
    let (endpoint, rest) = match routes::find(&parts.method, parts.uri.path()) {
        Found::Endpoint(endpoint, rest) => (endpoint, rest.to_owned()),
        Found::OtherMethod(allowed) => return Err(Refused::other_method(allowed)),
        Found::Nothing => return Err(no_such_endpoint()),
    };
    match endpoint {
        Endpoint::Time => {
            let nonce = parts.uri.query().and_then(|query| query.strip_prefix("nonce="));
            let nonce: Hex32 = nonce
                .and_then(|nonce| nonce.parse().ok())
                .ok_or_else(|| Refused::malformed("nonce", "the query must be nonce=<64 lower-case hex digits>"))?;
            json(&shared.service.time(nonce))
        }
        Endpoint::Service => json(&shared.service.keys()),
        Endpoint::Challenge => {
            read(shared, client, body, 0).await?;
            json(&shared.service.challenge(client)?)
        }
        Endpoint::KeyRelease => {
            let body = read_json(shared, client, parts, body, KeyReleaseRequest::MAX_BYTES).await?;
            key_release(shared, exporter, client, body).await
        }
        Endpoint::OwnerCommand => {
            let body = read_json(shared, client, parts, body, SignedOwnerCommand::MAX_BYTES).await?;
            let permit = turn(&shared.commands).await?;
            let service = Arc::clone(&shared.service);
            let commanded = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let answer = service.owner_command(&body.bytes)?;
                service.count(["owner_command"]);
                json(&answer)
            });
            commanded.await.map_err(|e| Refused::unable("service_unavailable", &e))?
        }
        Endpoint::Checkpoint => public(shared, client, TEXT, |service| Ok(service.checkpoint()?.into_bytes())).await,
        Endpoint::Release => {
            let digest = rest.parse().map_err(|_| Refused::malformed("digest", "64 lower-case hex digits"))?;
            public(shared, client, JSON, move |service| service.release_bundle(&digest)).await
        }
        Endpoint::Tile => {
            // Generated clients write the slashes inside a parameter so.
            let tile = rest.replace("%2F", "/").replace("%2f", "/");
            public(shared, client, BYTES, move |service| service.tile(&tile)).await
        }
        Endpoint::ResultKeys => json(shared.service.result_keys()),
        Endpoint::OpenApi => Ok(Answer::small(JSON, openapi::bytes())),
    }
}

/// Reads something that everybody may see. Few at a time, so that releases find the store free; the memory of a large
/// answer is its client's.
async fn public(
    shared: &Shared,
    client: IpAddr,
    kind: &'static str,
    work: impl FnOnce(&Service) -> Result<Vec<u8>, Refused> + Send + 'static,
) -> Reply {
    let permit = turn(&shared.reads).await?;
    let shared = shared.clone();
    let read = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let body = Bytes::from(work(&shared.service)?);
        if body.len() <= SMALL {
            return Ok(Answer::small(kind, body));
        }
        let share = shared.answers.take(client, body.len()).ok_or_else(busy)?;
        Ok(Answer { kind, body, share: Some(share), ear: None })
    });
    read.await.map_err(|e| Refused::unable("service_unavailable", &e))?
}

/// Waits for one of few places, but not for long.
async fn turn(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Refused> {
    let waited = tokio::time::timeout(QUEUE, Arc::clone(places).acquire_owned()).await.map_err(|_| busy())?;
    waited.map_err(|e| Refused::unable("service_unavailable", &e))
}

async fn key_release(shared: &Shared, exporter: Arc<Exporter>, client: IpAddr, body: Whole) -> Reply {
    // Who has no challenge of this service, or did not work for it, costs no more than two hashes.
    shared.service.look_at(&body.bytes)?;
    let permit = turn(&shared.appraisals).await?;
    let shared = shared.clone();
    // The outcome is noted here: a peer that closes its connection ends the waiting below, but not this.
    let outcome = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        let outcome = shared.service.release(client, &body.bytes, &*exporter);
        shared.service.gauges().releases.observe(started.elapsed());
        match outcome {
            Ok(Granted { answer, result }) => {
                let service = Arc::clone(&shared.service);
                // After the answer, and within the same limit.
                if service.watches() {
                    tokio::task::spawn_blocking(move || {
                        let _permit = permit;
                        service.watch(&body.bytes);
                    });
                }
                tracing::info!(model = %answer.model, audit_index = answer.audit.index, "key released");
                shared.service.count(["released"]);
                Ok(Answer { ear: result, ..json(&answer)? })
            }
            Err((refused, note)) => {
                if let Some(note) = note
                    && let Err(TrySendError::Full(note) | TrySendError::Closed(note)) = shared.notes.try_send(note)
                {
                    shared.service.count_refusal(&note);
                }
                Err(refused)
            }
        }
    });
    outcome.await.map_err(|e| Refused::unable("service_unavailable", &e))?
}

/// Reads a body of JSON, of at most `max` bytes. The head is let go before: its values hold the buffer that they were
/// read into, as long as a request waits for its turn.
async fn read_json(shared: &Shared, client: IpAddr, head: Parts, body: Incoming, max: usize) -> Result<Whole, Refused> {
    is_json(&head.headers)?;
    drop(head);
    read(shared, client, body, max).await
}

/// No type means JSON, as it always did; a coding is never undone.
fn is_json(headers: &HeaderMap) -> Result<(), Refused> {
    let kind = headers.get(CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or("?"));
    let essence = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    let coded = headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
    if coded || essence.is_some_and(|essence| !essence.eq_ignore_ascii_case(JSON)) {
        let fix = "send content-type: application/json, without a content-encoding";
        let detail = "the body must be application/json without a content coding";
        let reason = Refusal::new("media_type", "content-type", detail, fix);
        return Err(Refused::one(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
    }
    Ok(())
}

async fn read(shared: &Shared, client: IpAddr, body: Incoming, max: usize) -> Result<Whole, Refused> {
    let Limits { stall, body: whole, .. } = shared.service.limits();
    let whole = tokio::time::timeout(whole, body::read(&shared.bodies, client, body, max, stall)).await;
    whole.unwrap_or(Err(Unread::Slow)).map_err(|unread| match unread {
        Unread::TooLarge => too_large(max),
        Unread::Busy => busy(),
        Unread::Slow => slow(),
    })
}

fn slow() -> Refused {
    let reason = Refusal::new("request_timeout", "request", "the request took too long", "send it faster");
    Refused::one(StatusCode::REQUEST_TIMEOUT, reason)
}

fn busy() -> Refused {
    let reason = Refusal::new("busy", "service", "too much is under way at once", "try again in a few seconds");
    Refused::one(StatusCode::TOO_MANY_REQUESTS, reason)
}

fn too_large(max: usize) -> Refused {
    let detail = format!("the body must be complete and have at most {max} bytes");
    Refused::malformed("body", detail)
}

fn json<T: serde::Serialize>(value: &T) -> Reply {
    let bytes = canonical::to_bytes(value).map_err(|e| Refused::unable("service_unavailable", &e))?;
    Ok(Answer::small(JSON, bytes))
}

fn response(status: StatusCode, answer: Answer, activity: &Activity) -> Response<Answered> {
    let Answer { kind, body, share, ear: _ } = answer;
    let mut response = Response::new(Answered::new(body, share, activity.answer(Instant::now())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        headers.insert(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn no_such_endpoint() -> Refused {
    let reason = Refusal::new("not_found", "path", "there is no such endpoint", "see the protocol's page");
    Refused::one(StatusCode::NOT_FOUND, reason)
}

/// Header with the attestation result that goes with a key.
const EAR: &str = "chrysalis-ear";
/// Waiting for a turn.
const QUEUE: Duration = Duration::from_secs(5);
/// Answers up to this size are not counted: the connections' number is their limit.
const SMALL: usize = 16 * 1024;
