// SPDX-License-Identifier: Apache-2.0
//! A connection between two guests that have both proven themselves.
//!
//! Each side shows its attester's certificate in the TLS 1.3 handshake, challenges the other, proves itself for the other's
//! challenge with its own exporter of the connection, and judges the other by a policy of its own. Nothing else passes before
//! both have accepted ([`connect`], [`accept`]). The two sides' proofs are of different kinds, so that none passes for the
//! other's.
//!
//! What it does not establish: that a peer was not exchanged for another genuine guest that the policy accepts as well. Pin
//! `instances` where it matters which one it is.

mod connection;
mod exchange;
mod own;

pub use connection::{Peer, accept, connect};
pub use own::Own;

use std::io;

use attester_protocol::CallError;
use types::Refusal;

/// Why there is no connection, or no message on one. After any of them the connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// This guest's own attester did not answer, or refused: `unknown-key` where the TLS key of the connection was given up.
    #[error("the own attester: {0}")]
    Attester(#[from] CallError),
    /// The TLS handshake failed, for example because the other side showed no certificate.
    #[error("the TLS handshake failed: {0}")]
    Handshake(#[source] io::Error),
    /// The connection ended.
    #[error("the connection to the peer ended")]
    Broken(#[from] io::Error),
    /// The peer did not keep to the protocol: it sent, for example, data where a proof was due.
    #[error("the peer {0}")]
    Protocol(&'static str),
    /// The peer is not who it must be, with all independent reasons.
    #[error("refused: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Refusal>),
    /// The peer did not accept this guest. It does not say why.
    #[error("the peer refused this guest")]
    RefusedByPeer,
    /// The verdict is over: prove anew ([`Peer::renew`]), or connect anew.
    #[error("the proof of the peer is too old")]
    Expired,
    /// A message has more than [`MAX_MESSAGE`] bytes.
    #[error("a message of {0} bytes is too long")]
    TooLong(usize),
    /// Both sides together took too long to prove themselves.
    #[error("the peer took too long")]
    Timeout,
    /// The system gave no randomness for a challenge.
    #[error("the system gave no randomness")]
    Randomness,
    /// The TLS library refused its settings or its exporter.
    #[error("the TLS library: {0}")]
    Tls(#[from] rustls::Error),
}

/// Most bytes of a message.
pub const MAX_MESSAGE: usize = 1 << 20;
