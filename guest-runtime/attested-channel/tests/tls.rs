// SPDX-License-Identifier: Apache-2.0
//! Handshakes between the two sides' settings, in memory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail loudly"
)]

use std::sync::Arc;

use attested_channel::{
    certificate::{CertificateEvidence, OID_ARCS},
    stream::share,
    tls::{client_config, exporter, is_full_handshake, pinned_client_config, refused_certificate, server_config},
};
use rustls::{
    ClientConnection, NamedGroup, ServerConnection,
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use types::{Base64, Sha256Digest};

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

fn key() -> rcgen::KeyPair {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap()
}

fn certificate(key: &rcgen::KeyPair, with_evidence: bool) -> CertificateDer<'static> {
    let mut params = rcgen::CertificateParams::new(vec!["guest".to_owned()]).unwrap();
    if with_evidence {
        let evidence = CertificateEvidence { evidence: Sha256Digest::of(b"e"), quote: Base64::new(vec![1]).unwrap() };
        let value = evidence.to_extension_value().unwrap();
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&OID_ARCS, value)];
    }
    params.self_signed(key).unwrap().der().clone()
}

fn pair(certificate: CertificateDer<'static>, signer: &rcgen::KeyPair) -> (ClientConnection, ServerConnection) {
    with_client(client_config().unwrap(), certificate, signer)
}

fn with_client(
    client: rustls::ClientConfig,
    certificate: CertificateDer<'static>,
    signer: &rcgen::KeyPair,
) -> (ClientConnection, ServerConnection) {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signer.serialize_der()));
    let certified = CertifiedKey::new(vec![certificate], any_supported_type(&der).unwrap());
    let server = server_config(Arc::new(Fixed(Arc::new(certified)))).unwrap();
    (
        ClientConnection::new(Arc::new(client), "guest".try_into().unwrap()).unwrap(),
        ServerConnection::new(Arc::new(server)).unwrap(),
    )
}

/// Passes bytes to and fro until both are still; the first error of either side.
fn shake(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), rustls::Error> {
    for _ in 0..8 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            server.read_tls(&mut bytes).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).unwrap();
            client.process_new_packets()?;
        }
    }
    Ok(())
}

#[test]
fn both_sides_agree_on_the_hybrid_and_on_the_binding_of_a_challenge() {
    let key = key();
    let (mut client, mut server) = pair(certificate(&key, true), &key);
    shake(&mut client, &mut server).unwrap();
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert!(is_full_handshake(client.handshake_kind()) && is_full_handshake(server.handshake_kind()));
    assert_eq!(client.tls13_tickets_received(), 0);
    let binding = exporter(&client, &[1; 32]).unwrap();
    assert_eq!(binding, exporter(&server, &[1; 32]).unwrap());
    assert_ne!(binding, exporter(&server, &[2; 32]).unwrap());
}

/// Attack 36: two connections with the same keys never share a binding.
#[test]
fn another_connection_has_another_binding() {
    let key = key();
    let bindings: Vec<_> = (0..2)
        .map(|_| {
            let (mut client, mut server) = pair(certificate(&key, true), &key);
            shake(&mut client, &mut server).unwrap();
            exporter(&client, &[1; 32]).unwrap()
        })
        .collect();
    assert_ne!(bindings[0], bindings[1]);
}

/// Attack 34: a certificate without its key.
#[test]
fn a_stolen_certificate_is_refused() {
    let (mut client, mut server) = pair(certificate(&key(), true), &key());
    assert!(shake(&mut client, &mut server).is_err());
    assert!(client.is_handshaking());
}

#[test]
fn a_certificate_without_evidence_is_refused_by_name() {
    let key = key();
    let (mut client, mut server) = pair(certificate(&key, false), &key);
    let error = shake(&mut client, &mut server).unwrap_err();
    assert_eq!(refused_certificate(&error).unwrap().code(), "certificate_evidence_missing");
}

/// The attestation service is known by its key alone: another key is refused, and so is the right key without its use.
#[test]
fn a_pinned_key_is_the_only_one_accepted() {
    let (pinned, other) = (key(), key());
    let pin = Sha256Digest::of(&rcgen::PublicKeyData::subject_public_key_info(&pinned));
    let shaken = |shown: &rcgen::KeyPair, signer: &rcgen::KeyPair| {
        let config = pinned_client_config(pin).unwrap();
        let (mut client, mut server) = with_client(config, certificate(shown, false), signer);
        shake(&mut client, &mut server).map(|()| client.is_handshaking())
    };
    assert_eq!(shaken(&pinned, &pinned), Ok(false));
    assert_eq!(
        shaken(&other, &other),
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure))
    );
    assert!(shaken(&pinned, &other).is_err());
}

#[tokio::test]
async fn the_channel_answers_while_the_stream_is_in_use() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let key = key();
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let certified = CertifiedKey::new(vec![certificate(&key, true)], any_supported_type(&der).unwrap());
    let acceptor =
        tokio_rustls::TlsAcceptor::from(Arc::new(server_config(Arc::new(Fixed(Arc::new(certified)))).unwrap()));
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config().unwrap()));
    let (near, far) = tokio::io::duplex(1 << 14);
    let (client, server) = tokio::join!(connector.connect("guest".try_into().unwrap(), near), acceptor.accept(far));
    let (mut client, near_channel) = share(client.unwrap().into());
    let (mut server, far_channel) = share(server.unwrap().into());
    let reading = tokio::spawn(async move {
        let mut text = [0; 5];
        server.read_exact(&mut text).await.unwrap();
        text
    });
    tokio::task::yield_now().await;
    assert_eq!(near_channel.binding(&[3; 32]).unwrap(), far_channel.binding(&[3; 32]).unwrap());
    client.write_all(b"hello").await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(&reading.await.unwrap(), b"hello");
    assert_eq!(near_channel.tickets_received(), 0);
}
