// SPDX-License-Identifier: Apache-2.0
//! Those who are no guests: a key of their own under a certificate of the right form.

use std::{io, sync::Arc};

use attested_channel::{
    CertificateEvidence,
    certificate::OID_ARCS,
    tls::{peer_client_config, peer_server_config},
};
use rustls::{
    ClientConfig, ServerConfig, SignatureScheme,
    client::ResolvesClientCert,
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, copy_bidirectional};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use types::{Base64, Sha256Digest};

/// A certificate that carries somebody's evidence, and its key.
#[derive(Debug)]
pub(crate) struct Shown(Arc<CertifiedKey>);

impl Shown {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let evidence = CertificateEvidence { evidence: Sha256Digest::of(b"e"), quote: Base64::new(vec![1]).unwrap() };
        let mut params = rcgen::CertificateParams::new(vec!["guest".to_owned()]).unwrap();
        let value = evidence.to_extension_value().unwrap();
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&OID_ARCS, value)];
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Self(Arc::new(CertifiedKey::new(vec![certificate], any_supported_type(&der).unwrap())))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

pub(crate) async fn handshake(
    config: ClientConfig,
    stream: DuplexStream,
) -> io::Result<client::TlsStream<DuplexStream>> {
    TlsConnector::from(Arc::new(config)).connect("guest".try_into().unwrap(), stream).await
}

pub(crate) async fn answer(config: ServerConfig, stream: DuplexStream) -> io::Result<server::TlsStream<DuplexStream>> {
    TlsAcceptor::from(Arc::new(config)).accept(stream).await
}

/// Says back whatever it hears, as a client.
pub(crate) async fn reflect(config: ClientConfig, stream: DuplexStream) {
    echo(handshake(config, stream).await.unwrap()).await;
}

/// The same as a server.
pub(crate) async fn reflect_as_server(config: ServerConfig, stream: DuplexStream) {
    echo(answer(config, stream).await.unwrap()).await;
}

async fn echo(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..read]).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

/// Ends both guests' TLS with keys of its own, and passes on what they say.
pub(crate) async fn relay(left: DuplexStream, right: DuplexStream) {
    let server = peer_server_config(Arc::new(Shown::new())).unwrap();
    let client = peer_client_config(Arc::new(Shown::new())).unwrap();
    let (left, right) = tokio::join!(answer(server, left), handshake(client, right));
    let _ = copy_bidirectional(&mut left.unwrap(), &mut right.unwrap()).await;
}
