// SPDX-License-Identifier: Apache-2.0
//! The HTTP endpoints of `docs/protocol.md`, "Attestation service".

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::HeaderValue};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body, Incoming};
use key_release::{KeyReleaseRequest, SignedOwnerCommand};
use tokio::sync::{
    Semaphore,
    mpsc::{self, error::TrySendError},
};
use types::{Document as _, Hex32, Refusal, canonical};

use crate::{
    reply::Refused,
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
        route(&shared, exporter, request).await
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
            response(refused.status, JSON, refused.to_json())
        }
    })
}

async fn route(shared: &Shared, exporter: Arc<Exporter>, request: Request<Incoming>) -> Reply {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let blocking = |work: Work| {
        let service = Arc::clone(&shared.service);
        tokio::task::spawn_blocking(move || work(&service))
    };
    let joined = match (&parts.method, path.as_str()) {
        (&Method::GET, "/v1/time") => {
            let nonce: Hex32 = query
                .strip_prefix("nonce=")
                .and_then(|nonce| nonce.parse().ok())
                .ok_or_else(|| Refused::malformed("nonce", "the query must be nonce=<64 lower-case hex digits>"))?;
            return json(&shared.service.time(nonce));
        }
        (&Method::POST, "/v1/challenges") => {
            read(body, 0).await?;
            return json(&shared.service.challenge()?);
        }
        (&Method::POST, "/v1/key-release") => {
            let body = read(body, KeyReleaseRequest::MAX_BYTES).await?;
            return key_release(shared, exporter, body).await;
        }
        (&Method::POST, "/v1/owner-commands") => {
            let body = read(body, SignedOwnerCommand::MAX_BYTES).await?;
            blocking(Box::new(move |service| {
                let answer = service.owner_command(&body)?;
                service.count(["owner_command"]);
                json(&answer)
            }))
        }
        (&Method::GET, "/v1/log/checkpoint") => {
            blocking(Box::new(|service| Ok((TEXT, service.checkpoint()?.into_bytes()))))
        }
        (&Method::GET, path) => match (path.strip_prefix("/v1/releases/"), path.strip_prefix("/v1/log/")) {
            (Some(digest), _) => {
                let digest = digest.parse().map_err(|_| Refused::malformed("digest", "64 lower-case hex digits"))?;
                blocking(Box::new(move |service| Ok((JSON, service.release_bundle(&digest)?))))
            }
            (_, Some(tile)) => {
                let tile = tile.to_owned();
                blocking(Box::new(move |service| Ok((BYTES, service.tile(&tile)?))))
            }
            _ => return Err(no_such_endpoint()),
        },
        _ => return Err(no_such_endpoint()),
    };
    joined.await.map_err(|e| Refused::unable("service_unavailable", &e))?
}

async fn key_release(shared: &Shared, exporter: Arc<Exporter>, body: Bytes) -> Reply {
    let Ok(permit) = tokio::time::timeout(QUEUE, Arc::clone(&shared.appraisals).acquire_owned()).await else {
        let reason = Refusal::new("busy", "service", "too many key releases at once", "try again in a few seconds");
        return Err(Refused::one(StatusCode::TOO_MANY_REQUESTS, reason));
    };
    let permit = permit.map_err(|e| Refused::unable("service_unavailable", &e))?;
    let shared = shared.clone();
    // The outcome is noted here: a peer that closes its connection ends the waiting below, but not this.
    let outcome = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        let outcome = shared.service.release(&body, &*exporter);
        shared.service.gauges().releases.observe(started.elapsed());
        match outcome {
            Ok(answer) => {
                let service = Arc::clone(&shared.service);
                // After the answer, and within the same limit.
                tokio::task::spawn_blocking(move || {
                    let _permit = permit;
                    service.watch(&body);
                });
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

/// Reads a body of at most `max` bytes.
async fn read(body: Incoming, max: usize) -> Result<Bytes, Refused> {
    if body.size_hint().lower() > u64::try_from(max).unwrap_or(u64::MAX) {
        return Err(too_large(max));
    }
    Ok(Limited::new(body, max).collect().await.map_err(|_| too_large(max))?.to_bytes())
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
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
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

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const BYTES: &str = "application/octet-stream";
/// A whole request, body included.
const REQUEST: Duration = Duration::from_secs(30);
/// Waiting for a turn.
const QUEUE: Duration = Duration::from_secs(5);
