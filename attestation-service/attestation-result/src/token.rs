// SPDX-License-Identifier: Apache-2.0
//! Tokens: JWT in compact form (RFC 7519), one algorithm.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};
use types::Hex32;

use crate::{AttestationResult, claims::worst, key::key_id};

/// Why a token was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// More than [`MAX_TOKEN`] bytes.
    #[error("a token has at most {MAX_TOKEN} bytes, found {0}")]
    TooLarge(usize),
    /// Not three parts in base64url.
    #[error("a token is three parts in base64url, with dots between them")]
    Form,
    /// Another header than ours.
    #[error("the token's header must have alg, typ JWT and kid, and nothing else")]
    Header,
    /// Another algorithm; `none` above all.
    #[error("the token's algorithm must be EdDSA")]
    Algorithm,
    /// Signed by none of the keys.
    #[error("no given key has the token's kid")]
    Key,
    /// The signature is not the key's.
    #[error("the token's signature does not verify")]
    Signature,
    /// The claims are not an attestation result of our profile.
    #[error("the token's claims are malformed: {0}")]
    Claims(String),
    /// Issued for another reader.
    #[error("the token is for another audience")]
    Audience,
    /// Issued in the future.
    #[error("the token was issued at {0} s since 1970, which is yet to come")]
    NotYet(u64),
    /// Over.
    #[error("the token ended at {0} s since 1970")]
    Expired(u64),
}

/// Header of a token.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    alg: String,
    typ: String,
    kid: String,
}

impl Header {
    pub(crate) fn new(kid: String) -> Self {
        Self { alg: ALGORITHM.to_owned(), typ: TYPE.to_owned(), kid }
    }
}

/// Verifies a token at `now` (seconds since 1970) with the keys of a service. A token that names an audience is for that one
/// alone; a reader who is one says so.
///
/// # Errors
/// [`TokenError`].
pub fn verify(token: &str, keys: &[Hex32], audience: Option<&str>, now: u64) -> Result<AttestationResult, TokenError> {
    if token.len() > MAX_TOKEN {
        return Err(TokenError::TooLarge(token.len()));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Form)?;
    let (header, claims) = signed.split_once('.').ok_or(TokenError::Form)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Form);
    let (header, claims, signature) = (decode(header)?, decode(claims)?, decode(signature)?);
    let header = read_header(&header)?;
    let key = keys.iter().find(|key| key_id(key) == header.kid).ok_or(TokenError::Key)?;
    let key = VerifyingKey::from_bytes(key.as_bytes()).map_err(|_| TokenError::Signature)?;
    let signature = Signature::from_slice(&signature).map_err(|_| TokenError::Signature)?;
    key.verify_strict(signed.as_bytes(), &signature).map_err(|_| TokenError::Signature)?;
    // Only now is anything of the claims looked at.
    let result: AttestationResult =
        serde_json::from_slice(&claims).map_err(|error| TokenError::Claims(error.to_string()))?;
    check(&result, audience, now)?;
    Ok(result)
}

/// The algorithm is looked at first: a token that asks for another one gets that answer, whatever else its header has.
fn read_header(bytes: &[u8]) -> Result<Header, TokenError> {
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|_| TokenError::Header)?;
    if value.get("alg").and_then(serde_json::Value::as_str) != Some(ALGORITHM) {
        return Err(TokenError::Algorithm);
    }
    let header: Header = serde_json::from_slice(bytes).map_err(|_| TokenError::Header)?;
    if header.typ == TYPE { Ok(header) } else { Err(TokenError::Header) }
}

fn check(result: &AttestationResult, audience: Option<&str>, now: u64) -> Result<(), TokenError> {
    let malformed = |detail: &str| Err(TokenError::Claims(detail.to_owned()));
    if result.eat_profile != AttestationResult::PROFILE {
        return malformed("another eat_profile");
    }
    if result.submods.is_empty() || result.ear_status < worst(&result.submods) {
        return malformed("a status better than that of a part");
    }
    for submodule in result.submods.values() {
        if submodule.ear_trustworthiness_vector.is_some_and(|vector| submodule.ear_status < vector.tier()) {
            return malformed("a status better than its vector");
        }
    }
    if result.exp <= result.iat || result.exp.saturating_sub(result.iat) > MAX_SECONDS {
        return malformed("it lasts longer than ten minutes, or not at all");
    }
    if result.aud.as_deref() != audience {
        return Err(TokenError::Audience);
    }
    if result.iat > now.saturating_add(MAX_AHEAD) {
        return Err(TokenError::NotYet(result.iat));
    }
    if result.exp <= now { Err(TokenError::Expired(result.exp)) } else { Ok(()) }
}

const ALGORITHM: &str = "EdDSA";
const TYPE: &str = "JWT";
/// How long a token counts at most, in seconds.
pub const MAX_SECONDS: u64 = 600;
/// Most bytes of a token.
pub const MAX_TOKEN: usize = 16 * 1024;
/// How far the issuer's clock may be ahead of the reader's, in seconds.
const MAX_AHEAD: u64 = 60;
