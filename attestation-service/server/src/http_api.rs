// SPDX-License-Identifier: Apache-2.0
//! The HTTP endpoints of `docs/protocol.md`, "Attestation service".

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue},
};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Incoming};
use key_release::{KeyReleaseRequest, SignedOwnerCommand};
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore,
    mpsc::{self, error::TrySendError},
};
use types::{Document as _, Hex32, Refusal, canonical};

use crate::{
    openapi,
    reply::Refused,
    routes::{self, BYTES, Endpoint, Found, JSON, TEXT},
    service::{Exporter, RefusalNote, Service},
};

/// Media type and body of an answer.
type Reply = Result<(&'static str, Vec<u8>), Refused>;

/// Work on the store, off the network's threads.
type Work = Box<dyn FnOnce(&Service) -> Reply + Send>;

/// What all connections share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) service: Arc<Service>,
    /// Appraisals at the same time.
    pub(crate) appraisals: Arc<Semaphore>,
    /// Bytes of bodies that may still be taken into memory.
    pub(crate) bodies: Arc<Semaphore>,
    /// Refusals on their way to the audit log; what does not fit is counted for an entry that sums up.
    pub(crate) notes: mpsc::Sender<RefusalNote>,
}

/// Answers one request. Never fails: a refusal is an answer.
pub(crate) async fn answer(
    shared: Shared,
    exporter: Arc<Exporter>,
    client: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, core::convert::Infallible> {
    let routed = async {
        shared.service.admit(client)?;
        route(&shared, exporter, client, request).await
    };
    let reply = match tokio::time::timeout(REQUEST, routed).await {
        Ok(reply) => reply,
        Err(_) => Err(Refused::one(
            StatusCode::REQUEST_TIMEOUT,
            Refusal::new("request_timeout", "request", "the request took too long", "send it faster"),
        )),
    };
    Ok(match reply {
        Ok((kind, body)) => response(StatusCode::OK, kind, body),
        Err(refused) => {
            tracing::info!(status = refused.status.as_u16(), codes = refused.codes().join(","), "refused");
            shared.service.count(refused.codes());
            let mut response = response(refused.status, JSON, refused.to_json());
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
    let blocking = |work: Work| {
        let service = Arc::clone(&shared.service);
        tokio::task::spawn_blocking(move || work(&service))
    };
    let joined = match endpoint {
        Endpoint::Time => {
            let nonce = parts.uri.query().and_then(|query| query.strip_prefix("nonce="));
            let nonce: Hex32 = nonce
                .and_then(|nonce| nonce.parse().ok())
                .ok_or_else(|| Refused::malformed("nonce", "the query must be nonce=<64 lower-case hex digits>"))?;
            return json(&shared.service.time(nonce));
        }
        Endpoint::Service => return json(&shared.service.keys()),
        Endpoint::Challenge => {
            read(shared, body, 0).await?;
            return json(&shared.service.challenge(client)?);
        }
        Endpoint::KeyRelease => {
            let body = read_json(shared, &parts.headers, body, KeyReleaseRequest::MAX_BYTES).await?;
            return key_release(shared, exporter, client, body).await;
        }
        Endpoint::OwnerCommand => {
            let body = read_json(shared, &parts.headers, body, SignedOwnerCommand::MAX_BYTES).await?;
            blocking(Box::new(move |service| {
                let answer = service.owner_command(&body.bytes)?;
                service.count(["owner_command"]);
                json(&answer)
            }))
        }
        Endpoint::Checkpoint => blocking(Box::new(|service| Ok((TEXT, service.checkpoint()?.into_bytes())))),
        Endpoint::Release => {
            let digest = rest.parse().map_err(|_| Refused::malformed("digest", "64 lower-case hex digits"))?;
            blocking(Box::new(move |service| Ok((JSON, service.release_bundle(&digest)?))))
        }
        Endpoint::Tile => {
            // Generated clients write the slashes inside a parameter so.
            let tile = rest.replace("%2F", "/").replace("%2f", "/");
            blocking(Box::new(move |service| Ok((BYTES, service.tile(&tile)?))))
        }
        Endpoint::OpenApi => return Ok((JSON, openapi::document().to_string().into_bytes())),
    };
    joined.await.map_err(|e| Refused::unable("service_unavailable", &e))?
}

async fn key_release(shared: &Shared, exporter: Arc<Exporter>, client: IpAddr, body: Whole) -> Reply {
    let Ok(permit) = tokio::time::timeout(QUEUE, Arc::clone(&shared.appraisals).acquire_owned()).await else {
        return Err(busy());
    };
    let permit = permit.map_err(|e| Refused::unable("service_unavailable", &e))?;
    let shared = shared.clone();
    // The outcome is noted here: a peer that closes its connection ends the waiting below, but not this.
    let outcome = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        let outcome = shared.service.release(client, &body.bytes, &*exporter);
        shared.service.gauges().releases.observe(started.elapsed());
        match outcome {
            Ok(answer) => {
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
                json(&answer)
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

/// Reads a body of JSON, of at most `max` bytes. No type means JSON, as it always did; a coding is never undone.
async fn read_json(shared: &Shared, headers: &HeaderMap, body: Incoming, max: usize) -> Result<Whole, Refused> {
    let kind = headers.get(CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or("?"));
    let essence = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    let coded = headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
    if coded || essence.is_some_and(|essence| !essence.eq_ignore_ascii_case(JSON)) {
        let fix = "send content-type: application/json, without a content-encoding";
        let detail = "the body must be application/json without a content coding";
        let reason = Refusal::new("media_type", "content-type", detail, fix);
        return Err(Refused::one(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
    }
    read(shared, body, max).await
}

/// A body, and its share of what all bodies together may take.
struct Whole {
    bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

/// Reads a body of at most `max` bytes. Its share of the memory grows with what has come, not with what was announced: a
/// slow peer holds what it sent.
async fn read(shared: &Shared, mut body: Incoming, max: usize) -> Result<Whole, Refused> {
    if body.size_hint().lower() > u64::try_from(max).unwrap_or(u64::MAX) {
        return Err(too_large(max));
    }
    let mut bytes = BytesMut::new();
    let mut share: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| too_large(max))?.into_data() else { continue };
        if data.len() > max.saturating_sub(bytes.len()) {
            return Err(too_large(max));
        }
        let permits = u32::try_from(data.len()).map_err(|_| too_large(max))?;
        let more = Arc::clone(&shared.bodies).try_acquire_many_owned(permits).map_err(|_| busy())?;
        match &mut share {
            Some(share) => share.merge(more),
            None => share = Some(more),
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Whole { bytes: bytes.freeze(), _share: share })
}

fn busy() -> Refused {
    let reason = Refusal::new("busy", "service", "too many key releases at once", "try again in a few seconds");
    Refused::one(StatusCode::TOO_MANY_REQUESTS, reason)
}

fn too_large(max: usize) -> Refused {
    let detail = format!("the body must be complete and have at most {max} bytes");
    Refused::malformed("body", detail)
}

fn json<T: serde::Serialize>(value: &T) -> Reply {
    let bytes = canonical::to_bytes(value).map_err(|e| Refused::unable("service_unavailable", &e))?;
    Ok((JSON, bytes))
}

fn response(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
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

/// A whole request, body included.
const REQUEST: Duration = Duration::from_secs(30);
/// Waiting for a turn.
const QUEUE: Duration = Duration::from_secs(5);
