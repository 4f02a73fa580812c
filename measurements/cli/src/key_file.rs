// SPDX-License-Identifier: Apache-2.0
//! Key files (private ones with mode 0600), and outputs that are written whole or not at all.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use release::key::ed25519_seed_from_pem;
use release::log::{LogKey, LogSigner, WitnessKey, WitnessSigner};
use release::{ReleaseKey, ReleasePublicKey};
use zeroize::Zeroizing;

use crate::input;

/// Reads a short text file.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(input::file(path, MAX_TEXT)?).with_context(|| format!("{} is not text", path.display()))
}

/// Writes a whole file: temporary name, sync, rename.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_added_extension("tmp");
    let written = File::create(&temporary).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.with_context(|| format!("could not write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("could not write {}", path.display()))?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).with_context(|| format!("could not sync {}", parent.display()))
}

/// Writes a new private key, readable by its owner alone; an existing file is never replaced.
pub(crate) fn write_private(path: &Path, pem: &str) -> Result<()> {
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.with_context(|| format!("could not make {} (keys are never replaced)", path.display()))?;
    file.write_all(pem.as_bytes()).and_then(|()| file.sync_all())?;
    Ok(())
}

/// Where the public half of a private key stands: beside it, with `.pub` added.
pub(crate) fn public_path(private: &Path) -> PathBuf {
    private.with_added_extension("pub")
}

pub(crate) fn release_key(path: &Path) -> Result<ReleaseKey> {
    ReleaseKey::from_pem(&read_private(path)?).with_context(|| format!("could not use {}", path.display()))
}

pub(crate) fn release_public_key(path: &Path) -> Result<ReleasePublicKey> {
    ReleasePublicKey::from_pem(&read_text(path)?).with_context(|| format!("could not use {}", path.display()))
}

pub(crate) fn log_key(path: &Path) -> Result<LogKey> {
    read_text(path)?.trim_end().parse().with_context(|| format!("could not use {}", path.display()))
}

pub(crate) fn witness_key(path: &Path) -> Result<WitnessKey> {
    read_text(path)?.trim_end().parse().with_context(|| format!("could not use {}", path.display()))
}

/// A log's private key; its name comes from the public half beside it, which must fit.
pub(crate) fn log_signer(path: &Path) -> Result<LogSigner> {
    let public = log_key(&public_path(path))?;
    let signer = LogSigner::new(public.origin(), &*ed25519_seed_from_pem(&read_private(path)?)?)?;
    ensure!(signer.public() == &public, "{} is not the public half of {}", public_path(path).display(), path.display());
    Ok(signer)
}

/// A witness's private key, as [`log_signer`].
pub(crate) fn witness_signer(path: &Path) -> Result<WitnessSigner> {
    let public = witness_key(&public_path(path))?;
    let signer = WitnessSigner::new(public.name(), &*ed25519_seed_from_pem(&read_private(path)?)?)?;
    ensure!(signer.public() == &public, "{} is not the public half of {}", public_path(path).display(), path.display());
    Ok(signer)
}

fn read_private(path: &Path) -> Result<Zeroizing<String>> {
    let file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
    let mode = file.metadata()?.mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!("{} has mode {mode:03o}: others may read it; run `chmod 600` on it", path.display());
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_TEXT).read_to_string(&mut text).with_context(|| format!("could not read {}", path.display()))?;
    Ok(text)
}

const MAX_TEXT: u64 = 64 * 1024;
