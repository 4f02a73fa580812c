// SPDX-License-Identifier: Apache-2.0
//! The attester's side of `serve`: identity, proofs and receipts on one connection, handshake signatures on another.

use std::{
    collections::HashMap,
    io,
    os::unix::net::UnixStream as BlockingStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use attested_channel::{Receipt, SignedReceipt};
use attester_protocol::{
    CallError, Failure, FrameError, Identity, Outcome, Request, Response, ServingAnswer, ServingRequest, TlsSide, call,
    frame, serving::TLS_SCHEME,
};
use rustls::{
    SignatureAlgorithm, SignatureScheme,
    pki_types::CertificateDer,
    server::{ClientHello, ResolvesServerCert},
    sign::{CertifiedKey, Signer, SigningKey},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
};
use types::{Base64, ConnectionProof, Document as _, FreshnessKind, Hex32, Sha256Digest};

/// Why the attester did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AttesterError {
    /// The socket failed.
    #[error("the attester's socket failed")]
    Socket(#[from] io::Error),
    /// Frames that are none.
    #[error("the attester broke the protocol")]
    Frame(#[from] FrameError),
    /// It refused.
    #[error("the attester refused: {0}")]
    Refused(Failure),
    /// The answer is of another kind or form than asked for.
    #[error("the attester answered something else than was asked")]
    Unexpected,
    /// The connection is closed.
    #[error("the attester closed the connection")]
    Closed,
}

type Answer = Outcome<ServingAnswer>;

/// A connection to the attester; many requests may wait on it.
#[derive(Debug, Clone)]
pub(crate) struct Attester {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    requests: mpsc::Sender<Vec<u8>>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    next: AtomicU64,
}

impl Attester {
    /// Connects. The future beside it runs the connection and ends with it.
    pub(crate) async fn connect(
        path: &Path,
    ) -> Result<(Self, impl Future<Output = AttesterError> + Send + use<>), AttesterError> {
        let (reader, writer) = UnixStream::connect(path).await?.into_split();
        let (requests, frames) = mpsc::channel(REQUESTS_AHEAD);
        let shared = Arc::new(Shared { requests, waiting: Mutex::default(), next: AtomicU64::new(1) });
        let attester = Self { shared: Arc::clone(&shared) };
        let run = async move {
            let error = tokio::select! {
                error = read(&shared, reader) => error,
                error = write(writer, frames) => error,
            };
            shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
            error
        };
        Ok((attester, run))
    }

    /// Who this guest is.
    pub(crate) async fn identity(&self) -> Result<Identity, AttesterError> {
        match self.ask(ServingRequest::Identity {}).await? {
            ServingAnswer::Identity(identity) => Ok(*identity),
            _ => Err(AttesterError::Unexpected),
        }
    }

    /// Who this guest is once its TLS key is another one than `key`.
    pub(crate) async fn successor(&self, key: Sha256Digest) -> Result<Identity, AttesterError> {
        match self.ask(ServingRequest::Successor { key }).await? {
            ServingAnswer::Identity(identity) => Ok(*identity),
            _ => Err(AttesterError::Unexpected),
        }
    }

    /// Says that no connection uses a key any more. Waits for nothing: where it is not heard, the attester's own limit holds.
    pub(crate) fn retire(&self, key: Sha256Digest) {
        let Ok(place) = self.shared.requests.try_reserve() else { return };
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let Ok(frame) = frame::encode(&Request { id, body: ServingRequest::Retire { key } }) else { return };
        let (sender, _) = oneshot::channel();
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        place.send(frame);
    }

    /// A fresh proof for a connection that began with `key`, in canonical form.
    pub(crate) async fn prove(
        &self,
        key: Sha256Digest,
        challenge: Hex32,
        binding: Hex32,
    ) -> Result<Vec<u8>, AttesterError> {
        match self.ask(ServingRequest::Prove { key, kind: FreshnessKind::Tls, challenge, binding }).await? {
            ServingAnswer::Proof { proof } => {
                ConnectionProof::to_canonical(&proof).map_err(|_| AttesterError::Unexpected)
            }
            _ => Err(AttesterError::Unexpected),
        }
    }

    /// The next receipt.
    pub(crate) async fn sign_receipt(&self, request: ServingRequest) -> Result<SignedReceipt, AttesterError> {
        let ServingAnswer::Receipt { receipt, signature } = self.ask(request).await? else {
            return Err(AttesterError::Unexpected);
        };
        let receipt = Receipt::from_canonical(receipt.as_slice()).map_err(|_| AttesterError::Unexpected)?;
        let signature = signature.as_slice().try_into().map_err(|_| AttesterError::Unexpected)?;
        Ok(SignedReceipt { receipt, signature })
    }

    async fn ask(&self, body: ServingRequest) -> Result<ServingAnswer, AttesterError> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let frame = frame::encode(&Request { id, body })?;
        let (sender, receiver) = oneshot::channel();
        // A client that goes away here, while the attester takes nothing, leaves nothing behind.
        let place = self.shared.requests.reserve().await.map_err(|_| AttesterError::Closed)?;
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        place.send(frame);
        match receiver.await.map_err(|_| AttesterError::Closed)? {
            Outcome::Done(answer) => Ok(answer),
            Outcome::Failed(failure) => Err(AttesterError::Refused(failure)),
        }
    }
}

async fn read(shared: &Shared, mut reader: OwnedReadHalf) -> AttesterError {
    loop {
        let response = match read_response(&mut reader).await {
            Ok(response) => response,
            Err(error) => return error,
        };
        let asked = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&response.id);
        let Some(asked) = asked else { return AttesterError::Unexpected };
        // The asker may be gone: its client closed the connection.
        drop(asked.send(response.outcome));
    }
}

async fn read_response(reader: &mut OwnedReadHalf) -> Result<Response<ServingAnswer>, AttesterError> {
    let mut prefix = [0; 4];
    reader.read_exact(&mut prefix).await.map_err(|_| AttesterError::Closed)?;
    let mut body = vec![0; frame::body_length(prefix)?];
    reader.read_exact(&mut body).await?;
    Ok(frame::decode(&body)?)
}

async fn write(mut writer: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) -> AttesterError {
    while let Some(frame) = frames.recv().await {
        if let Err(error) = writer.write_all(&frame).await {
            return error.into();
        }
    }
    AttesterError::Closed
}

/// The certificate, with signatures made by the attester.
///
/// Signing waits for the attester's socket inside the handshake, for about a tenth of a millisecond. It must run
/// on a runtime with several threads.
pub(crate) fn resolver(socket: &Arc<TlsSocket>, identity: &Identity) -> Arc<dyn ResolvesServerCert> {
    let chain = identity.certificates.iter().map(|der| CertificateDer::from(der.as_slice().to_vec())).collect();
    let key = AttesterKey { key: identity.spki_sha256, socket: Arc::clone(socket) };
    Arc::new(OneCertificate(Arc::new(CertifiedKey::new(chain, Arc::new(key)))))
}

#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl ResolvesServerCert for OneCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[derive(Debug, Clone)]
struct AttesterKey {
    key: Sha256Digest,
    socket: Arc<TlsSocket>,
}

/// A connection of its own to the attester, for signatures of handshakes.
#[derive(Debug)]
pub(crate) struct TlsSocket {
    path: PathBuf,
    stream: Mutex<Option<BlockingStream>>,
    next: AtomicU64,
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
        let message = Base64::new(message.to_vec()).ok_or_else(refused)?;
        tokio::task::block_in_place(|| self.socket.sign(self.key, message)).map_err(|_| refused())
    }

    fn scheme(&self) -> SignatureScheme {
        SCHEME
    }
}

impl TlsSocket {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), stream: Mutex::new(None), next: AtomicU64::new(1) }
    }

    fn sign(
        &self,
        key: Sha256Digest,
        message: Base64<{ attester_protocol::serving::MAX_TLS_MESSAGE }>,
    ) -> Result<Vec<u8>, CallError> {
        let mut slot = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stream = match slot.take() {
            Some(stream) => stream,
            None => self.connect().map_err(FrameError::from)?,
        };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let asked = ServingRequest::SignTls { key, side: TlsSide::Server, scheme: TLS_SCHEME, message };
        let answer = call(&mut stream, id, &asked);
        if matches!(answer, Ok(_) | Err(CallError::Refused(_))) {
            *slot = Some(stream);
        }
        match answer? {
            ServingAnswer::TlsSignature { signature } => Ok(signature.into_vec()),
            _ => Err(CallError::Unexpected),
        }
    }

    fn connect(&self) -> io::Result<BlockingStream> {
        let stream = BlockingStream::connect(&self.path)?;
        stream.set_read_timeout(Some(SIGN_PATIENCE))?;
        stream.set_write_timeout(Some(SIGN_PATIENCE))?;
        Ok(stream)
    }
}

fn refused() -> rustls::Error {
    rustls::Error::General("the attester did not sign".to_owned())
}

const SCHEME: SignatureScheme = SignatureScheme::ED25519;
const REQUESTS_AHEAD: usize = 256;
const SIGN_PATIENCE: Duration = Duration::from_secs(5);

const _: () = assert!(TLS_SCHEME == 0x0807);

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients that hang up must not fill the memory of a guest whose attester is slow.
    #[tokio::test]
    async fn who_hangs_up_before_the_question_was_sent_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        // Nobody runs the connection: questions stay in the channel until it is full.
        let (attester, _run) = Attester::connect(&path).await.unwrap();
        for _ in 0..2 * REQUESTS_AHEAD {
            let asked = attester.prove(Sha256Digest::ZERO, Hex32::default(), Hex32::default());
            assert!(tokio::time::timeout(Duration::ZERO, asked).await.is_err());
        }
        assert_eq!(attester.shared.waiting.lock().unwrap().len(), REQUESTS_AHEAD);
    }
}
