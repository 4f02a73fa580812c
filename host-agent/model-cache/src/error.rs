// SPDX-License-Identifier: Apache-2.0
//! Why a pack could not be had.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::PackError;
use types::{Blake3Digest, Refusal};

use crate::source::{CredentialsError, StoreFault, refuse_credentials};

/// Why the cache could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Every source failed.
    #[error("pack {root}: no source gave it: {}", reasons(failures))]
    NoSource {
        /// The pack.
        root: Blake3Digest,
        /// The last failures: source and reason.
        failures: Vec<(String, SourceError)>,
    },
    /// The pack is of another model than was said.
    #[error("pack {root} is of the model {found}, not of {expected}")]
    Identity {
        /// The pack.
        root: Blake3Digest,
        /// The identity that was asked for.
        expected: Blake3Digest,
        /// That of the pack.
        found: Blake3Digest,
    },
    /// The pack does not fit beside those that are in use.
    #[error("pack {root} needs {needed} bytes; the quota is {quota}, of which {held} are in use or of other fetches")]
    Quota {
        /// The pack.
        root: Blake3Digest,
        /// Its bytes.
        needed: u64,
        /// The quota.
        quota: u64,
        /// What cannot be removed.
        held: u64,
    },
    /// The file system is full.
    #[error("{} has no room: {needed} bytes are needed, {free} are free", path.display())]
    DiskFull {
        /// Where.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A pack in the cache is not as its root says.
    #[error("pack {root} in the cache: {source}")]
    Damaged {
        /// The pack.
        root: Blake3Digest,
        /// What is wrong.
        source: PackError,
    },
    /// The pack is not in the cache.
    #[error("pack {root} is not in the cache")]
    Missing {
        /// The pack.
        root: Blake3Digest,
    },
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A thread ended without a result.
    #[error("the cache's own writer ended without a result")]
    Writer,
}

/// Why a source gave nothing, or something that cannot be used. Never holds what a source wrote, beyond numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No connection, no file, or it broke off.
    #[error("{what}: {kind}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        kind: io::ErrorKind,
    },
    /// The answer is no HTTP, or its head is too large.
    #[error("the answer is no HTTP/1.1")]
    Http,
    /// Another status than was asked for. Redirections are not followed.
    #[error("the source answered with status {0}; only 200 and 206 are taken, redirections are not followed")]
    Status(u16),
    /// The length is not the one in `pack.json`.
    #[error("it has another length than pack.json says")]
    Length,
    /// The answer is of another range than was asked for.
    #[error("the answer is of another range than was asked for")]
    Range,
    /// The bytes are compressed, which was not asked for.
    #[error("the answer is encoded, which was not asked for")]
    Encoded,
    /// Nothing came for too long.
    #[error("nothing came for {0:?}")]
    Idle(Duration),
    /// Too little came.
    #[error("less than {0} bytes a second came")]
    Slow(u64),
    /// `pack.json` is not the one with this root.
    #[error("its pack.json is not the one with this root")]
    Root,
    /// `pack.json` breaks a rule.
    #[error("its pack.json breaks a rule")]
    Index,
    /// An object is not as `pack.json` says.
    #[error("the BLAKE3 of object {0} is not the one in pack.json")]
    Digest(u32),
    /// The file with a bucket's key cannot be used: nothing was asked.
    #[error("{section}.credentials: {fault}")]
    Credentials {
        /// Of the configuration.
        section: String,
        /// Why not.
        fault: CredentialsError,
    },
    /// The store refused a signed request.
    #[error("{section}: {fault}")]
    Store {
        /// Of the configuration.
        section: String,
        /// Why.
        fault: StoreFault,
    },
}

impl SourceError {
    /// The reason with its field and fix, where the configuration or this machine's clock is what has to change.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Credentials { section, fault } => Some(refuse_credentials(section, fault)),
            Self::Store { section, fault } => Some(fault.refusal(section)),
            _ => None,
        }
    }
}

impl CacheError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::DiskFull { path, needed: 0, free: 0 }
            }
            _ => Self::Io { path, source },
        }
    }

    /// Stable code of the reason.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoSource { .. } => "model_not_available",
            Self::Identity { .. } => "model_identity_mismatch",
            Self::Quota { .. } => "cache_quota",
            Self::DiskFull { .. } => "disk_full",
            Self::Damaged { .. } => "cached_pack_damaged",
            Self::Missing { .. } => "pack_not_cached",
            Self::Io { .. } | Self::Writer => "cache_unusable",
        }
    }

    /// The reason with its field and fix.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let (field, fix) = match self {
            Self::NoSource { .. } => ("sources", "name a source that has this pack, and check the way to it"),
            Self::Identity { .. } => ("pack", "take root and model as the model's owner names them"),
            Self::Quota { .. } => (
                "cache.quota_gib",
                "raise the quota, or stop guests of other models; `host-agent cache prune` removes what nobody uses",
            ),
            Self::DiskFull { .. } => (
                "cache.dir",
                "make room on this file system (`host-agent cache prune` removes what nobody uses), or name a directory on another",
            ),
            Self::Damaged { .. } => (
                "cache.dir",
                "stop the guests that use it, `host-agent cache verify --remove`, then fetch it again; check the disk",
            ),
            Self::Missing { .. } => ("pack", "host-agent cache fetch"),
            Self::Io { .. } | Self::Writer => ("cache.dir", "mend the directory and its rights"),
        };
        Refusal::new(self.code(), field, self.to_string(), fix)
    }

    /// The reason, and those of sources that have one of their own.
    #[must_use]
    pub fn refusals(&self) -> Vec<Refusal> {
        let mut reasons = vec![self.refusal()];
        if let Self::NoSource { failures, .. } = self {
            reasons.extend(failures.iter().filter_map(|(_, error)| error.refusal()));
        }
        reasons
    }
}

fn reasons(failures: &[(String, SourceError)]) -> String {
    let words: Vec<String> = failures.iter().map(|(source, error)| format!("{source}: {error}")).collect();
    words.join("; ")
}
