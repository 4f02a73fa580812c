// SPDX-License-Identifier: Apache-2.0
//! A connection whose both ends were accepted.

use std::{sync::Arc, time::Duration};

use appraise::Verdict;
use attested_channel::{
    GuestCertificate,
    tls::{PEER_ALPN, is_full_handshake, peer_client_config, peer_server_config},
};
use attester_protocol::TlsSide;
use client::{GuestSide, Verifier};
use rustls::{CommonState, pki_types::ServerName};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use types::{Evidence, Sha256Digest};

use crate::{
    Own, PeerError,
    exchange::{DATA, Ends, Proven, exchange, read, write},
    own::Shown,
};

/// A connection to a guest that this guest accepted and that accepted this guest. It carries messages of at most
/// [`MAX_MESSAGE`](crate::MAX_MESSAGE) bytes.
#[derive(Debug)]
pub struct Peer<S> {
    stream: TlsStream<S>,
    side: GuestSide,
    own: Shown,
    key: Sha256Digest,
    verifier: Arc<Verifier>,
    proven: Proven,
}

/// Connects to a guest over `stream`: proves this guest to it, and it to this guest by `verifier`'s policy.
///
/// # Errors
/// [`PeerError`]; then nothing but proofs has passed.
pub async fn connect<S>(stream: S, own: &Own, verifier: &Arc<Verifier>) -> Result<Peer<S>, PeerError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    within(async {
        let own = own.shown().await?;
        let config = peer_client_config(own.certificate(TlsSide::Client))?;
        // The name is sent to nobody: server names are off.
        let name = ServerName::try_from(SERVER_NAME).map_err(|_| PeerError::Protocol("cannot be named"))?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(PeerError::Handshake)?;
        let key = key_of(stream.get_ref().1)?;
        if stream.get_ref().1.tls13_tickets_received() != 0 {
            return Err(PeerError::Protocol("sent session tickets"));
        }
        Peer::prove(stream.into(), GuestSide::Client, own, key, verifier).await
    })
    .await
}

/// Takes a guest that connected over `stream`: as [`connect`], from the other end.
///
/// # Errors
/// [`PeerError`]; then nothing but proofs has passed.
pub async fn accept<S>(stream: S, own: &Own, verifier: &Arc<Verifier>) -> Result<Peer<S>, PeerError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    within(async {
        let own = own.shown().await?;
        let config = peer_server_config(own.certificate(TlsSide::Server))?;
        let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.map_err(PeerError::Handshake)?;
        let key = key_of(stream.get_ref().1)?;
        Peer::prove(stream.into(), GuestSide::Server, own, key, verifier).await
    })
    .await
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    async fn prove(
        mut stream: TlsStream<S>,
        side: GuestSide,
        own: Shown,
        key: Sha256Digest,
        verifier: &Arc<Verifier>,
    ) -> Result<Self, PeerError> {
        let proven = exchange(&mut stream, Ends { side, own: &own, peer: &key, verifier }).await?;
        Ok(Self { stream, side, own, key, verifier: Arc::clone(verifier), proven })
    }

    /// The newest verdict on the peer, with every check and register.
    pub fn verdict(&self) -> &Verdict {
        &self.proven.verdict
    }

    /// The peer's evidence document.
    #[must_use]
    pub fn evidence(&self) -> &Evidence {
        &self.proven.evidence
    }

    /// Whether the newest verdict still holds. It does for ten minutes at most.
    #[must_use]
    pub fn is_covered(&self) -> bool {
        self.proven.holds()
    }

    /// Proves both ends anew, over the same connection. Both call it at the same point of their conversation: where one
    /// waits for a message and the other proves itself, both fail.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn renew(&mut self) -> Result<(), PeerError> {
        let Self { stream, side, own, key, verifier, .. } = self;
        match within(exchange(stream, Ends { side: *side, own, peer: key, verifier })).await {
            Ok(proven) => self.proven = proven,
            Err(error) => {
                // The other end shall not wait for what will not come.
                let _ = self.stream.shutdown().await;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn send(&mut self, message: &[u8]) -> Result<(), PeerError> {
        self.check_covered()?;
        write(&mut self.stream, DATA, message).await
    }

    /// The next message; `None` when the peer has closed the connection between two of them.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn receive(&mut self) -> Result<Option<Vec<u8>>, PeerError> {
        self.check_covered()?;
        let message = read(&mut self.stream, DATA).await?;
        // It may have been waited for.
        self.check_covered()?;
        Ok(message)
    }

    fn check_covered(&self) -> Result<(), PeerError> {
        if self.is_covered() { Ok(()) } else { Err(PeerError::Expired) }
    }
}

/// The key of a handshake that was made for this protocol, whole, by a peer with a certificate of a guest's form.
fn key_of(session: &CommonState) -> Result<Sha256Digest, PeerError> {
    if session.alpn_protocol() != Some(PEER_ALPN) {
        return Err(PeerError::Protocol("speaks another protocol"));
    }
    if !is_full_handshake(session.handshake_kind()) {
        return Err(PeerError::Protocol("resumed another session"));
    }
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or(PeerError::Protocol("showed no certificate"))?;
    let certificate = GuestCertificate::from_der(leaf);
    Ok(certificate.map_err(|_| PeerError::Protocol("showed a certificate that is no guest's"))?.spki_sha256)
}

async fn within<T>(work: impl Future<Output = Result<T, PeerError>>) -> Result<T, PeerError> {
    tokio::time::timeout(PATIENCE, work).await.map_err(|_| PeerError::Timeout)?
}

const SERVER_NAME: &str = "chrysalis.invalid";
const PATIENCE: Duration = Duration::from_secs(60);
