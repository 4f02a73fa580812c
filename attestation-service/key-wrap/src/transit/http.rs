// SPDX-License-Identifier: Apache-2.0
//! One POST over HTTP/1.1 with TLS, capped in time and size. Redirections are not followed.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use ::http::{Request, StatusCode, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use crate::KekError;

/// Where requests go.
pub(super) struct Endpoint {
    /// Always there until the end.
    runtime: Option<Runtime>,
    target: Target,
}

#[derive(Clone)]
struct Target {
    tls: Option<Arc<ClientConfig>>,
    host: String,
    port: u16,
}

/// Why a request gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("it answered with status {0}")]
    Status(u16),
    #[error("no whole answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("{0}")]
    Connection(String),
}

/// What is sent, made where it may wait.
struct Message {
    path: String,
    token: Zeroizing<String>,
    namespace: Option<String>,
    body: Zeroizing<Vec<u8>>,
}

impl Endpoint {
    pub(super) fn new(base: &str, ca_file: &Path) -> Result<Self, KekError> {
        let unfit = |e: &dyn core::fmt::Display| KekError::Unfit(format!("the transit service's address: {e}"));
        let uri: Uri = base.parse().map_err(|e| unfit(&e))?;
        let host = uri.host().ok_or_else(|| unfit(&"there is no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let secure = uri.scheme_str() == Some("https");
        let tls = if secure { Some(tls(ca_file)?) } else { None };
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Ok(Self { runtime: Some(runtime.map_err(|e| unfit(&e))?), target: Target { tls, host, port } })
    }

    /// Posts and waits, on whatever thread calls.
    pub(super) fn post(
        &self,
        path: &str,
        token: Zeroizing<String>,
        namespace: Option<&str>,
        body: Zeroizing<Vec<u8>>,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let runtime = self.runtime.as_ref().ok_or(Failure::Timeout)?;
        let message = Message { path: path.to_owned(), token, namespace: namespace.map(str::to_owned), body };
        let (target, (done, wait)) = (self.target.clone(), mpsc::sync_channel(1));
        runtime.spawn(async move {
            let answer = tokio::time::timeout(TIMEOUT, target.exchange(message)).await;
            // Nobody waits any more: then it does not matter.
            let _ = done.send(answer.unwrap_or(Err(Failure::Timeout)));
        });
        wait.recv().unwrap_or(Err(Failure::Timeout))
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Target {
    async fn exchange(&self, message: Message) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let connection = |e: &dyn core::fmt::Display| Failure::Connection(e.to_string());
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| connection(&e))?;
        match &self.tls {
            None => self.send(stream, message).await,
            Some(config) => {
                let name = ServerName::try_from(self.host.clone()).map_err(|e| connection(&e))?;
                let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
                self.send(stream.map_err(|e| connection(&e))?, message).await
            }
        }
    }

    async fn send<S>(&self, stream: S, message: Message) -> Result<Zeroizing<Vec<u8>>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let failed = |e: &dyn core::fmt::Display| Failure::Connection(e.to_string());
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|e| failed(&e))?;
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let mut request = Request::post(&message.path)
            .header(header::HOST, format!("{host}:{}", self.port))
            .header(header::CONTENT_TYPE, "application/json")
            .header("X-Vault-Request", "true")
            .header("X-Vault-Token", message.token.as_str());
        if let Some(namespace) = &message.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        let body = Full::new(Bytes::copy_from_slice(&message.body));
        let request = request.body(body).map_err(|_| Failure::Connection("the token is malformed".to_owned()))?;
        let driver = tokio::spawn(connection);
        let answer = async {
            let answer = sender.send_request(request).await.map_err(|e| failed(&e))?;
            let status = answer.status();
            if status != StatusCode::OK {
                return Err(Failure::Status(status.as_u16()));
            }
            let body = Limited::new(answer.into_body(), MAX_BODY).collect().await.map_err(|e| failed(&e))?;
            Ok(Zeroizing::new(body.to_bytes().to_vec()))
        };
        let answer = answer.await;
        driver.abort();
        answer
    }
}

fn tls(ca_file: &Path) -> Result<Arc<ClientConfig>, KekError> {
    let unfit = |e: &dyn core::fmt::Display| {
        KekError::Unfit(format!("the certificates {} for the transit service: {e}", ca_file.display()))
    };
    let pem = std::fs::read(ca_file).map_err(|e| unfit(&e))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        // Bundles of operating systems hold some that this library does not read: those are left out.
        let _ = roots.add(certificate.map_err(|e| unfit(&e))?);
    }
    if roots.is_empty() {
        return Err(unfit(&"there is none"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|e| unfit(&e))?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// One request, from the connection to the last byte.
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_BODY: usize = 64 * 1024;
const MAX_HEAD: usize = 32 * 1024;
