// SPDX-License-Identifier: Apache-2.0
//! TLS settings of both sides: TLS 1.3 only, the hybrid X25519MLKEM768 first, and nothing that lets a connection
//! outlive its keys: no tickets, no resumption, no early data.
//!
//! The settings for talking to a guest accept any certificate of the right form whose key signed the handshake.
//! Whether a guest is accepted is decided afterwards by a proof for the connection, never by the certificate. The
//! settings for talking to the attestation service accept one pinned key.

use std::sync::Arc;

use der::{Decode as _, Encode as _};
use rustls::{
    CertificateError as TlsCertificateError, ClientConfig, ConnectionCommon, DigitallySignedStruct, DistinguishedName,
    Error, HandshakeKind, OtherError, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};

use types::Sha256Digest;

use crate::{
    certificate::{CertificateError, GuestCertificate},
    tree::EXPORTER_LABEL,
};

/// Settings of a guest that answers with the certificate and the signatures of `resolver`.
///
/// # Errors
/// The TLS library does not know TLS 1.3 with this provider; never with the one built in.
pub fn server_config(resolver: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, Error> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    Ok(server_config_that(builder.with_no_client_auth().with_cert_resolver(resolver), ALPN))
}

/// Settings of a guest that other guests connect to: as [`server_config`], but the client must hold the key of a certificate
/// with an evidence extension, too. They establish nothing about that evidence. Their protocol is [`PEER_ALPN`] alone, so that
/// no connection of one kind passes for one of the other.
///
/// # Errors
/// As [`server_config`].
pub fn peer_server_config(resolver: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, Error> {
    let provider = provider();
    let verifier = CertificateVerifier { accepts: Accepts::Guests, schemes: &SCHEMES, provider: Arc::clone(&provider) };
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
    let config = builder.with_client_cert_verifier(Arc::new(verifier)).with_cert_resolver(resolver);
    Ok(server_config_that(config, PEER_ALPN))
}

fn server_config_that(mut config: ServerConfig, alpn: &[u8]) -> ServerConfig {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    config.cert_compressors.clear();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

/// Settings of a client. They establish that the peer holds the key of a certificate with an evidence extension,
/// and nothing about that evidence.
///
/// # Errors
/// As [`server_config`].
pub fn client_config() -> Result<ClientConfig, Error> {
    client_config_that(Accepts::Guests, &SCHEMES, None)
}

/// Settings of a guest that connects to another guest: as [`client_config`], with the certificate and the signatures of
/// `resolver`, for [`PEER_ALPN`].
///
/// # Errors
/// As [`server_config`].
pub fn peer_client_config(resolver: Arc<dyn ResolvesClientCert>) -> Result<ClientConfig, Error> {
    client_config_that(Accepts::Guests, &SCHEMES, Some(resolver))
}

/// Settings of a client that accepts exactly one Ed25519 key: the one whose SPKI hashes to `pin`. Names and dates of
/// its certificate are not looked at; no certificate authority has a say.
///
/// # Errors
/// As [`server_config`].
pub fn pinned_client_config(pin: Sha256Digest) -> Result<ClientConfig, Error> {
    client_config_that(Accepts::Pinned(pin), &[SignatureScheme::ED25519], None)
}

fn client_config_that(
    accepts: Accepts,
    schemes: &'static [SignatureScheme],
    own: Option<Arc<dyn ResolvesClientCert>>,
) -> Result<ClientConfig, Error> {
    let provider = provider();
    let verifier = Arc::new(CertificateVerifier { accepts, schemes, provider: Arc::clone(&provider) });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let alpn = if own.is_some() { PEER_ALPN } else { ALPN };
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(own),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config.cert_decompressors.clear();
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// The binding of a challenge to this connection: 32 bytes of the connection's exporter with the challenge as
/// context (RFC 8446 section 7.5). Each side takes it from its own connection, never from a message.
///
/// # Errors
/// The handshake is not complete.
pub fn exporter<Side>(connection: &ConnectionCommon<Side>, challenge: &[u8; 32]) -> Result<[u8; 32], Error> {
    connection.export_keying_material([0; 32], EXPORTER_LABEL, Some(challenge))
}

/// Whether the handshake was a full one. A resumed one was never asked for: close the connection.
#[must_use]
pub fn is_full_handshake(kind: Option<HandshakeKind>) -> bool {
    matches!(kind, Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest))
}

/// The reason why [`client_config`] refused a certificate, where that made a handshake fail.
#[must_use]
pub fn refused_certificate(error: &Error) -> Option<&CertificateError> {
    match error {
        Error::InvalidCertificate(TlsCertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

/// The cryptography of both sides: the key exchanges that the hybrid leads, AES-256-GCM first.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    Arc::new(provider)
}

/// Whose certificates a client accepts. That the peer holds the key is checked in either case.
#[derive(Debug)]
enum Accepts {
    Guests,
    Pinned(Sha256Digest),
}

impl Accepts {
    fn check(&self, end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), Error> {
        match self {
            Self::Guests if !intermediates.is_empty() => Err(refuse(CertificateError::Malformed)),
            Self::Guests => GuestCertificate::from_der(end_entity).map(drop).map_err(refuse),
            Self::Pinned(pin) if spki_digest(end_entity)? == *pin => Ok(()),
            Self::Pinned(_) => Err(Error::InvalidCertificate(TlsCertificateError::ApplicationVerificationFailure)),
        }
    }
}

fn spki_digest(certificate: &CertificateDer<'_>) -> Result<Sha256Digest, Error> {
    x509_cert::Certificate::from_der(certificate)
        .and_then(|certificate| certificate.tbs_certificate().subject_public_key_info().to_der())
        .map(|spki| Sha256Digest::of(&spki))
        .map_err(|_| Error::InvalidCertificate(TlsCertificateError::BadEncoding))
}

#[derive(Debug)]
struct CertificateVerifier {
    accepts: Accepts,
    schemes: &'static [SignatureScheme],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for CertificateVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.accepts.check(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.to_vec()
    }
}

/// Whoever shows no certificate is refused in the handshake.
impl ClientCertVerifier for CertificateVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.accepts.check(end_entity, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.to_vec()
    }
}

fn refuse(error: CertificateError) -> Error {
    Error::InvalidCertificate(TlsCertificateError::Other(OtherError(Arc::new(error))))
}

/// Signature schemes that a guest's TLS key may use.
pub const SCHEMES: [SignatureScheme; 2] = [SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256];

/// Protocol of a connection between two guests that both prove themselves.
pub const PEER_ALPN: &[u8] = b"chrysalis-peer/1";

const ALPN: &[u8] = b"http/1.1";
