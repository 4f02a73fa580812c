// SPDX-License-Identifier: Apache-2.0
//! Why the service gave no time or no key.

use key_release_protocol::SealError;
use types::Refusal;

/// Why a step with the service failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The service refused, with its reasons.
    #[error("the service refused: {}", .0.iter().map(|reason| reason.code.as_str()).collect::<Vec<_>>().join(", "))]
    Refused(Vec<Refusal>),
    /// A step took too long.
    #[error("{step} took longer than {seconds} s")]
    Timeout {
        /// Which step.
        step: &'static str,
        /// How long it may take.
        seconds: u64,
    },
    /// The key behind the link is not the pinned one.
    #[error("the service's key is not the pinned one")]
    Pin,
    /// The TLS handshake failed for another reason.
    #[error("the TLS handshake failed: {0}")]
    Tls(#[source] std::io::Error),
    /// TLS settings or exporter.
    #[error("TLS: {0}")]
    Channel(#[from] rustls::Error),
    /// The connection broke.
    #[error("the connection to the service broke: {0}")]
    Http(#[from] hyper::Error),
    /// An answer that is not what the protocol says.
    #[error("the service's answer to {step} is malformed: {rule}")]
    Answer {
        /// Which step.
        step: &'static str,
        /// Which rule.
        rule: String,
    },
    /// More work than a client does, or none that could be done.
    #[error("the service asks for work of {bits} bits")]
    Work {
        /// What it asks for.
        bits: u8,
    },
    /// The signed time breaks a rule.
    #[error("the signed time is refused: {0}")]
    Time(&'static str),
    /// The answer is not provably on the audit log.
    #[error("the proof of the audit entry does not verify: {0}")]
    Audit(String),
    /// The sealed key does not open.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl ClientError {
    /// Stable code. For a refusal it is the code of the first reason.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Refused(reasons) => reasons.first().map_or("service_refused", |reason| reason.code.as_str()),
            Self::Timeout { .. } => "service_timeout",
            Self::Pin => "service_pin_mismatch",
            Self::Tls(_) | Self::Channel(_) => "service_tls",
            Self::Http(_) => "service_connection",
            Self::Answer { .. } => "service_answer_malformed",
            Self::Work { .. } => "service_work",
            Self::Time(_) => "service_time",
            Self::Audit(_) => "audit_proof",
            Self::Seal(_) => "sealed_key",
        }
    }
}
