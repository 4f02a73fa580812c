// SPDX-License-Identifier: Apache-2.0
//! Files of the Python and Rust package registries, by those registries' own clients and their settings.

use std::path::{Path, PathBuf};

use super::FetchError;
use crate::command::{Tool, ToolError};
use crate::files::{self, FileError};
use crate::locks::NamedLock;

/// `pip download` of exactly one wheel, whose digest pip checks before we do.
pub(super) fn from_python_index(lock: &NamedLock, target: &Path) -> Result<(), FetchError> {
    let directory = target.parent().unwrap_or(target);
    let wanted = tempfile::NamedTempFile::new().map_err(|e| FileError::at(Path::new("requirements"), e))?;
    let line = format!("{}=={} --hash=sha256:{}\n", lock.lock.package, lock.lock.version, lock.lock.sha256);
    files::write_whole(wanted.path(), line.as_bytes())?;
    Tool::new("python3", "install the Debian packages python3 and python3-pip")
        .args(["-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"])
        .args(["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir", "--dest"])
        .arg(directory)
        .arg("--requirement")
        .arg(wanted.path())
        .output()
        .map_err(|e| registry_error(lock, e))?;
    if target.is_file() { Ok(()) } else { Err(not_found(lock)) }
}

/// `cargo info` makes cargo download the one package into its registry cache; the file is copied from there.
pub(super) fn from_crate_registry(lock: &NamedLock, target: &Path) -> Result<(), FetchError> {
    let neutral = tempfile::tempdir().map_err(|e| FileError::at(Path::new("scratch"), e))?;
    Tool::new("cargo", "install Rust with rustup")
        .args(["info", "--quiet", "--color", "never"])
        .arg(format!("{}@{}", lock.lock.package, lock.lock.version))
        .directory(neutral.path())
        .output()
        .map_err(|e| registry_error(lock, e))?;
    let found = cached_package(lock)?.ok_or_else(|| not_found(lock))?;
    std::fs::copy(&found, target).map_err(|e| FileError::at(target, e))?;
    Ok(())
}

/// The package in cargo's cache: the one with the locked digest, else any (so that the mismatch can be reported).
fn cached_package(lock: &NamedLock) -> Result<Option<PathBuf>, FetchError> {
    let mut other = None;
    for registry in cargo_cache()? {
        let path = registry.join(lock.file_name());
        if !path.is_file() {
            continue;
        }
        if files::sha256_file(&path)?.1 == lock.lock.sha256 {
            return Ok(Some(path));
        }
        other = Some(path);
    }
    Ok(other)
}

/// The directories in which cargo keeps the packages that it fetched.
pub(super) fn cargo_cache() -> Result<Vec<PathBuf>, FileError> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))
        .unwrap_or_default();
    let cache = home.join("registry/cache");
    match std::fs::read_dir(&cache) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(FileError::at(&cache, e)),
    }
}

fn not_found(lock: &NamedLock) -> FetchError {
    FetchError::NotFound { input: lock.name.clone(), path: lock.lock.path.clone() }
}

/// Tells an unreachable registry from a package it does not have.
fn registry_error(lock: &NamedLock, error: ToolError) -> FetchError {
    let ToolError::Failed { tail, .. } = &error else { return error.into() };
    let says = |words: &[&str]| words.iter().any(|w| tail.contains(w));
    if says(&["No matching distribution", "could not find", "not found in registry"]) && !says(&["onnection"]) {
        return not_found(lock);
    }
    if says(&["onnection", "resolve", "timed out", "etwork", "download"]) {
        return FetchError::Unreachable { input: lock.name.clone(), detail: tail.clone() };
    }
    error.into()
}

#[cfg(test)]
mod tests {
    use types::Sha256Digest;

    use super::*;
    use crate::locks::{Kind, Lock};

    fn failed(tail: &str) -> ToolError {
        ToolError::Failed { tool: "x".into(), status: "exit code 1".into(), tail: tail.into() }
    }

    #[test]
    fn what_a_client_says_is_told_apart() {
        let lock = Lock {
            kind: Kind::Pypi,
            package: "p".into(),
            version: "1".into(),
            path: "p-1.whl".into(),
            size: 1,
            sha256: Sha256Digest::ZERO,
            licence: "x".into(),
            reason: "x".into(),
            suite: None,
            members: Vec::new(),
        };
        let lock = NamedLock { name: "p".into(), lock, lock_sha256: Sha256Digest::ZERO };
        let of = |tail: &str| registry_error(&lock, failed(tail));
        assert!(matches!(of("ERROR: No matching distribution found for p==1"), FetchError::NotFound { .. }));
        assert!(matches!(of("Failed to establish a new connection: refused"), FetchError::Unreachable { .. }));
        assert!(matches!(of("error: could not find `p` in registry"), FetchError::NotFound { .. }));
        assert!(matches!(of("something else"), FetchError::Tool(_)));
    }
}
