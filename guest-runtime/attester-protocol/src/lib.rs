// SPDX-License-Identifier: Apache-2.0
//! What init, serve and the attester say to each other, over Unix sockets inside the guest.
//!
//! Every message is one frame ([`frame`]). A request carries an `id` chosen by the sender, its response carries the
//! same `id`. On the *control* socket (init alone holds its other end) one request is answered before the next is
//! read. On the *serving* socket requests may be sent without waiting and responses come **in any order**: a proof
//! waits for a quote while signatures overtake it. A sender that uses one connection for one request at a time
//! ([`call`]) need not care.
//!
//! Nothing secret is in any message. The attester trusts neither peer with its keys; it trusts init to extend the events
//! in truth, since init is measured and alone on the control socket.

pub mod control;
pub mod frame;
pub mod serving;

use serde::{Deserialize, Serialize};

pub use control::{Configuration, ControlAnswer, ControlRequest};
pub use frame::{FrameError, MAX_FRAME};
pub use serving::{Identity, MAX_EVIDENCE, ServingAnswer, ServingRequest, TlsSide};

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request<B> {
    /// Any number; the response repeats it. Open requests of one connection must have different ones.
    pub id: u64,
    /// What is asked.
    pub body: B,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response<B> {
    /// The request's number.
    pub id: u64,
    /// What came of it.
    pub outcome: Outcome<B>,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome<B> {
    /// It was done.
    Done(B),
    /// It was refused or failed. The connection stays usable.
    Failed(Failure),
}

/// Why the attester refused a request. After a frame that it cannot read it closes the connection instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// `extend`: not the next event of a boot.
    #[error("the event is not the next one of a boot")]
    EventOrder,
    /// `extend`: `keys-closed` before `seal`.
    #[error("keys-closed may be extended only after seal")]
    NotSealed,
    /// A control request that is no longer answered after `seal`, or after the event `serve`.
    #[error("the attester is sealed")]
    Sealed,
    /// `configure` a second time.
    #[error("the attester is configured already")]
    AlreadyConfigured,
    /// The configuration is not one, or not the one whose digest stands in MRCONFIGID.
    #[error("the configuration is not the one in MRCONFIGID")]
    Configuration,
    /// Evidence was asked for before `configure`.
    #[error("the attester is not configured")]
    NotConfigured,
    /// `key-release-evidence` at another moment than right after the event `gpu`.
    #[error("key-release evidence is made only between the events gpu and keys")]
    NotKeyRelease,
    /// `sign-tls`: the message is not the content of a TLS 1.3 `CertificateVerify` of the given side.
    #[error("the message is not the content of a TLS 1.3 CertificateVerify of this side")]
    NotCertificateVerify,
    /// The TLS key is not one of this guest, or is no longer kept.
    #[error("there is no such TLS key any more")]
    UnknownKey,
    /// `retire`: the TLS key is the newest, or held.
    #[error("the TLS key is in use")]
    KeyInUse,
    /// `sign-receipt`: the evidence document is not one of this guest.
    #[error("the evidence is not of this guest")]
    UnknownEvidence,
    /// `sign-tls`: another scheme than that of the key.
    #[error("the TLS key does not sign by this scheme")]
    Scheme,
    /// `prove`: a kind that serve may not ask for.
    #[error("serve may not ask for a proof of this kind")]
    Kind,
    /// Too many open requests.
    #[error("too many open requests")]
    Busy,
    /// The quote device failed.
    #[error("the quote device failed")]
    Device,
    /// An answer would exceed its cap.
    #[error("the answer would exceed its cap")]
    TooLarge,
    /// The attester broke; nothing was signed.
    #[error("internal failure")]
    Internal,
}

/// Why a call had no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The socket or the frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The attester said no.
    #[error("the attester refused: {0}")]
    Refused(Failure),
    /// The response is to another request, or of another kind.
    #[error("the attester answered something else than was asked")]
    Unexpected,
}

/// Sends one request and waits for its response: for connections with one open request at a time.
///
/// # Errors
/// [`CallError`]. After any but [`CallError::Refused`] close the connection.
pub fn call<S, Q, A>(stream: &mut S, id: u64, body: &Q) -> Result<A, CallError>
where
    S: std::io::Read + std::io::Write,
    Q: Serialize,
    A: serde::de::DeserializeOwned,
{
    frame::write(stream, &Request { id, body })?;
    let response: Response<A> = frame::read(stream)?.ok_or(FrameError::Closed)?;
    if response.id != id {
        return Err(CallError::Unexpected);
    }
    match response.outcome {
        Outcome::Done(answer) => Ok(answer),
        Outcome::Failed(failure) => Err(CallError::Refused(failure)),
    }
}

/// Descriptor of the control socket in the attester (one end of a socket pair).
pub const CONTROL_FD: i32 = 3;
/// Descriptor of the listening serving socket in the attester.
pub const SERVING_FD: i32 = 4;
/// Where init binds the serving socket; only init and serve's user may connect.
pub const SERVING_PATH: &str = "/run/attester.sock";
