// SPDX-License-Identifier: Apache-2.0
//! GET over HTTP/1.1, with or without TLS. Redirections are not followed; nothing is decoded.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::error::SourceError;
use crate::source::s3::{MAX_ERROR, Signer, concerns_key};
use crate::source::sigv4::Keys;
use crate::source::{Limits, PART, PARTS, Parts};

/// Why an address cannot be a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceAddressError {
    /// Its form.
    #[error(
        "a source is an absolute path, or http://HOST[:PORT][/PATH] or https://…, without user or fragment, or s3://NAME[/PREFIX]"
    )]
    Form,
    /// A field of a bucket.
    #[error("{rule}")]
    Bucket {
        /// Which.
        field: &'static str,
        /// What must hold.
        rule: &'static str,
    },
    /// What stands behind a bucket's name.
    #[error("a prefix has at most 900 bytes, no empty segment, `.`, `..` or control character")]
    Prefix,
    /// The certificates that https is judged by.
    #[error("the certificates for https cannot be used: {0}")]
    Authorities(String),
}

/// Where requests go.
#[derive(Clone)]
pub(crate) struct Endpoint {
    tls: Option<Arc<ClientConfig>>,
    pub(crate) host: String,
    port: u16,
    pub(crate) path: String,
    pub(crate) query: String,
    /// Of a bucket, whose requests are signed.
    pub(crate) signer: Option<Arc<Signer>>,
}

impl core::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.label())
    }
}

impl Endpoint {
    pub(crate) fn parse(
        address: &str,
        authorities: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> Result<Self, SourceAddressError> {
        let bad = SourceAddressError::Form;
        let uri: Uri = address.parse().map_err(|_| bad.clone())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| bad.clone())?;
        let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        if !plain || address.contains('#') {
            return Err(bad);
        }
        let (tls, port) = match uri.scheme_str() {
            Some("http") => (None, 80),
            Some("https") => (Some(tls(authorities)?), 443),
            _ => return Err(bad),
        };
        Ok(Self {
            tls,
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(port),
            path: uri.path().trim_end_matches('/').to_owned(),
            query: uri.query().map(|query| format!("?{query}")).unwrap_or_default(),
            signer: None,
        })
    }

    pub(crate) fn label(&self) -> String {
        if let Some(signer) = &self.signer {
            return signer.label.clone();
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }

    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{host}:{}", self.port)
    }

    /// `Host`. A signature covers it, and clients of stores leave the scheme's port out.
    fn host_header(&self) -> String {
        let named = self.authority();
        let usual = if self.tls.is_some() { ":443" } else { ":80" };
        if self.signer.is_none() { named } else { named.strip_suffix(usual).map_or(named.clone(), str::to_owned) }
    }

    /// Whom to connect to. Names below `localhost` are this machine's (RFC 6761, section 6.3), also where its resolver does
    /// not know them.
    fn reached(&self) -> &str {
        let last = self.host.rsplit_once('.').map(|(_, last)| last);
        if last.is_some_and(|last| last.eq_ignore_ascii_case(LOCALHOST)) { LOCALHOST } else { &self.host }
    }

    /// A request, and the key that it is signed with.
    async fn request(
        &self,
        name: &str,
        span: Option<Span>,
    ) -> Result<(Request<Empty<Bytes>>, Option<Keys>), SourceError> {
        let path = format!("{}/{name}", self.path);
        let mut request = Request::get(format!("{path}{}", self.query))
            .header(header::HOST, self.host_header())
            .header(header::USER_AGENT, "chrysalis-host-agent")
            .header(header::ACCEPT_ENCODING, "identity");
        if let Some(Span { from: from @ 1.., length }) = span {
            request = request.header(header::RANGE, format!("bytes={from}-{}", length.saturating_sub(1)));
        }
        let mut request = request.body(Empty::<Bytes>::new()).map_err(|_| SourceError::Http)?;
        let Some(signer) = self.signer.clone() else { return Ok((request, None)) };
        let mut headers = std::mem::take(request.headers_mut());
        let (headers, keys) = reading(move || signer.sign(&path, &mut headers).map(|keys| (headers, keys))).await?;
        *request.headers_mut() = headers;
        Ok((request, Some(keys)))
    }
}

/// What reads the file of credentials, in a thread of its own.
async fn reading<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| SourceError::Io { what: "signing", kind: io::ErrorKind::Other })?
}

/// A file of at most `most` bytes.
pub(crate) fn whole(endpoint: &Arc<Endpoint>, name: &str, most: usize, limits: Limits) -> Parts {
    get(endpoint, name, None, u64::try_from(most).unwrap_or(u64::MAX), limits)
}

/// A file of exactly `length` bytes, from `from` on.
pub(crate) fn range(endpoint: &Arc<Endpoint>, name: &str, from: u64, length: u64, limits: Limits) -> Parts {
    get(endpoint, name, Some(Span { from, length }), length.saturating_sub(from), limits)
}

#[derive(Debug, Clone, Copy)]
struct Span {
    from: u64,
    length: u64,
}

fn get(endpoint: &Arc<Endpoint>, name: &str, span: Option<Span>, most: u64, limits: Limits) -> Parts {
    let (sender, parts) = mpsc::channel(PARTS);
    let (endpoint, name) = (Arc::clone(endpoint), name.to_owned());
    tokio::spawn(async move {
        let outcome = tokio::select! {
            outcome = with_renewed_key(&endpoint, &name, span, most, limits, &sender) => outcome,
            () = sender.closed() => return,
        };
        if let Err(error) = outcome {
            let _ = sender.send(Err(error)).await;
        }
    });
    parts
}

type Sender = mpsc::Sender<Result<Bytes, SourceError>>;

/// A failure, and the key of the request where the store refused it for its key.
struct Failure {
    error: SourceError,
    refused: Option<Keys>,
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self { error, refused: None }
    }
}

/// Asks once more where the store refused a key and the file holds another one by now: a key may be renewed between two
/// requests of a fetch, and between a signature and its judgement.
async fn with_renewed_key(
    endpoint: &Endpoint,
    name: &str,
    span: Option<Span>,
    most: u64,
    limits: Limits,
    sender: &Sender,
) -> Result<(), SourceError> {
    let Err(Failure { error, refused }) = exchange(endpoint, name, span, most, limits, sender).await else {
        return Ok(());
    };
    let (Some(signer), Some(used)) = (endpoint.signer.clone(), refused) else { return Err(error) };
    if !reading(move || signer.renewed(&used)).await? {
        return Err(error);
    }
    exchange(endpoint, name, span, most, limits, sender).await.map_err(|failure| failure.error)
}

async fn exchange(
    endpoint: &Endpoint,
    name: &str,
    span: Option<Span>,
    most: u64,
    limits: Limits,
    sender: &Sender,
) -> Result<(), Failure> {
    let connecting = async {
        let stream = TcpStream::connect((endpoint.reached(), endpoint.port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    let stream = within(limits.connect, connecting).await?;
    let Some(config) = &endpoint.tls else { return talk(stream, endpoint, name, span, most, limits, sender).await };
    let host = ServerName::try_from(endpoint.host.clone()).map_err(|_| SourceError::Http)?;
    let connector = TlsConnector::from(Arc::clone(config));
    let stream = within(limits.connect, async { connector.connect(host, stream).await }).await?;
    talk(stream, endpoint, name, span, most, limits, sender).await
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> Result<T, SourceError> {
    let failed = |kind| SourceError::Io { what: "connecting", kind };
    match timeout(limit, work).await {
        Ok(done) => done.map_err(|error| failed(error.kind())),
        Err(_) => Err(failed(io::ErrorKind::TimedOut)),
    }
}

async fn talk<S>(
    stream: S,
    endpoint: &Endpoint,
    name: &str,
    span: Option<Span>,
    most: u64,
    limits: Limits,
    sender: &Sender,
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let settings = http1::Builder::new().max_buf_size(READ_BUFFER).max_headers(64).clone();
    let (mut requests, connection) = settings.handshake(TokioIo::new(stream)).await.map_err(|_| SourceError::Http)?;
    let (request, keys) = endpoint.request(name, span).await?;
    let transfer = async {
        let answer = timeout(limits.connect, requests.send_request(request))
            .await
            .map_err(|_| SourceError::Idle(limits.connect))?
            .map_err(|_| SourceError::Http)?;
        let (parts, body) = answer.into_parts();
        if let Err(error) = check_head(parts.status, &parts.headers, span, most) {
            let refused = matches!(error, SourceError::Status(_));
            let signer = endpoint.signer.as_ref().filter(|_| refused);
            let Some(signer) = signer else { return Err(error.into()) };
            let said = beginning(body, limits.connect).await;
            let error = signer.judge(parts.status.as_u16(), &said).unwrap_or(error);
            let refused = keys.filter(|_| concerns_key(&error));
            return Err(Failure { error, refused });
        }
        drop(keys);
        Ok(pass_on(body, most, span.is_some(), limits, sender).await?)
    };
    tokio::pin!(connection);
    tokio::pin!(transfer);
    let mut open = true;
    loop {
        tokio::select! {
            done = &mut transfer => return done,
            // Its error shows in the transfer, too.
            _ = &mut connection, if open => open = false,
        }
    }
}

fn check_head(status: StatusCode, headers: &HeaderMap, span: Option<Span>, most: u64) -> Result<(), SourceError> {
    let resumed = span.is_some_and(|span| span.from > 0);
    let expected = if resumed { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    if status != expected {
        // A source that does not know ranges sends all of it: that it cannot go on is not a fault of its bytes.
        return Err(if resumed && status == StatusCode::OK {
            SourceError::Range
        } else {
            SourceError::Status(status.as_u16())
        });
    }
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    if text(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(SourceError::Encoded);
    }
    if let (true, Some(Span { from, length })) = (resumed, span)
        && text(header::CONTENT_RANGE) != Some(&format!("bytes {from}-{}/{length}", length.saturating_sub(1)))
    {
        return Err(SourceError::Range);
    }
    let said = text(header::CONTENT_LENGTH).map(str::parse::<u64>);
    match said {
        Some(Ok(said)) if said == most || (span.is_none() && said <= most) => Ok(()),
        None => Ok(()),
        Some(_) => Err(SourceError::Length),
    }
}

/// As much of an error's body as is looked at, and comes in time.
async fn beginning(mut body: Incoming, limit: Duration) -> Vec<u8> {
    let mut said = Vec::new();
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            said.extend(data.iter().take(MAX_ERROR.saturating_sub(said.len())));
            if said.len() >= MAX_ERROR {
                return;
            }
        }
    };
    // What came until then counts.
    let _ = timeout(limit, read).await;
    said
}

async fn pass_on(
    mut body: Incoming,
    most: u64,
    exact: bool,
    limits: Limits,
    sender: &Sender,
) -> Result<(), SourceError> {
    let mut part = BytesMut::new();
    let mut left = most;
    let outcome = loop {
        let data = match timeout(limits.idle, body.frame()).await {
            Err(_) => break Err(SourceError::Idle(limits.idle)),
            Ok(None) => break Ok(()),
            Ok(Some(Err(_))) => {
                break Err(SourceError::Io { what: "receiving", kind: io::ErrorKind::ConnectionReset });
            }
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        };
        match left.checked_sub(u64::try_from(data.len()).unwrap_or(u64::MAX)) {
            Some(rest) => left = rest,
            None => break Err(SourceError::Length),
        }
        part.extend_from_slice(&data);
        if part.len() >= PART && sender.send(Ok(part.split().freeze())).await.is_err() {
            return Ok(());
        }
    };
    // What came before it broke off counts, too: the next attempt goes on behind it.
    if !part.is_empty() {
        // Nobody takes it any more: then there is nobody to tell.
        let _ = sender.send(Ok(part.freeze())).await;
    }
    outcome?;
    if exact && left > 0 { Err(SourceError::Length) } else { Ok(()) }
}

fn tls(authorities: impl FnOnce() -> io::Result<Vec<u8>>) -> Result<Arc<ClientConfig>, SourceAddressError> {
    let bad = |error: &dyn core::fmt::Display| SourceAddressError::Authorities(error.to_string());
    let pem = authorities().map_err(|error| bad(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        // Bundles of operating systems hold some that this library does not read: those are left out.
        let _ = roots.add(certificate.map_err(|error| bad(&error))?);
    }
    if roots.is_empty() {
        return Err(bad(&"there is none"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&error))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// Head and read buffer of a connection.
const READ_BUFFER: usize = 512 * 1024;
const LOCALHOST: &str = "localhost";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_plain_and_queries_stay_out_of_messages() {
        let parse = |address: &str| Endpoint::parse(address, || Ok(Vec::new()));
        let endpoint = parse("http://s3.example:9000/bucket/packs/a/?sig=secret").unwrap();
        assert_eq!(endpoint.label(), "http://s3.example:9000/bucket/packs/a");
        assert_eq!(format!("{endpoint:?}"), endpoint.label());
        assert_eq!((endpoint.path.as_str(), endpoint.query.as_str()), ("/bucket/packs/a", "?sig=secret"));
        for bad in ["", "packs", "ftp://a/b", "http://", "http://u:p@a/b", "http://a/#b", "file:///x", "s3://b/k"] {
            assert!(matches!(parse(bad), Err(SourceAddressError::Form)), "{bad}");
        }
        assert!(matches!(parse("https://a/b"), Err(SourceAddressError::Authorities(_))));
    }

    #[test]
    fn heads_that_say_something_else_are_refused() {
        let head = |status: u16, headers: &[(&str, &str)], from| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(header::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
            }
            let span = Span { from, length: 100 };
            check_head(StatusCode::from_u16(status).unwrap(), &map, Some(span), 100 - from)
        };
        assert_eq!(head(200, &[("content-length", "100")], 0), Ok(()));
        assert_eq!(head(200, &[], 0), Ok(()));
        assert_eq!(head(302, &[], 0), Err(SourceError::Status(302)));
        assert_eq!(head(200, &[("content-length", "101")], 0), Err(SourceError::Length));
        assert_eq!(head(200, &[("content-length", "x")], 0), Err(SourceError::Length));
        assert_eq!(head(200, &[("content-encoding", "gzip")], 0), Err(SourceError::Encoded));
        assert_eq!(head(206, &[("content-range", "bytes 40-99/100"), ("content-length", "60")], 40), Ok(()));
        assert_eq!(head(206, &[("content-range", "bytes 0-99/100")], 40), Err(SourceError::Range));
        assert_eq!(head(206, &[], 40), Err(SourceError::Range));
        assert_eq!(head(200, &[], 40), Err(SourceError::Range));
    }
}
