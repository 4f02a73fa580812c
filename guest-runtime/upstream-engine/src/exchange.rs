// SPDX-License-Identifier: Apache-2.0
//! One request to the server, on a connection of its own. Dropping it closes the connection: the server stops computing.

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{path::Path, time::Duration};
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};
use zeroize::Zeroizing;

/// Why there is no answer. Nothing of what the server said is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nobody listens, or the connection broke.
    Broken,
    /// It said nothing for too long.
    Silent,
    /// It said too much.
    TooLong,
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    /// Whether the body is a stream of events.
    pub(crate) is_stream: bool,
    body: Incoming,
    silence: Duration,
    _connection: Connection,
}

/// Ends the connection's task when it is dropped.
#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks. The body is wiped when it was sent.
pub(crate) async fn ask(
    socket: &Path,
    silence: Duration,
    method: Method,
    path: &str,
    body: Zeroizing<Vec<u8>>,
) -> Result<Answered, Fault> {
    timeout(silence, send(socket, silence, method, path, body)).await.map_err(|_| Fault::Silent)?
}

async fn send(
    socket: &Path,
    silence: Duration,
    method: Method,
    path: &str,
    body: Zeroizing<Vec<u8>>,
) -> Result<Answered, Fault> {
    let stream = UnixStream::connect(socket).await.map_err(|_| Fault::Broken)?;
    let handshake = http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|_| Fault::Broken)?;
    let connection = Connection(tokio::spawn(async move {
        // Whatever it says, the request's own end says that it failed.
        let _ = connection.await;
    }));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from_owner(body)))
        .map_err(|_| Fault::Broken)?;
    let (head, body) = sender.send_request(request).await.map_err(|_| Fault::Broken)?.into_parts();
    let kind = head.headers.get(header::CONTENT_TYPE).map(http::HeaderValue::as_bytes).unwrap_or_default();
    let is_stream = kind.starts_with(b"text/event-stream");
    Ok(Answered { status: head.status, is_stream, body, silence, _connection: connection })
}

impl Answered {
    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            let frame = timeout(self.silence, self.body.frame()).await.map_err(|_| Fault::Silent)?;
            let Some(frame) = frame else { return Ok(None) };
            if let Ok(bytes) = frame.map_err(|_| Fault::Broken)?.into_data() {
                return Ok(Some(bytes));
            }
        }
    }

    /// The whole body, at most `most` bytes.
    pub(crate) async fn whole(mut self, most: usize) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let mut all = Zeroizing::new(Vec::new());
        while let Some(bytes) = self.next().await? {
            if all.len().saturating_add(bytes.len()) > most {
                return Err(Fault::TooLong);
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }
}

/// Longest head of an answer, and most that is read at once.
const MAX_HEAD: usize = 64 << 10;
