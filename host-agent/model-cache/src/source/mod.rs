// SPDX-License-Identifier: Apache-2.0
//! Where packs come from. Every source is hostile: lengths, ranges, digests and time are checked.

mod credentials;
mod directory;
mod http;
mod s3;
mod sigv4;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::PackIndex;
use tokio::sync::mpsc;
use types::{Blake3Digest, Document as _};

use crate::error::SourceError;
pub use credentials::CredentialsError;
pub use http::SourceAddressError;
pub(crate) use s3::refuse_credentials;
pub use s3::{Bucket, BucketStyle, StoreFault};

/// A directory that has the parts of a pack as `docs/model-pack.md` lays them out: here, or behind HTTP.
#[derive(Debug, Clone)]
pub struct Source(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Directory(PathBuf),
    Http(Arc<http::Endpoint>),
}

/// How long a source may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For a connection, and again for the head of an answer.
    pub connect: Duration,
    /// For the next bytes.
    pub idle: Duration,
    /// A source is left for another one when it gave less than [`Limits::slowest`] for this long.
    pub patience: Duration,
    /// Bytes a second.
    pub slowest: u64,
    /// Pause before sources that failed are asked again.
    pub pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            idle: Duration::from_secs(30),
            patience: Duration::from_secs(60),
            slowest: 256 * 1024,
            pause: Duration::from_secs(2),
        }
    }
}

/// Parts of an object in order; an error ends them.
pub(crate) type Parts = mpsc::Receiver<Result<Bytes, SourceError>>;

impl Source {
    /// Reads an address: an absolute path, or `http://` or `https://` and the address below which `pack.json` stands. A
    /// query is added to every request, for signatures that hold for a whole directory; one signature for each object
    /// (S3's presigned addresses) cannot be used. `authorities` is PEM text, asked for only for https.
    ///
    /// # Errors
    /// [`SourceAddressError`].
    pub fn parse(
        address: &str,
        authorities: impl FnOnce() -> std::io::Result<Vec<u8>>,
    ) -> Result<Self, SourceAddressError> {
        if address.starts_with('/') {
            return Ok(Self(Kind::Directory(PathBuf::from(address))));
        }
        Ok(Self(Kind::Http(Arc::new(http::Endpoint::parse(address, authorities)?))))
    }

    /// What is below `prefix` in a bucket, by signed requests. `authorities` as for [`Source::parse`].
    ///
    /// # Errors
    /// [`SourceAddressError`].
    pub fn bucket(
        bucket: &Bucket,
        prefix: &str,
        authorities: impl FnOnce() -> std::io::Result<Vec<u8>>,
    ) -> Result<Self, SourceAddressError> {
        Ok(Self(Kind::Http(Arc::new(bucket.below(prefix, authorities)?))))
    }

    /// A directory of this machine.
    #[must_use]
    pub const fn directory(path: PathBuf) -> Self {
        Self(Kind::Directory(path))
    }

    /// What to call it in messages: without its query, which may be a secret.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.0 {
            Kind::Directory(path) => path.display().to_string(),
            Kind::Http(endpoint) => endpoint.label(),
        }
    }

    /// `pack.json`, if it is the one with this root.
    pub(crate) async fn index(&self, root: &Blake3Digest, limits: Limits) -> Result<PackIndex, SourceError> {
        let mut parts = match &self.0 {
            Kind::Directory(path) => directory::whole(path.join(model::INDEX_FILE), PackIndex::MAX_BYTES),
            Kind::Http(endpoint) => http::whole(endpoint, model::INDEX_FILE, PackIndex::MAX_BYTES, limits),
        };
        let mut bytes = Vec::new();
        let read = async {
            while let Some(part) = parts.recv().await {
                bytes.extend_from_slice(&part?);
                if bytes.len() > PackIndex::MAX_BYTES {
                    return Err(SourceError::Length);
                }
            }
            Ok(())
        };
        // What comes byte by byte must not keep the others waiting for ever.
        let whole = u64::try_from(PackIndex::MAX_BYTES).unwrap_or(u64::MAX);
        let longest =
            limits.patience.saturating_add(Duration::from_secs(whole.checked_div(limits.slowest).unwrap_or(0)));
        tokio::time::timeout(longest, read).await.map_err(|_| SourceError::Slow(limits.slowest))??;
        if Blake3Digest::from_bytes(*blake3::hash(&bytes).as_bytes()) != *root {
            return Err(SourceError::Root);
        }
        PackIndex::parse(&bytes).map_err(|_| SourceError::Index)
    }

    /// The bytes of an object from `from` on. What comes may be wrong, too short or too long.
    pub(crate) fn object(&self, number: u32, from: u64, length: u64, limits: Limits) -> Parts {
        let name = model::object_file(number);
        match &self.0 {
            Kind::Directory(path) => directory::range(path.join(name), from, length),
            Kind::Http(endpoint) => http::range(endpoint, &name, from, length, limits),
        }
    }
}

/// Parts that wait to be taken.
pub(crate) const PARTS: usize = 4;
/// Bytes of a part.
pub(crate) const PART: usize = 1 << 20;
