// SPDX-License-Identifier: Apache-2.0
//! Brings locked inputs into the cache. Where they come from is the machine's own setting; what they are is the lock's.
//!
//! Debian files come from the machine's apt sources (or `CHRYSALIS_DEBIAN_MIRROR`), packages of the Python index through
//! `pip`, Rust packages through `cargo`. Debian files are read with `curl`: it honours the machine's proxy, certificate
//! and password settings, and adds no TLS stack to this program, which does its own counting, hashing and writing.

mod apt;
mod package;
mod transfer;

use std::path::{Path, PathBuf};

use types::Sha256Digest;

use crate::cache::{Cache, CacheError, Entry};
use crate::command::ToolError;
use crate::files::{self, FileError};
use crate::locks::{Kind, NamedLock};
use crate::progress::Progress;

/// Why an input could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The machine names no Debian archive.
    #[error("no Debian archive: no `deb` line with an http or https address in the machine's apt sources")]
    NoMirror,
    /// `CHRYSALIS_DEBIAN_MIRROR` is not an http or https address.
    #[error("the Debian mirror {0:?} is not an http or https address")]
    BadMirror(String),
    /// The source cannot be reached.
    #[error("{input}: the network or the source is unreachable: {detail}")]
    Unreachable {
        /// Lock name.
        input: String,
        /// What the client said.
        detail: String,
    },
    /// Every source was reached and none has the file.
    #[error("{input}: none of the machine's sources has {path}")]
    NotFound {
        /// Lock name.
        input: String,
        /// Pool path or file name.
        path: String,
    },
    /// The source sends more bytes than the lock states.
    #[error("{input}: longer than the {expected} bytes that its lock states")]
    TooLong {
        /// Lock name.
        input: String,
        /// Size in the lock.
        expected: u64,
    },
    /// The source sends fewer bytes than the lock states.
    #[error("{input}: ended after {found} of {expected} bytes")]
    TooShort {
        /// Lock name.
        input: String,
        /// Size in the lock.
        expected: u64,
        /// Bytes received.
        found: u64,
    },
    /// The bytes are not the locked ones. They were removed.
    #[error("{input}: digest mismatch: expected {expected}, found {found}")]
    DigestMismatch {
        /// Lock name.
        input: String,
        /// Digest in the lock.
        expected: Sha256Digest,
        /// Digest of what came.
        found: Sha256Digest,
    },
    /// A tool is missing or failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The cache failed, for example because the disk is full.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<FileError> for FetchError {
    fn from(error: FileError) -> Self {
        Self::Cache(error.into())
    }
}

/// Where inputs come from and go to.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The cache.
    pub cache: Cache,
    /// Debian archives to ask, in order (base addresses, as in `sources.list`); empty: ask apt's own settings.
    pub debian_mirrors: Vec<String>,
}

impl Sources {
    /// Fetches into `cache`; Debian files come from `mirror`, else `CHRYSALIS_DEBIAN_MIRROR`, else apt's settings.
    #[must_use]
    pub fn new(cache: Cache, mirror: Option<String>) -> Self {
        let chosen = mirror.or_else(|| std::env::var(MIRROR_VARIABLE).ok()).filter(|m| !m.is_empty());
        Self { cache, debian_mirrors: chosen.into_iter().collect() }
    }
}

/// A locked file in the cache, its digest checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The file.
    pub path: PathBuf,
    /// The lock it satisfies.
    pub lock: NamedLock,
}

/// Brings one locked input into the cache, or finds it there intact.
///
/// # Errors
/// [`FetchError`]; nothing is kept then.
pub fn fetch_input(lock: &NamedLock, sources: &Sources, progress: &dyn Progress) -> Result<Input, FetchError> {
    let entry: Entry = sources.cache.entry(CACHE_KIND, &lock.lock.sha256, progress, |directory| {
        progress.step(&format!("fetch {} {}", lock.lock.package, lock.lock.version));
        let target = directory.join(lock.file_name());
        match lock.lock.kind {
            Kind::Debian => from_debian(lock, sources, &target, progress),
            Kind::Pypi => package::from_python_index(lock, &target),
            Kind::Crate => package::from_crate_registry(lock, &target),
        }?;
        check(lock, &target)
    })?;
    Ok(Input { path: entry.file(lock.file_name()), lock: lock.clone() })
}

/// Where the file with a digest stands in the cache when it is one of the inputs.
pub(crate) fn place(sources: &Sources, sha256: &Sha256Digest, file_name: &str) -> PathBuf {
    sources.cache.root().join(CACHE_KIND).join(sha256.to_string()).join(file_name)
}

/// The directories in which cargo keeps the packages that it fetched, one for each registry or mirror.
pub(crate) fn cargo_cache() -> Result<Vec<PathBuf>, FileError> {
    package::cargo_cache()
}

/// The Debian archives to ask, in order: those that were chosen, else those of apt's settings.
pub(crate) fn debian_mirrors(sources: &Sources) -> Result<Vec<String>, FetchError> {
    let mirrors = match sources.debian_mirrors.as_slice() {
        [] => apt::configured_mirrors(Path::new("/etc/apt"))?,
        chosen => chosen.to_vec(),
    };
    match mirrors.iter().find(|m| !apt::is_http(m)) {
        Some(bad) => Err(FetchError::BadMirror(bad.clone())),
        None => Ok(mirrors),
    }
}

fn from_debian(lock: &NamedLock, sources: &Sources, target: &Path, progress: &dyn Progress) -> Result<(), FetchError> {
    let mirrors = debian_mirrors(sources)?;
    let mut last = FetchError::NoMirror;
    for mirror in &mirrors {
        let address = format!("{}/{}", mirror.trim_end_matches('/'), lock.lock.path);
        match transfer::download(lock, &address, target, progress) {
            Err(error @ (FetchError::NotFound { .. } | FetchError::Unreachable { .. })) => last = error,
            other => return other,
        }
    }
    Err(last)
}

/// Compares a file with its lock.
fn check(lock: &NamedLock, path: &Path) -> Result<(), FetchError> {
    let (size, found) = files::sha256_file(path)?;
    let (input, expected) = (lock.name.clone(), lock.lock.size);
    match size.cmp(&expected) {
        std::cmp::Ordering::Greater => Err(FetchError::TooLong { input, expected }),
        std::cmp::Ordering::Less => Err(FetchError::TooShort { input, expected, found: size }),
        std::cmp::Ordering::Equal if found != lock.lock.sha256 => {
            Err(FetchError::DigestMismatch { input, expected: lock.lock.sha256, found })
        }
        std::cmp::Ordering::Equal => Ok(()),
    }
}

pub(crate) const CACHE_KIND: &str = "inputs";
const MIRROR_VARIABLE: &str = "CHRYSALIS_DEBIAN_MIRROR";
