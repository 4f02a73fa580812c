// SPDX-License-Identifier: Apache-2.0
//! Why a connection, a request or an answer failed.

use std::io;

use attested_channel::tls::refused_certificate;
use rustls::CertificateError;
use types::Refusal;

/// Why there is no attested connection, or no answer on one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The upstream cannot be reached.
    #[error("cannot connect to {upstream}: {source}")]
    Unreachable {
        /// Host and port.
        upstream: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The connection broke or took too long.
    #[error("the connection to the guest ended while {0}")]
    Broken(&'static str),
    /// The connection had ended before any of the request was sent on it: it may be sent on another one.
    #[error("the connection to the guest ended before the request was sent")]
    Unsent,
    /// The guest, its evidence or its receipt was refused, with all independent reasons.
    #[error("refused: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Refusal>),
    /// The guest answered with an error object.
    #[error("the guest answered {status} {code}")]
    Answered {
        /// HTTP status.
        status: u16,
        /// The error object's code, or `unknown`.
        code: String,
    },
    /// The system gave no randomness for a challenge.
    #[error("the system gave no randomness")]
    Randomness,
}

impl ClientError {
    /// One refusal.
    pub(crate) fn refuse(code: &str, field: &str, detail: impl Into<String>, fix: &str) -> Self {
        Self::Refused(vec![Refusal::new(code, field, detail, fix)])
    }

    /// Whether something was looked at and not accepted, as against a network that failed.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// The reasons with their stable codes. Never empty.
    #[must_use]
    pub fn reasons(&self) -> Vec<Refusal> {
        let one = |code: &str, field: &str, fix: &str| vec![Refusal::new(code, field, self.to_string(), fix)];
        match self {
            Self::Refused(reasons) if !reasons.is_empty() => reasons.clone(),
            Self::Refused(_) => one("refused", "guest", "connect to another guest"),
            Self::Unreachable { .. } => one("upstream_unreachable", "upstream", "check address, port and network"),
            Self::Broken(_) | Self::Unsent => {
                one("upstream_broken", "upstream", "try again; see whether the guest still serves")
            }
            Self::Answered { .. } => one("upstream_error", "upstream", "correct the request, or try again"),
            Self::Randomness => one("no_randomness", "system", "start the program on a system with getrandom"),
        }
    }

    /// What a failed handshake says.
    pub(crate) fn of_handshake(error: &io::Error) -> Self {
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return Self::Broken("the TLS handshake was made");
        };
        if let Some(refused) = refused_certificate(tls) {
            let fix = "connect to a guest's attested API, not to another server";
            return Self::refuse(refused.code(), "certificate", refused.to_string(), fix);
        }
        match tls {
            rustls::Error::InvalidCertificate(CertificateError::BadSignature) => Self::refuse(
                "certificate_key_not_held",
                "certificate",
                "the handshake was not signed by the certificate's key",
                "connect to the guest that the certificate belongs to",
            ),
            other => Self::refuse(
                "tls_handshake",
                "tls",
                format!("the TLS 1.3 handshake failed: {other}"),
                "connect to a guest's attested API",
            ),
        }
    }
}
