// SPDX-License-Identifier: Apache-2.0
//! One GET over HTTP/1.1, with or without TLS, capped in time and size. Redirections are not followed.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// Why an address can't be a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The address.
    #[error("{url} must be http://HOST[:PORT][/PATH] or https://…, without user, query or fragment")]
    Url {
        /// What was given.
        url: String,
    },
    /// The certificates that https is judged by.
    #[error("the certificates for https can't be used: {0}")]
    Authorities(String),
}

/// Why a request gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection.
    #[error("no connection: {0}")]
    Connect(#[source] io::Error),
    /// HTTP.
    #[error("the answer is no HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// Too slow.
    #[error("no whole answer within {0:?}")]
    Timeout(Duration),
    /// Another status than 200.
    #[error("the source answered with status {0}")]
    Status(StatusCode),
    /// Too large, or broken off.
    #[error("the answer is broken off, or has more than {MAX_BODY} bytes")]
    Body,
    /// The request could not be written.
    #[error("the request is malformed: {0}")]
    Request(#[from] http::Error),
}

/// Where requests go.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    tls: Option<Arc<ClientConfig>>,
    host: String,
    port: u16,
    path: String,
    timeout: Duration,
}

/// An answer with status 200.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Endpoint {
    /// Reads an address; `authorities` is PEM text, asked for only where the address is one of https.
    pub(crate) fn parse(url: &str, authorities: impl FnOnce() -> io::Result<Vec<u8>>) -> Result<Self, SourceError> {
        let bad = || SourceError::Url { url: url.to_owned() };
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
        let plain_authority = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        if !plain_authority || uri.query().is_some() || url.contains('#') {
            return Err(bad());
        }
        let (tls, port) = match uri.scheme_str() {
            Some("http") => (None, 80),
            Some("https") => (Some(tls(authorities)?), 443),
            _ => return Err(bad()),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let path = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { tls, host, port: uri.port_u16().unwrap_or(port), path, timeout: TIMEOUT })
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The same with another limit for one request.
    pub(crate) const fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same without one of these ends of its path.
    pub(crate) fn without(mut self, ends: &[&str]) -> Self {
        for end in ends {
            if let Some(shorter) = self.path.strip_suffix(end) {
                self.path = shorter.to_owned();
            }
        }
        self
    }

    /// Asks for what stands under `below`.
    pub(crate) async fn get(&self, below: &str) -> Result<Answer, HttpError> {
        timeout(self.timeout, self.ask(below)).await.map_err(|_| HttpError::Timeout(self.timeout))?
    }

    async fn ask(&self, below: &str) -> Result<Answer, HttpError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(HttpError::Connect)?;
        match &self.tls {
            None => self.exchange(stream, below).await,
            Some(config) => {
                let name =
                    ServerName::try_from(self.host.clone()).map_err(|e| HttpError::Connect(io::Error::other(e)))?;
                let connector = TlsConnector::from(Arc::clone(config));
                let stream = connector.connect(name, stream).await.map_err(HttpError::Connect)?;
                self.exchange(stream, below).await
            }
        }
    }

    async fn exchange<S>(&self, stream: S, below: &str) -> Result<Answer, HttpError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let path = format!("{}{below}", self.path);
        let request = Request::get(if path.is_empty() { "/" } else { &path })
            .header(header::HOST, format!("{host}:{}", self.port))
            .header(header::USER_AGENT, "chrysalis-collateral")
            .body(Empty::<Bytes>::new())?;
        // The connection ends with the answer, or with the time-out around this.
        let answered = async {
            let answer = sender.send_request(request).await?;
            let (parts, body) = answer.into_parts();
            if parts.status != StatusCode::OK {
                return Err(HttpError::Status(parts.status));
            }
            let body = Limited::new(body, MAX_BODY).collect().await.map_err(|_| HttpError::Body)?.to_bytes();
            Ok(Answer { headers: parts.headers, body })
        };
        tokio::pin!(connection);
        tokio::pin!(answered);
        let mut open = true;
        loop {
            tokio::select! {
                answer = &mut answered => return answer,
                // Its error shows in the answer, too.
                _ = &mut connection, if open => open = false,
            }
        }
    }
}

fn tls(authorities: impl FnOnce() -> io::Result<Vec<u8>>) -> Result<Arc<ClientConfig>, SourceError> {
    let bad = |e: &dyn core::fmt::Display| SourceError::Authorities(e.to_string());
    let pem = authorities().map_err(|e| bad(&e))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        // Bundles of operating systems hold some that this library does not read: those are left out.
        let _ = roots.add(certificate.map_err(|e| bad(&e))?);
    }
    if roots.is_empty() {
        return Err(bad(&"there is none"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|e| bad(&e))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// One request, from the connection to the last byte.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Largest body. Real ones have up to 20,000 bytes, revocation lists more.
const MAX_BODY: usize = 192 * 1024;
/// Largest head: a certificate chain stands in it.
const MAX_HEAD: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_plain() {
        let parse = |url: &str| Endpoint::parse(url, || Ok(Vec::new()));
        let endpoint =
            parse("http://pccs.example:8081/sgx/certification/v4/").unwrap().without(&["/sgx/certification/v4"]);
        assert_eq!((endpoint.host(), endpoint.port, endpoint.path.as_str()), ("pccs.example", 8081, ""));
        assert_eq!(parse("http://[::1]").unwrap().host(), "::1");
        for bad in [
            "",
            "pccs.example",
            "ftp://pccs.example",
            "http://",
            "http://u:p@pccs.example",
            "http://pccs.example/?a",
            "http://a/#b",
        ] {
            assert!(matches!(parse(bad), Err(SourceError::Url { .. })), "{bad}");
        }
        assert!(
            matches!(parse("https://pccs.example"), Err(SourceError::Authorities(_))),
            "without a root nothing is believed"
        );
    }
}
