// SPDX-License-Identifier: Apache-2.0
//! Buckets of S3-compatible stores: their addresses, signed requests, and what a store means when it refuses one.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue, header};
use types::Refusal;

use crate::error::SourceError;
use crate::source::credentials::{self, CredentialsError};
use crate::source::http::{Endpoint, SourceAddressError};
use crate::source::sigv4::{self, EMPTY_SHA256, Keys, Scope, Stamp};

/// A bucket, and the file with the key that it is read with. Holds no secret: the file is read for each request, and again
/// where the store refuses a key, so that a renewed one counts at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// What messages call it, as `buckets.models`.
    pub section: String,
    /// `https://HOST[:PORT]`, or `http://…`: then whoever is on the way can use a request again for a quarter of an hour,
    /// and sees a session token, not the secret key.
    pub endpoint: String,
    /// The region that signatures are made for.
    pub region: String,
    /// Its name.
    pub name: String,
    /// Where its name stands in a request.
    pub style: BucketStyle,
    /// `aws_access_key_id`, `aws_secret_access_key` and perhaps `aws_session_token`, in the form of AWS's own file.
    pub credentials: PathBuf,
}

/// Where a bucket's name stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketStyle {
    /// In the path: `https://HOST/BUCKET/KEY`.
    Path,
    /// In the host's name: `https://BUCKET.HOST/KEY`.
    VirtualHost,
}

/// Why a store refused a signed request: known words of its answer, nothing else of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreFault {
    /// `SignatureDoesNotMatch`.
    #[error("the store computes another signature: the secret key is not that of the key's id")]
    Signature,
    /// `InvalidAccessKeyId`.
    #[error("the store knows no key with this id")]
    UnknownKey,
    /// `RequestTimeTooSkewed`.
    #[error("this machine's clock and the store's are too far apart")]
    Clock,
    /// `ExpiredToken`, `InvalidToken`, `TokenRefreshRequired`.
    #[error("the session token is not valid, or not any more")]
    Token,
    /// `AccessDenied`.
    #[error("this key may not read the object, or there is none and the key may not know")]
    Denied,
    /// `AuthorizationHeaderMalformed` and its like.
    #[error("the bucket is of another region than the signature")]
    Region,
    /// A redirection. It is not followed: a signature is for one host.
    #[error("the store answered with redirection {0}, which is not followed")]
    Redirected(u16),
    /// `NoSuchBucket`.
    #[error("there is no such bucket")]
    NoBucket,
    /// `NoSuchKey`.
    #[error("there is no such object")]
    NoObject,
}

impl Bucket {
    /// Whether the fields can be those of a bucket.
    ///
    /// # Errors
    /// [`SourceAddressError::Bucket`] with the field.
    pub fn check(&self) -> Result<(), SourceAddressError> {
        // Certificates are read when they are used.
        match self.endpoint(|| Err(io::ErrorKind::NotFound.into())) {
            Err(SourceAddressError::Authorities(_)) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the file of credentials can be used now.
    ///
    /// # Errors
    /// Why not.
    pub fn check_credentials(&self) -> Result<(), Refusal> {
        credentials::read(&self.credentials).map(drop).map_err(|fault| refuse_credentials(&self.section, &fault))
    }

    /// Where its objects are, without a key.
    fn endpoint(&self, authorities: impl FnOnce() -> io::Result<Vec<u8>>) -> Result<Endpoint, SourceAddressError> {
        let bad = |field, rule| SourceAddressError::Bucket { field, rule };
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        let edges = !self.name.starts_with(['-', '.']) && !self.name.ends_with(['-', '.']);
        let named = (3..=63).contains(&self.name.len()) && self.name.bytes().all(inner);
        if !named || !edges || self.name.contains("..") {
            return Err(bad("bucket", "a bucket's name is 3 to 63 small letters, digits, dots and hyphens"));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !(1..=63).contains(&self.region.len()) || !self.region.bytes().all(plain) {
            return Err(bad("region", "a region is up to 63 letters, digits and hyphens, such as us-east-1"));
        }
        if !self.credentials.is_absolute() {
            return Err(bad("credentials", "it must be an absolute path"));
        }
        let address = "it must be http://HOST[:PORT] or https://HOST[:PORT], without path, query or user";
        let mut endpoint = Endpoint::parse(&self.endpoint, authorities).map_err(|error| match error {
            SourceAddressError::Form => bad("endpoint", address),
            other => other,
        })?;
        if !endpoint.path.is_empty() || !endpoint.query.is_empty() {
            return Err(bad("endpoint", address));
        }
        match self.style {
            BucketStyle::Path => endpoint.path = format!("/{}", self.name),
            BucketStyle::VirtualHost => {
                if self.name.contains('.') {
                    return Err(bad("style", "a name with dots is in no certificate's wildcard: use path"));
                }
                if endpoint.host.parse::<IpAddr>().is_ok() {
                    return Err(bad("style", "no name can stand before an IP address: use path"));
                }
                endpoint.host = format!("{}.{}", self.name, endpoint.host);
            }
        }
        Ok(endpoint)
    }

    /// The address of what is below `prefix`.
    pub(crate) fn below(
        &self,
        prefix: &str,
        authorities: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> Result<Endpoint, SourceAddressError> {
        let prefix = prefix.trim_end_matches('/');
        // Segments that somebody on the way would resolve are in no key that we write.
        let plain = |segment: &str| !matches!(segment, "" | "." | "..") && !segment.contains(char::is_control);
        if prefix.len() > MAX_PREFIX || !(prefix.is_empty() || prefix.split('/').all(plain)) {
            return Err(SourceAddressError::Prefix);
        }
        let mut endpoint = self.endpoint(authorities)?;
        if !prefix.is_empty() {
            endpoint.path = format!("{}/{}", endpoint.path, sigv4::encode(prefix));
        }
        let shown = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        // As the configuration names it: two stores may have buckets of one name.
        let known = self.section.strip_prefix("buckets.").unwrap_or(&self.section);
        endpoint.signer = Some(Arc::new(Signer { bucket: self.clone(), label: format!("s3://{known}{shown}") }));
        Ok(endpoint)
    }
}

/// Signs the requests of one source.
pub(crate) struct Signer {
    bucket: Bucket,
    /// The source, in messages.
    pub(crate) label: String,
}

impl Signer {
    /// Adds what makes a GET for `path` a signed one, and gives the key. Reads the file of credentials.
    pub(crate) fn sign(&self, path: &str, headers: &mut HeaderMap) -> Result<Keys, SourceError> {
        let keys = self.keys()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|now| i64::try_from(now.as_secs()).ok());
        let stamp = now.and_then(Stamp::of).ok_or_else(|| self.refused(StoreFault::Clock))?;
        let value = |text: &str| HeaderValue::from_str(text).map_err(|_| SourceError::Http);
        headers.insert("x-amz-date", value(stamp.as_str())?);
        headers.insert("x-amz-content-sha256", HeaderValue::from_static(EMPTY_SHA256));
        if let Some(token) = &keys.token {
            let mut token = value(token)?;
            token.set_sensitive(true);
            headers.insert("x-amz-security-token", token);
        }
        // What a proxy may change on the way is not signed.
        let mut signed = Vec::new();
        for (name, value) in headers.iter() {
            if SIGNED.contains(&name.as_str()) {
                signed.push((name.as_str(), value.to_str().map_err(|_| SourceError::Http)?));
            }
        }
        let scope = Scope { region: &self.bucket.region, service: "s3" };
        let mut authorization = value(&sigv4::authorization(&keys, scope, &stamp, path, &signed))?;
        authorization.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, authorization);
        Ok(keys)
    }

    /// Whether the file holds another key than `used` by now. Reads it.
    pub(crate) fn renewed(&self, used: &Keys) -> Result<bool, SourceError> {
        Ok(self.keys()? != *used)
    }

    fn keys(&self) -> Result<Keys, SourceError> {
        let fault = |fault| SourceError::Credentials { section: self.bucket.section.clone(), fault };
        credentials::read(&self.bucket.credentials).map_err(fault)
    }

    /// What an answer other than the expected one means; `body` is the beginning of it. Only known words of it count.
    pub(crate) fn judge(&self, status: u16, body: &[u8]) -> Option<SourceError> {
        // The end may be cut inside a character.
        let whole = core::str::from_utf8(body).map_or_else(|error| error.valid_up_to(), str::len);
        let text = body.get(..whole).and_then(|whole| core::str::from_utf8(whole).ok());
        let code = text.and_then(code_of).unwrap_or_default();
        let fault = match (code, status) {
            ("SignatureDoesNotMatch", _) => StoreFault::Signature,
            ("InvalidAccessKeyId", _) => StoreFault::UnknownKey,
            ("RequestTimeTooSkewed", _) => StoreFault::Clock,
            ("ExpiredToken" | "InvalidToken" | "TokenRefreshRequired", _) => StoreFault::Token,
            ("AuthorizationHeaderMalformed" | "IncorrectEndpoint" | "IllegalLocationConstraintException", _) => {
                StoreFault::Region
            }
            ("NoSuchBucket", _) => StoreFault::NoBucket,
            ("NoSuchKey", _) => StoreFault::NoObject,
            ("AccessDenied" | "AllAccessDisabled", _) | ("", 401 | 403) => StoreFault::Denied,
            (_, 301..=308) => StoreFault::Redirected(status),
            _ => return None,
        };
        Some(self.refused(fault))
    }

    fn refused(&self, fault: StoreFault) -> SourceError {
        SourceError::Store { section: self.bucket.section.clone(), fault }
    }
}

/// The text of the first `Code` element of a store's error ("Error Responses" in the API reference of Amazon S3).
fn code_of(body: &str) -> Option<&str> {
    body.split_once("<Code>")?.1.split_once("</Code>").map(|(code, _)| code)
}

/// Whether another key may get another answer than `error`.
pub(crate) const fn concerns_key(error: &SourceError) -> bool {
    use StoreFault::{Denied, Signature, Token, UnknownKey};
    matches!(
        error,
        SourceError::Store { fault: Signature | UnknownKey | Token | Denied, .. } | SourceError::Status(401 | 403)
    )
}

impl StoreFault {
    /// Stable code, the field below the bucket's section, and what to do.
    const fn told(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Signature => {
                ("store_signature_refused", "credentials", "write id and secret of the same key into the file")
            }
            Self::UnknownKey => {
                ("store_key_unknown", "credentials", "write a key of this store into the file; check endpoint")
            }
            Self::Clock => {
                ("store_clock_skewed", "endpoint", "set this machine's clock (`timedatectl`, `chronyc tracking`)")
            }
            Self::Token => ("store_token_refused", "credentials", "renew the temporary key and write all three lines"),
            Self::Denied => (
                "store_access_denied",
                "credentials",
                "let this key read the objects (s3:GetObject), and check bucket and prefix",
            ),
            Self::Region => ("store_region_wrong", "region", "name the bucket's region, and its endpoint"),
            Self::Redirected(_) => {
                ("store_redirects", "endpoint", "name the bucket's own endpoint and region; try the other style")
            }
            Self::NoBucket => ("store_bucket_missing", "bucket", "correct the bucket's name, endpoint or style"),
            Self::NoObject => {
                ("store_object_missing", "bucket", "check the prefix in models.NAME.sources; copy the pack there again")
            }
        }
    }

    pub(crate) fn refusal(self, section: &str) -> Refusal {
        let (code, field, fix) = self.told();
        Refusal::new(code, &format!("{section}.{field}"), self.to_string(), fix)
    }
}

pub(crate) fn refuse_credentials(section: &str, fault: &CredentialsError) -> Refusal {
    let field = format!("{section}.credentials");
    let fix = "name a file of the agent's user with mode 0600, in the form of AWS's credentials file, with one profile";
    Refusal::new("store_credentials_unusable", &field, fault.to_string(), fix)
}

/// Headers that are signed, where they are.
const SIGNED: [&str; 5] = ["host", "range", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token"];
/// A key has at most 1,024 bytes; the names in a pack are short.
const MAX_PREFIX: usize = 900;
/// How much of an error's body is looked at.
pub(crate) const MAX_ERROR: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket() -> Bucket {
        Bucket {
            section: "buckets.m".to_owned(),
            endpoint: "http://s3.example".to_owned(),
            region: "eu-central-1".to_owned(),
            name: "models".to_owned(),
            style: BucketStyle::Path,
            credentials: "/etc/keys".into(),
        }
    }

    fn below(bucket: &Bucket, prefix: &str) -> Result<(String, String, String), SourceAddressError> {
        let endpoint = bucket.below(prefix, || Ok(Vec::new()))?;
        Ok((endpoint.host.clone(), endpoint.path.clone(), endpoint.label()))
    }

    #[test]
    fn a_buckets_name_stands_in_the_path_or_before_the_host() {
        let text = |host: &str, path: &str| Ok((host.to_owned(), path.to_owned(), "s3://m/a b/c".to_owned()));
        assert_eq!(below(&bucket(), "a b/c/"), text("s3.example", "/models/a%20b/c"));
        let virtual_host = Bucket { style: BucketStyle::VirtualHost, ..bucket() };
        assert_eq!(below(&virtual_host, "a b/c"), text("models.s3.example", "/a%20b/c"));
        assert_eq!(below(&bucket(), "").unwrap().1, "/models");
    }

    #[test]
    fn what_cannot_be_a_bucket_is_refused_by_field() {
        let field = |bucket: Bucket| match bucket.check() {
            Err(SourceAddressError::Bucket { field, rule }) if !rule.is_empty() => field,
            other => panic!("{other:?}"),
        };
        for name in ["", "ab", "Models", "a/b", "-ab", "ab-", "a..b", "a_b", &"a".repeat(64)] {
            assert_eq!(field(Bucket { name: name.to_owned(), ..bucket() }), "bucket", "{name}");
        }
        for region in ["", "eu central", "eu/1", "eu.1", &"a".repeat(64)] {
            assert_eq!(field(Bucket { region: region.to_owned(), ..bucket() }), "region", "{region}");
        }
        for endpoint in ["s3.example", "ftp://a", "http://a/b", "http://a/?b", "http://u@a", ""] {
            assert_eq!(field(Bucket { endpoint: endpoint.to_owned(), ..bucket() }), "endpoint", "{endpoint}");
        }
        assert_eq!(field(Bucket { credentials: "keys".into(), ..bucket() }), "credentials");
        let virtual_host = Bucket { style: BucketStyle::VirtualHost, ..bucket() };
        assert_eq!(field(Bucket { name: "a.b".to_owned(), ..virtual_host.clone() }), "style");
        assert_eq!(field(Bucket { endpoint: "http://192.0.2.1:9000".to_owned(), ..virtual_host.clone() }), "style");
        assert_eq!(field(Bucket { endpoint: "http://[2001:db8::1]".to_owned(), ..virtual_host }), "style");
        assert_eq!(bucket().check(), Ok(()));
        let tls = Bucket { endpoint: "https://s3.example".to_owned(), ..bucket() };
        assert_eq!(tls.check(), Ok(()), "certificates are read when they are used");
        for prefix in ["/a", "a//b", "a/../b", ".", "a\nb", &"a".repeat(901)] {
            assert_eq!(below(&bucket(), prefix), Err(SourceAddressError::Prefix), "{prefix}");
        }
    }

    #[test]
    fn known_words_of_a_refusal_count_and_no_others() {
        let endpoint = bucket().below("p", || Ok(Vec::new())).unwrap();
        let judge = |status, body: &str| match endpoint.signer.as_ref().unwrap().judge(status, body.as_bytes()) {
            Some(SourceError::Store { fault, .. }) => Some(fault),
            None => None,
            other => panic!("{other:?}"),
        };
        let coded =
            |status, code: &str| judge(status, &format!("<Error><Code>{code}</Code><Message>m</Message></Error>"));
        assert_eq!(coded(403, "SignatureDoesNotMatch"), Some(StoreFault::Signature));
        assert_eq!(coded(403, "InvalidAccessKeyId"), Some(StoreFault::UnknownKey));
        assert_eq!(coded(403, "RequestTimeTooSkewed"), Some(StoreFault::Clock));
        assert_eq!(coded(400, "ExpiredToken"), Some(StoreFault::Token));
        assert_eq!(coded(400, "AuthorizationHeaderMalformed"), Some(StoreFault::Region));
        assert_eq!(coded(404, "NoSuchBucket"), Some(StoreFault::NoBucket));
        assert_eq!(coded(404, "NoSuchKey"), Some(StoreFault::NoObject));
        assert_eq!(coded(403, "AccessDenied"), Some(StoreFault::Denied));
        assert_eq!(coded(307, "TemporaryRedirect"), Some(StoreFault::Redirected(307)));
        assert_eq!(judge(403, "\u{fffd}"), Some(StoreFault::Denied));
        // What is read of a long one ends inside a character.
        let cut = [b"<Error><Code>RequestTimeTooSkewed</Code>".as_slice(), &[0xe2, 0x82]].concat();
        let error = endpoint.signer.as_ref().unwrap().judge(403, &cut);
        assert!(matches!(error, Some(SourceError::Store { fault: StoreFault::Clock, .. })), "{error:?}");
        assert_eq!((coded(403, "Whatever"), coded(503, "SlowDown"), judge(500, "<Code>")), (None, None, None));
    }
}
