// SPDX-License-Identifier: Apache-2.0
//! Where the guest's API is.

use std::{fmt, str::FromStr};

/// Host and port of an attested API. The name proves nothing and is not checked against anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    host: String,
    port: u16,
}

/// Why a text is no upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an upstream is written https://HOST:PORT")]
pub struct UpstreamError;

impl Upstream {
    /// Makes an upstream from its parts.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: host.to_owned(), port }
    }

    /// Host name or address; an IPv6 address without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        let uri: http::Uri = text.parse().map_err(|_| UpstreamError)?;
        let plain = uri.scheme_str() == Some("https") && uri.path() == "/" && uri.query().is_none();
        let authority = uri.authority().filter(|authority| plain && !authority.as_str().contains('@'));
        let authority = authority.ok_or(UpstreamError)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => HTTPS,
            Some(text) => text.strip_prefix(':').and_then(|port| port.parse().ok()).ok_or(UpstreamError)?,
            None => return Err(UpstreamError),
        };
        if host.is_empty() || port == 0 { Err(UpstreamError) } else { Ok(Self::new(host, port)) }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "https://{}:{}", self.host, self.port)
        }
    }
}

const HTTPS: u16 = 443;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form_only() {
        for (text, shown) in [
            ("https://127.0.0.1:8443", "https://127.0.0.1:8443"),
            ("https://guest/", "https://guest:443"),
            ("https://[::1]:1", "https://[::1]:1"),
        ] {
            assert_eq!(text.parse::<Upstream>().unwrap().to_string(), shown);
        }
        for text in [
            "http://a:1",
            "a:1",
            "https://",
            "https://a:0",
            "https://a:70000",
            "https://a/v1",
            "https://u@a",
            "https://a?x",
        ] {
            assert_eq!(text.parse::<Upstream>(), Err(UpstreamError), "{text}");
        }
    }
}
