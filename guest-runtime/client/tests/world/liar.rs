// SPDX-License-Identifier: Apache-2.0
//! A server that is no guest: it has a key of its own and answers what it likes.

use std::{convert::Infallible, future::Future, pin::Pin, sync::Arc};

use attested_channel::{CertificateEvidence, certificate::OID_ARCS, tls::server_config};
use bytes::Bytes;
use client::Upstream;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{
    crypto::aws_lc_rs::{Ticketer, sign::any_supported_type},
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::net::TcpListener;
use types::{Base64, Sha256Digest};

type Answer = Pin<Box<dyn Future<Output = (StatusCode, Bytes)> + Send>>;

/// Answers a path and a body.
pub(crate) type Handler = Arc<dyn Fn(String, Bytes) -> Answer + Send + Sync>;

/// What the liar's TLS is like.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tls {
    /// As a guest's, with an own key and the evidence of somebody else in the certificate.
    Own,
    /// The certificate has no evidence.
    Plain,
    /// The certificate is another key's.
    Stolen,
    /// Sends session tickets.
    Tickets,
}

#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl ResolvesServerCert for One {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// A handler that answers always the same.
pub(crate) fn always(status: StatusCode, body: &'static str) -> Handler {
    Arc::new(move |_, _| Box::pin(async move { (status, Bytes::from_static(body.as_bytes())) }))
}

/// Starts a liar on loopback.
pub(crate) async fn start(tls: Tls, handler: Handler) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = Upstream::new("127.0.0.1", listener.local_addr().unwrap().port());
    let mut config = server_config(Arc::new(One(Arc::new(certified(tls))))).unwrap();
    if tls == Tls::Tickets {
        config.ticketer = Ticketer::new().unwrap();
        config.send_tls13_tickets = 2;
        config.max_tls13_tickets = 2;
    }
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, handler) = (acceptor.clone(), Arc::clone(&handler));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(|request| answer(Arc::clone(&handler), request));
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    upstream
}

async fn answer(handler: Handler, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let (status, body) = handler(path, body).await;
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    Ok(response)
}

fn certified(tls: Tls) -> CertifiedKey {
    let key = || rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let (own, other) = (key(), key());
    let mut params = rcgen::CertificateParams::new(vec!["guest".to_owned()]).unwrap();
    if tls != Tls::Plain {
        let evidence = CertificateEvidence { evidence: Sha256Digest::of(b"e"), quote: Base64::new(vec![1]).unwrap() };
        let value = evidence.to_extension_value().unwrap();
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&OID_ARCS, value)];
    }
    let certificate = params.self_signed(if tls == Tls::Stolen { &other } else { &own }).unwrap();
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.serialize_der()));
    CertifiedKey::new(vec![certificate.der().clone()], any_supported_type(&der).unwrap())
}
