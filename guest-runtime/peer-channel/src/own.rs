// SPDX-License-Identifier: Apache-2.0
//! This guest's own side: certificate, signatures and proofs by its attester.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use attester_protocol::{
    CallError, Failure, FrameError, Identity, ServingAnswer, ServingRequest, TlsSide, call,
    serving::{MAX_TLS_MESSAGE, TLS_SCHEME},
};
use rustls::{
    SignatureAlgorithm, SignatureScheme,
    client::ResolvesClientCert,
    pki_types::CertificateDer,
    server::{ClientHello, ResolvesServerCert},
    sign::{CertifiedKey, Signer, SigningKey},
};
use types::{Base64, ConnectionProof, Document as _, FreshnessKind, Hex32, Sha256Digest};

use crate::PeerError;

/// This guest, by the serving socket of its attester. Handshakes are signed on the thread that makes them: it needs a
/// runtime with several threads.
#[derive(Debug, Clone)]
pub struct Own {
    socket: PathBuf,
}

impl Own {
    /// The guest whose attester serves at `socket`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The newest TLS key, for one connection.
    pub(crate) async fn shown(&self) -> Result<Shown, PeerError> {
        let socket = self.socket.clone();
        let shown = tokio::task::spawn_blocking(move || hold_newest(&socket)).await;
        let (identity, hold) = shown.unwrap_or(Err(CallError::Refused(Failure::Internal)))?;
        Ok(Shown { socket: self.socket.clone(), identity, _hold: hold })
    }
}

/// What a connection began with.
#[derive(Debug)]
pub(crate) struct Shown {
    socket: PathBuf,
    pub(crate) identity: Identity,
    /// While it is open, the attester keeps the key though no other connection has it.
    _hold: UnixStream,
}

impl Shown {
    /// A fresh proof for a connection, in canonical form.
    pub(crate) async fn prove(
        &self,
        kind: FreshnessKind,
        challenge: [u8; 32],
        binding: [u8; 32],
    ) -> Result<Vec<u8>, PeerError> {
        let key = self.identity.spki_sha256;
        let (challenge, binding) = (Hex32::new(challenge), Hex32::new(binding));
        match ask(self.socket.clone(), ServingRequest::Prove { key, kind, challenge, binding }).await? {
            ServingAnswer::Proof { proof } => {
                ConnectionProof::to_canonical(&proof).map_err(|_| CallError::Unexpected.into())
            }
            _ => Err(CallError::Unexpected.into()),
        }
    }

    /// The certificate, with signatures of this side by the attester.
    pub(crate) fn certificate(&self, side: TlsSide) -> Arc<Certificate> {
        let Identity { certificates, spki_sha256, .. } = &self.identity;
        let chain = certificates.iter().map(|der| CertificateDer::from(der.as_slice().to_vec())).collect();
        let key = AttesterKey { socket: self.socket.clone(), key: *spki_sha256, side };
        Arc::new(Certificate(Arc::new(CertifiedKey::new(chain, Arc::new(key)))))
    }
}

/// The one certificate, whatever is asked for.
#[derive(Debug)]
pub(crate) struct Certificate(Arc<CertifiedKey>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl ResolvesClientCert for Certificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[derive(Debug, Clone)]
struct AttesterKey {
    socket: PathBuf,
    key: Sha256Digest,
    side: TlsSide,
}

impl SigningKey for AttesterKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SCHEME).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for AttesterKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let failed = || rustls::Error::General("the attester did not sign".to_owned());
        let message = Base64::<MAX_TLS_MESSAGE>::new(message.to_vec()).ok_or_else(failed)?;
        let Self { key, side, .. } = *self;
        let asked = ServingRequest::SignTls { key, side, scheme: TLS_SCHEME, message };
        match tokio::task::block_in_place(|| ask_now(&self.socket, &asked)).map_err(|_| failed())? {
            ServingAnswer::TlsSignature { signature } => Ok(signature.into_vec()),
            _ => Err(failed()),
        }
    }

    fn scheme(&self) -> SignatureScheme {
        SCHEME
    }
}

async fn ask(socket: PathBuf, request: ServingRequest) -> Result<ServingAnswer, CallError> {
    let asked = tokio::task::spawn_blocking(move || ask_now(&socket, &request)).await;
    asked.unwrap_or(Err(CallError::Refused(Failure::Internal)))
}

/// The newest identity, and the connection that holds its key.
fn hold_newest(socket: &Path) -> Result<(Identity, UnixStream), CallError> {
    let mut stream = connect(socket)?;
    loop {
        let ServingAnswer::Identity(identity) = call(&mut stream, 1, &ServingRequest::Identity {})? else {
            return Err(CallError::Unexpected);
        };
        match call(&mut stream, 2, &ServingRequest::Hold { key: identity.spki_sha256 }) {
            Ok(ServingAnswer::Held {}) => return Ok((*identity, stream)),
            // It was renewed and given up since.
            Err(CallError::Refused(Failure::UnknownKey)) => {}
            Ok(_) => return Err(CallError::Unexpected),
            Err(error) => return Err(error),
        }
    }
}

/// Asks over a connection of its own.
fn ask_now(socket: &Path, request: &ServingRequest) -> Result<ServingAnswer, CallError> {
    call(&mut connect(socket)?, 1, request)
}

fn connect(socket: &Path) -> Result<UnixStream, FrameError> {
    let connected = UnixStream::connect(socket).and_then(|stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    });
    Ok(connected?)
}

const SCHEME: SignatureScheme = SignatureScheme::ED25519;
/// A quote takes 40 ms, and seconds where many guests of a host ask at once.
const PATIENCE: Duration = Duration::from_secs(30);
const _: () = assert!(TLS_SCHEME == 0x0807);
