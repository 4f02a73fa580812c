// SPDX-License-Identifier: Apache-2.0
//! A key of a transit service (HashiCorp Vault's "Transit Secrets Engine (API)", which OpenBao has as well): it encrypts
//! and decrypts, and keeps the key. The service is not believed about what belongs to which context: that is sealed in.

use std::path::PathBuf;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use zeroize::Zeroizing;

use self::answer::MAX_WRAPPED;
use self::http::{Endpoint, Failure};
use crate::source::{KekSourceError, pairs, private_text};
use crate::{KekError, KeyWrap, MAX_SECRET, WrapError};

pub mod answer;
mod http;

/// Which key of which service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransitSettings {
    /// `https://HOST[:PORT]`.
    base: String,
    mount: String,
    key: String,
    token_file: PathBuf,
    ca_file: PathBuf,
    namespace: Option<String>,
}

/// A key of a transit service.
pub(crate) struct TransitKek {
    settings: TransitSettings,
    id: String,
    endpoint: Endpoint,
}

#[derive(Serialize)]
struct Encrypt<'a> {
    plaintext: &'a str,
    associated_data: &'a str,
}

#[derive(Serialize)]
struct Decrypt<'a> {
    ciphertext: &'a str,
    associated_data: &'a str,
}

impl TransitSettings {
    pub(crate) fn parse(text: &str) -> Result<Self, KekSourceError> {
        let bad = |rule: &str| KekSourceError(format!("transit: {rule}"));
        let (address, query) = text.split_once('?').unwrap_or((text, ""));
        let [token_file, ca_file, namespace] = pairs(query, '&', ["token-file", "ca-file", "namespace"])?;
        let rest = address.split_once("://").map_or("", |(_, rest)| rest);
        let (authority, path) = rest.split_once('/').ok_or_else(|| bad("the address needs /MOUNT/KEY"))?;
        let (mount, key) = path.rsplit_once('/').ok_or_else(|| bad("the address needs /MOUNT/KEY"))?;
        let plain = |part: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
            !part.is_empty() && part.bytes().all(allowed) && !part.starts_with('.')
        };
        if !mount.split('/').all(plain) || !plain(key) || namespace.as_deref().is_some_and(|n| !n.split('/').all(plain))
        {
            return Err(bad("names of mounts, keys and namespaces have A-Z a-z 0-9 _ - . alone"));
        }
        let base = address.strip_suffix(&format!("/{path}")).unwrap_or_default().to_owned();
        let loopback = base.starts_with("http://127.0.0.1:") || base.starts_with("http://[::1]:");
        let host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
        if authority.is_empty() || !authority.bytes().all(host) || !(base.starts_with("https://") || loopback) {
            return Err(bad(
                "the address must be of https (http to the loopback address alone), of a host and a port alone",
            ));
        }
        Ok(Self {
            base,
            mount: mount.to_owned(),
            key: key.to_owned(),
            token_file: token_file.ok_or_else(|| bad("`token-file` is missing"))?.into(),
            ca_file: ca_file.map_or_else(|| SYSTEM_CERTIFICATES.into(), PathBuf::from),
            namespace,
        })
    }
}

impl TransitKek {
    /// Connects, and looks whether the key is there and keeps secrets apart by their contexts.
    pub(crate) fn open(settings: &TransitSettings) -> Result<Self, KekError> {
        let endpoint = Endpoint::new(&settings.base, &settings.ca_file)?;
        let namespace = settings.namespace.as_ref().map_or_else(String::new, |name| format!("?namespace={name}"));
        let id = format!("transit:{}/{}/{}{namespace}", settings.base, settings.mount, settings.key);
        let kek = Self { settings: settings.clone(), id, endpoint };
        let probe = kek.wrap(b"probe", b"chrysalis/kek-probe/v1")?;
        if kek.open(&probe, b"chrysalis/kek-probe/v1")?.as_slice() != b"probe" {
            return Err(KekError::Unfit("the transit service does not give back what it was given".to_owned()));
        }
        Ok(kek)
    }

    fn ask<A: Serialize>(&self, what: &str, body: &A) -> Result<Zeroizing<Vec<u8>>, WrapError> {
        let unavailable = |e: &dyn core::fmt::Display| WrapError::Unavailable(format!("the transit service: {e}"));
        // Read each time: agents renew it.
        let token = private_text(&self.settings.token_file).map_err(|e| unavailable(&e))?;
        let path = format!("/v1/{}/{what}/{}", self.settings.mount, self.settings.key);
        let body = Zeroizing::new(serde_json::to_vec(body).map_err(|e| unavailable(&e))?);
        match self.endpoint.post(&path, token, self.settings.namespace.as_deref(), body) {
            Ok(answer) => Ok(answer),
            // What it says of a ciphertext that is not its key's, or of another context.
            Err(Failure::Status(400)) if what == "decrypt" => Err(WrapError::Open),
            Err(Failure::Status(403)) => Err(unavailable(&"it does not accept the token (403)")),
            Err(Failure::Status(404)) => Err(unavailable(&format!("it has no key {} (404)", self.id))),
            Err(Failure::Status(503)) => Err(unavailable(&"it is sealed, or in maintenance (503)")),
            Err(other) => Err(unavailable(&other)),
        }
    }
}

impl KeyWrap for TransitKek {
    fn id(&self) -> &str {
        &self.id
    }

    /// A key of this name, wherever the service was: it may have moved, and earlier programs did not say where it is.
    fn may_open(&self, name: &str) -> bool {
        let key = format!("{}/{}", self.settings.mount, self.settings.key);
        let name = name.split_once('?').map_or(name, |(name, _)| name);
        let there = name.strip_prefix("transit:").and_then(|rest| rest.strip_suffix(&key));
        there.is_some_and(|base| base.is_empty() || base.ends_with('/'))
    }

    fn is_remote(&self) -> bool {
        true
    }

    /// The service's text, as `vault:v1:…`. Inside are the secret and a digest over context and secret.
    fn wrap(&self, secret: &[u8], context: &[u8]) -> Result<Vec<u8>, WrapError> {
        if secret.len() > MAX_SECRET {
            return Err(WrapError::Seal);
        }
        let plaintext = Zeroizing::new(STANDARD.encode(answer::bound(secret, context).as_slice()));
        let body = Encrypt { plaintext: &plaintext, associated_data: &STANDARD.encode(context) };
        answer::encrypted(&self.ask("encrypt", &body)?)
    }

    fn open(&self, wrapped: &[u8], context: &[u8]) -> Result<Zeroizing<Vec<u8>>, WrapError> {
        let ciphertext = core::str::from_utf8(wrapped).map_err(|_| WrapError::Open)?;
        if ciphertext.is_empty() || ciphertext.len() > MAX_WRAPPED {
            return Err(WrapError::Open);
        }
        let body = Decrypt { ciphertext, associated_data: &STANDARD.encode(context) };
        answer::decrypted(&self.ask("decrypt", &body)?, context)
    }
}

const SYSTEM_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
