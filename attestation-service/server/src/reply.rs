// SPDX-License-Identifier: Apache-2.0
//! What a request comes to: an answer, or a refusal with its reasons.

use http::{Method, StatusCode};
use types::{Refusal, refusal::Refusals};

/// A request that was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// 400 malformed, 403 refused, 404 not there, 405 other method, 408 slow, 415 not JSON, 429 busy, 503 not able to.
    pub status: StatusCode,
    /// All reasons.
    pub reasons: Vec<Refusal>,
    /// The method that the path knows, for 405.
    pub allow: Option<Method>,
}

impl Refused {
    /// One reason.
    #[must_use]
    pub fn one(status: StatusCode, reason: Refusal) -> Self {
        Self { status, reasons: vec![reason], allow: None }
    }

    /// Reasons for a refusal in the narrow sense.
    #[must_use]
    pub const fn because(reasons: Vec<Refusal>) -> Self {
        Self { status: StatusCode::FORBIDDEN, reasons, allow: None }
    }

    /// Malformed input.
    #[must_use]
    pub fn malformed(field: &str, detail: impl Into<String>) -> Self {
        let reason = Refusal::new("request_malformed", field, detail, "send what the protocol's page says");
        Self::one(StatusCode::BAD_REQUEST, reason)
    }

    /// Another method than the path knows.
    #[must_use]
    pub fn other_method(allowed: Method) -> Self {
        let detail = format!("this path knows {allowed} alone");
        let reason = Refusal::new("method_not_allowed", "method", detail, "see /v1/openapi.json");
        Self { allow: Some(allowed), ..Self::one(StatusCode::METHOD_NOT_ALLOWED, reason) }
    }

    /// The service itself is not able to. `error` goes to the service's log, not to the peer.
    #[must_use]
    pub fn unable(code: &'static str, error: &dyn core::fmt::Display) -> Self {
        tracing::error!(code, %error, "not able to answer");
        let reason = Refusal::new(code, "service", "the service can't do this now", "tell the service's operator");
        Self::one(StatusCode::SERVICE_UNAVAILABLE, reason)
    }

    /// The reasons' codes, for logs and counters.
    #[must_use]
    pub fn codes(&self) -> Vec<&str> {
        self.reasons.iter().map(|reason| reason.code.as_str()).collect()
    }

    /// The body of the answer.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let refusals = Refusals { reasons: self.reasons.clone() };
        serde_json::to_vec(&refusals).unwrap_or_else(|_| b"{\"reasons\":[]}".to_vec())
    }
}
