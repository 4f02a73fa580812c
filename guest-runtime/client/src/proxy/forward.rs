// SPDX-License-Identifier: Apache-2.0
//! Forwards requests, and passes answers on as far as their receipts allow.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::mpsc;
use types::Refusal;

use super::Shared;
use crate::{
    chat::{PATIENCE, Reading, Seen, decode_receipt, next_block, next_bytes, receipt_missing},
    connection::AttestedConnection,
    error::ClientError,
    openai::{error_json, response_of},
    sse::Blocks,
};

/// A body that is whole, or one that is passed on while it comes.
#[derive(Debug)]
pub(crate) enum Passed {
    Whole(Option<Bytes>),
    Events(mpsc::Receiver<Bytes>),
}

impl Body for Passed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Events(events) => events.poll_recv(cx).map(|event| event.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// Answers one local request.
pub(crate) async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Passed>, Infallible> {
    Ok(route(&shared, request).await.unwrap_or_else(|(status, reasons)| {
        let mut response = whole(status, error_json(&reasons).to_string().into());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }))
}

type Refused = (StatusCode, Vec<Refusal>);

async fn route(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Response<Passed>, Refused> {
    check_caller(request.headers())?;
    let path = request.uri().path().to_owned();
    if path == "/chrysalis/verdict" {
        return Ok(whole(StatusCode::OK, shared.pool.newest_verdict().to_string().into()));
    }
    if !path.starts_with("/v1/") || path.starts_with("/v1/attestation") {
        let fix = "use the paths of the OpenAI API under /v1/";
        return Err(local(StatusCode::NOT_FOUND, "not_found", "path", "the proxy does not forward this path", fix));
    }
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_REQUEST).collect().await.map_err(|_| {
        let detail = format!("the body is longer than {MAX_REQUEST} bytes, or ended early");
        local(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", "body", &detail, "send a shorter request")
    })?;
    let ask =
        Ask { method: head.method, path, headers: forwarded(&head.headers, &REQUEST_HEADERS), body: body.to_bytes() };
    let (connection, response) = send(shared, &ask).await.map_err(|error| refused(&error))?;
    answer(shared, ask, connection, response).await
}

/// A request as it is sent to the guest. Its headers may hold an API key: nothing of it is printed.
struct Ask {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

/// On a waiting connection first; a new one where that had been closed before the request was sent. What was sent is never
/// sent again: the guest may have answered it, and have the answer paid for.
async fn send(shared: &Shared, ask: &Ask) -> Result<(AttestedConnection, Response<Incoming>), ClientError> {
    if let Some(connection) = shared.pool.idle() {
        match send_on(shared, connection, ask).await {
            Err(ClientError::Unsent) => {}
            other => return other,
        }
    }
    match send_on(shared, shared.pool.fresh().await?, ask).await {
        // Its verdict may have become void before anything was sent. Once more, and no oftener: the guest decides about it, too.
        Err(ClientError::Unsent) => send_on(shared, shared.pool.fresh().await?, ask).await,
        other => other,
    }
}

async fn send_on(
    shared: &Shared,
    mut connection: AttestedConnection,
    ask: &Ask,
) -> Result<(AttestedConnection, Response<Incoming>), ClientError> {
    let patience = shared.patience;
    // A new proof takes a while, in which the policy may have been replaced.
    let covering = tokio::time::timeout(patience, connection.cover()).await;
    covering.map_err(|_| ClientError::Broken("a proof was awaited"))??;
    if !shared.pool.is_of_now(&connection) {
        return Err(ClientError::Unsent);
    }
    let sending = connection.send(ask.method.clone(), &ask.path, ask.headers.clone(), ask.body.clone());
    let response = tokio::time::timeout(patience, sending).await;
    let response = response.map_err(|_| ClientError::Broken("an answer was awaited"))??;
    Ok((connection, response))
}

async fn answer(
    shared: &Arc<Shared>,
    ask: Ask,
    connection: AttestedConnection,
    response: Response<Incoming>,
) -> Result<Response<Passed>, Refused> {
    let (head, body) = response.into_parts();
    let headers = forwarded(&head.headers, &RESPONSE_HEADERS);
    let kind = head.headers.get(header::CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    let has_receipt = needs_receipt(&ask.path, head.status);
    if has_receipt && kind.starts_with(b"text/event-stream") {
        let (sender, receiver) = mpsc::channel(EVENTS_AHEAD);
        tokio::spawn(pass_stream(Arc::clone(shared), connection, ask.body, body, sender));
        return Ok(with_headers(Response::new(Passed::Events(receiver)), headers));
    }
    let bytes = Limited::new(body, MAX_ANSWER).collect().await;
    let bytes = bytes.map_err(|_| refused(&ClientError::Broken("the answer was read")))?.to_bytes();
    if has_receipt {
        check_whole(&connection, &ask.body, head.headers.get(RECEIPT), &bytes)
            .await
            .map_err(|error| refused(&error))?;
    }
    shared.pool.give_back(connection);
    Ok(with_headers(whole(head.status, bytes), headers))
}

/// Whatever is not an error says something of the model, and passes with a receipt only.
fn needs_receipt(path: &str, status: StatusCode) -> bool {
    matches!(path, "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings")
        && !status.is_client_error()
        && !status.is_server_error()
}

async fn check_whole(
    connection: &AttestedConnection,
    request: &[u8],
    header: Option<&HeaderValue>,
    answer: &[u8],
) -> Result<(), ClientError> {
    let base64 = header.and_then(|value| value.to_str().ok()).ok_or_else(receipt_missing)?;
    let receipt = decode_receipt(base64)?;
    let response = response_of(answer).ok_or_else(|| {
        ClientError::refuse("answer_malformed", "answer", "the answer is not the expected JSON", "ask again")
    })?;
    connection.accept_receipt(receipt, request, &response).await
}

/// Passes events on as they come, but `[DONE]` only when the receipt was verified and kept.
async fn pass_stream(
    shared: Arc<Shared>,
    connection: AttestedConnection,
    request: Bytes,
    body: Incoming,
    sender: mpsc::Sender<Bytes>,
) {
    let passing = pass_events(shared.patience, &connection, &request, body, &sender);
    let result = tokio::select! {
        result = passing => result,
        // Dropping the connection cancels the request in the guest.
        () = sender.closed() => return,
    };
    match result {
        Ok(()) => shared.pool.give_back(connection),
        Err(error) => {
            let event = format!("data: {}\n\n", error_json(&error.reasons()));
            // A client that is gone needs no error.
            let _ = sender.send(event.into()).await;
        }
    }
}

async fn pass_events(
    mut patience: Duration,
    connection: &AttestedConnection,
    request: &[u8],
    mut body: Incoming,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), ClientError> {
    let gone = |_| ClientError::Broken("the local client was answered");
    let (mut blocks, mut reading) = (Blocks::default(), Reading::default());
    let (mut held, mut failed) = (Vec::new(), false);
    // The head comes when the engine has taken the request, which may then wait for others: the first text has as long.
    while let Some(bytes) = next_bytes(&mut body, patience).await? {
        blocks.push(&bytes);
        while let Some(block) = next_block(&mut blocks)? {
            match reading.take(&block)? {
                Seen::Done => {
                    held = block.raw;
                    continue;
                }
                Seen::Receipt(receipt) => {
                    connection.accept_receipt(*receipt, request, &reading.response()?).await?;
                    sender.send(std::mem::take(&mut held).into()).await.map_err(gone)?;
                }
                Seen::Failed(_) => failed = true,
                Seen::Text(_) => patience = PATIENCE,
                Seen::Other => {}
            }
            sender.send(block.raw.into()).await.map_err(gone)?;
        }
    }
    if failed || reading.receipt.is_some() { Ok(()) } else { Err(receipt_missing()) }
}

/// A browser page of a stranger must not reach the proxy: neither under a name of its own (DNS rebinding) nor across
/// origins, where it could not read the answer but would have it paid for.
fn check_caller(headers: &HeaderMap) -> Result<(), Refused> {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if !is_loopback(text(header::HOST).unwrap_or_default()) {
        let fix = "call the proxy as localhost or by its loopback address";
        return Err(local(StatusCode::FORBIDDEN, "host_not_local", "host", "the request names another host", fix));
    }
    let strange = |origin: &str| !origin.split_once("://").is_some_and(|(_, authority)| is_loopback(authority));
    if text(header::ORIGIN).is_some_and(strange) {
        let fix = "call the proxy from a program, or from a page that this machine serves";
        return Err(local(StatusCode::FORBIDDEN, "origin_not_local", "origin", "a page of another origin asks", fix));
    }
    Ok(())
}

/// Whether `HOST` or `HOST:PORT` is this machine, without asking a resolver.
fn is_loopback(authority: &str) -> bool {
    let name =
        authority.rsplit_once(':').map_or(authority, |(name, port)| if port.ends_with(']') { authority } else { name });
    matches!(name, "localhost" | "[::1]") || name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
}

fn forwarded(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let mut passed = HeaderMap::new();
    for name in names {
        // A guest refuses two keys; it must see both.
        for value in headers.get_all(name) {
            passed.append(name.clone(), value.clone());
        }
    }
    passed
}

fn with_headers(mut response: Response<Passed>, headers: HeaderMap) -> Response<Passed> {
    response.headers_mut().extend(headers);
    response
}

fn whole(status: StatusCode, bytes: Bytes) -> Response<Passed> {
    let mut response = Response::new(Passed::Whole(Some(bytes)));
    *response.status_mut() = status;
    response
}

fn refused(error: &ClientError) -> Refused {
    let status = match error {
        ClientError::Answered { status, .. } => StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_GATEWAY),
        _ => StatusCode::BAD_GATEWAY,
    };
    (status, error.reasons())
}

fn local(status: StatusCode, code: &str, field: &str, detail: &str, fix: &str) -> Refused {
    (status, vec![Refusal::new(code, field, detail, fix)])
}

const RECEIPT: HeaderName = HeaderName::from_static("chrysalis-receipt");
const REQUEST_HEADERS: [HeaderName; 3] = [header::CONTENT_TYPE, header::ACCEPT, header::AUTHORIZATION];
const RESPONSE_HEADERS: [HeaderName; 11] = [
    header::CONTENT_TYPE,
    header::CACHE_CONTROL,
    header::RETRY_AFTER,
    header::WWW_AUTHENTICATE,
    RECEIPT,
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];
/// The guest takes no more.
const MAX_REQUEST: usize = 1 << 20;
const MAX_ANSWER: usize = 40 << 20;
const EVENTS_AHEAD: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_status_but_an_error_s_passes_an_answer_without_a_receipt() {
        for status in [200, 201, 206, 299, 302, 600, 999] {
            for path in ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"] {
                assert!(needs_receipt(path, StatusCode::from_u16(status).unwrap()), "{path} {status}");
            }
        }
        for status in [400, 428, 429, 500, 503] {
            assert!(!needs_receipt("/v1/chat/completions", StatusCode::from_u16(status).unwrap()), "{status}");
        }
        assert!(!needs_receipt("/v1/models", StatusCode::OK));
    }

    fn caller(host: &str, origin: Option<&str>) -> Option<String> {
        let mut headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_str(host).unwrap())]);
        headers.extend(origin.map(|origin| (header::ORIGIN, HeaderValue::from_str(origin).unwrap())));
        check_caller(&headers).err().map(|(_, reasons)| reasons[0].code.clone())
    }

    #[test]
    fn pages_of_strangers_are_refused() {
        for host in ["localhost", "localhost:8080", "127.0.0.1:8080", "[::1]", "[::1]:8080"] {
            assert_eq!(caller(host, None), None, "{host}");
            assert_eq!(caller(host, Some(&format!("http://{host}"))), None, "{host}");
        }
        for host in ["", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "10.0.0.1"] {
            assert_eq!(caller(host, None).as_deref(), Some("host_not_local"), "{host}");
            let origin = format!("https://{host}");
            assert_eq!(caller("localhost", Some(&origin)).as_deref(), Some("origin_not_local"), "{host}");
        }
        for origin in ["null", "", "localhost", "http://localhost@evil.example", "http://localhost/evil"] {
            assert_eq!(caller("localhost", Some(origin)).as_deref(), Some("origin_not_local"), "{origin}");
        }
    }
}
