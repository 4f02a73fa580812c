// SPDX-License-Identifier: Apache-2.0
//! Challenge, proof and verdict, in both directions at once.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use appraise::{Accepted, Verdict};
use attested_channel::tls::exporter;
use attester_protocol::{MAX_EVIDENCE, frame};
use client::{ClientError, GuestProof, GuestSide, Verifier};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio_rustls::TlsStream;
use types::{Base64, ConnectionProof, Document as _, Evidence, FreshnessKind, Hex32, Refusal, Sha256Digest};

use crate::{MAX_MESSAGE, PeerError, own::Shown};

/// What the other side has proven.
#[derive(Debug)]
pub(crate) struct Proven {
    pub(crate) accepted: Accepted,
    pub(crate) verdict: Arc<Verdict>,
    pub(crate) evidence: Arc<Evidence>,
    until: Instant,
}

impl Proven {
    /// By both clocks: setting the wall clock back extends nothing.
    pub(crate) fn holds(&self) -> bool {
        Instant::now() < self.until && unix_now() < self.accepted.expires()
    }
}

/// The two ends of a connection.
pub(crate) struct Ends<'a> {
    /// Which side this guest is.
    pub(crate) side: GuestSide,
    pub(crate) own: &'a Shown,
    /// SHA-256 of the SPKI of the certificate that the peer signed the handshake with.
    pub(crate) peer: &'a Sha256Digest,
    pub(crate) verifier: &'a Verifier,
}

/// What is said before a connection may be used.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Message {
    Challenge { challenge: Hex32 },
    Proof { evidence: Base64<MAX_EVIDENCE>, proof: Base64<{ ConnectionProof::MAX_BYTES }> },
    Accepted {},
    Refused {},
}

/// Proves this guest to the peer and the peer to this guest. Whoever refuses says so, without a reason, and ends.
pub(crate) async fn exchange<S>(stream: &mut TlsStream<S>, ends: Ends<'_>) -> Result<Proven, PeerError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut challenge = [0; 32];
    getrandom::fill(&mut challenge).map_err(|_| PeerError::Randomness)?;
    let own = Message::Challenge { challenge: Hex32::new(challenge) };
    let Message::Challenge { challenge: theirs } = both(stream, &own).await? else {
        return Err(PeerError::Protocol("sent something else than a challenge"));
    };
    if *theirs.as_bytes() == challenge {
        return refuse(stream, vec![refusal(REFLECTED, "the peer's challenge is our own")]).await;
    }
    let bindings = (binding(stream, theirs.as_bytes())?, binding(stream, &challenge)?);
    let proof = ends.own.prove(kind(ends.side), *theirs.as_bytes(), bindings.0).await?;
    let proof = Base64::new(proof).ok_or(PeerError::Protocol("cannot be sent the own proof"))?;
    let own = Message::Proof { evidence: ends.own.identity.evidence.clone(), proof };
    let Message::Proof { evidence, proof } = both(stream, &own).await? else {
        return Err(PeerError::Protocol("sent something else than its proof"));
    };
    let proven = match judge(&ends, &challenge, &bindings.1, evidence.as_slice(), proof.as_slice()) {
        Ok(proven) => proven,
        Err(reasons) => return refuse(stream, reasons).await,
    };
    // A peer that refuses may be gone before it hears this; what it said is still there.
    let sent = say(stream, &Message::Accepted {}).await;
    match hear(stream).await? {
        Message::Accepted {} => sent.map(|()| proven),
        Message::Refused {} => Err(PeerError::RefusedByPeer),
        _ => Err(PeerError::Protocol("sent something else than its verdict")),
    }
}

fn judge(
    ends: &Ends<'_>,
    challenge: &[u8; 32],
    binding: &[u8; 32],
    evidence: &[u8],
    proof: &[u8],
) -> Result<Proven, Vec<Refusal>> {
    let identity = &ends.own.identity;
    let other = match ends.side {
        GuestSide::Client => GuestSide::Server,
        GuestSide::Server => GuestSide::Client,
    };
    let (asked, now) = (Instant::now(), unix_now());
    let given = GuestProof { evidence, proof, challenge, exporter: binding, spki_sha256: ends.peer };
    let judged = ends.verifier.judge_guest(other, given, now).map_err(|error: ClientError| error.reasons())?;
    let (accepted, verdict, evidence) = judged;
    if *ends.peer == identity.spki_sha256 || evidence.instance_key == identity.instance_key {
        return Err(vec![refusal(SELF, "the peer is this guest itself")]);
    }
    let lasts = Duration::from_secs(accepted.expires().saturating_sub(now));
    let until = asked.checked_add(lasts).unwrap_or(asked);
    Ok(Proven { accepted, verdict, evidence, until })
}

/// The kind of this side's own proofs.
const fn kind(side: GuestSide) -> FreshnessKind {
    match side {
        GuestSide::Server => FreshnessKind::Tls,
        GuestSide::Client => FreshnessKind::TlsClient,
    }
}

fn binding<S>(stream: &TlsStream<S>, challenge: &[u8; 32]) -> Result<[u8; 32], PeerError> {
    Ok(match stream {
        TlsStream::Client(stream) => exporter(stream.get_ref().1, challenge)?,
        TlsStream::Server(stream) => exporter(stream.get_ref().1, challenge)?,
    })
}

/// Tells the peer that it is refused, for what that is worth to it.
async fn refuse<S, T>(stream: &mut TlsStream<S>, reasons: Vec<Refusal>) -> Result<T, PeerError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // It may be gone already.
    let _ = say(stream, &Message::Refused {}).await;
    let _ = stream.shutdown().await;
    Err(PeerError::Refused(reasons))
}

/// Sends and receives at the same time: neither side waits for the other to read first.
async fn both<S>(stream: &mut TlsStream<S>, own: &Message) -> Result<Message, PeerError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = split(stream);
    let (heard, ()) = tokio::try_join!(hear(&mut reader), say(&mut writer, own))?;
    Ok(heard)
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), message: &Message) -> Result<(), PeerError> {
    let body = frame::encode(message).map_err(|_| PeerError::Protocol("cannot be sent the own evidence"))?;
    write(stream, SAID, body.get(PREFIX..).unwrap_or_default()).await
}

async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> Result<Message, PeerError> {
    let body = read(stream, SAID).await?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    frame::decode(&body).map_err(|_| PeerError::Protocol("sent no known message"))
}

/// One frame: length (u32, big endian) of what follows, what it is, its bytes.
pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), what: u8, bytes: &[u8]) -> Result<(), PeerError> {
    let length = bytes.len().checked_add(1).and_then(|length| u32::try_from(length).ok());
    let Some(length) = length.filter(|_| bytes.len() <= MAX_MESSAGE) else {
        return Err(PeerError::TooLong(bytes.len()));
    };
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&[what]).await?;
    stream.write_all(bytes).await?;
    stream.flush().await?;
    Ok(())
}

/// The next frame, which must be a `what`; `None` at the connection's end.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin), what: u8) -> Result<Option<Vec<u8>>, PeerError> {
    let mut prefix = [0; PREFIX];
    if stream.read(prefix.get_mut(..1).unwrap_or_default()).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(prefix.get_mut(1..).unwrap_or_default()).await?;
    let length = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
    let Some(length) = length.checked_sub(1) else { return Err(PeerError::Protocol("sent an empty frame")) };
    if length > MAX_MESSAGE {
        return Err(PeerError::TooLong(length));
    }
    if stream.read_u8().await? != what {
        return Err(PeerError::Protocol("sent data where a proof was due, or the other way round"));
    }
    // Grows with what really comes, not with what was announced.
    let mut bytes = Vec::new();
    stream.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() == length { Ok(Some(bytes)) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) }
}

fn refusal((code, field, fix): (&str, &str, &str), detail: &str) -> Refusal {
    Refusal::new(code, field, detail, fix)
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A frame of this exchange.
pub(crate) const SAID: u8 = 1;
/// A message of those who use the connection.
pub(crate) const DATA: u8 = 0;
const PREFIX: usize = 4;
const REFLECTED: (&str, &str, &str) =
    ("challenge_reflected", "challenge", "connect to the guest itself, not to a mirror");
const SELF: (&str, &str, &str) = ("peer_is_self", "evidence.instance_key", "connect to another guest");
