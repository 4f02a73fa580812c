// SPDX-License-Identifier: Apache-2.0
//! The key-wrapping key (KEK) and the wrapping of secrets by it: AES-256-GCM with random nonces.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use types::Sha256Digest;
use zeroize::Zeroizing;

/// The key that wraps all others.
pub struct Kek {
    key: LessSafeKey,
    id: String,
}

/// Why the key-wrapping key could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KekError {
    /// A file operation failed.
    #[error("could not {action} the key-wrapping key {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Others than the owner may read it.
    #[error("the key-wrapping key {} has mode {mode:03o}; run `chmod 600` on it", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a plain file of exactly 32 bytes.
    #[error("the key-wrapping key {} is not a plain file of 32 bytes", path.display())]
    Form {
        /// The file.
        path: PathBuf,
    },
    /// No randomness, or the key was refused by the cipher.
    #[error(transparent)]
    Wrap(#[from] WrapError),
}

/// Why a secret could not be wrapped or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// The system gave no randomness.
    #[error("the system gave no randomness")]
    Randomness,
    /// The cipher refused.
    #[error("the cipher refused to encrypt")]
    Seal,
    /// Wrong key-wrapping key, or the row was changed or moved to another name or version.
    #[error("a wrapped secret does not open: wrong key-wrapping key, or the row was changed")]
    Open,
}

impl Kek {
    /// Makes a new key in `path`, readable by the owner alone.
    ///
    /// # Errors
    /// [`KekError`]; an existing file is never overwritten.
    pub fn create(path: &Path) -> Result<Self, KekError> {
        let fail = |source| KekError::File { action: "write", path: path.to_owned(), source };
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        random(bytes.as_mut_slice())?;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
        file.write_all(bytes.as_slice()).and_then(|()| file.sync_all()).map_err(fail)?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(fail)?;
        Ok(Self::from_bytes(&bytes)?)
    }

    /// Reads the key from `path`, whose permissions are checked on the opened file.
    ///
    /// # Errors
    /// [`KekError`].
    pub fn read(path: &Path) -> Result<Self, KekError> {
        let fail = |source| KekError::File { action: "read", path: path.to_owned(), source };
        let mut file = File::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KekError::Mode { path: path.to_owned(), mode });
        }
        if !metadata.is_file() || metadata.len() != KEY_LEN as u64 {
            return Err(KekError::Form { path: path.to_owned() });
        }
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        file.read_exact(bytes.as_mut_slice()).map_err(fail)?;
        Ok(Self::from_bytes(&bytes)?)
    }

    fn from_bytes(bytes: &[u8; KEY_LEN]) -> Result<Self, WrapError> {
        // Tells keys apart and says nothing of them: they are 256 random bits.
        let digest = Sha256Digest::of_parts(&[b"chrysalis/kek-id/v1", bytes]).to_string();
        let id = format!("file:{}", digest.get(..32).unwrap_or_default());
        let key = UnboundKey::new(&AES_256_GCM, bytes).map_err(|_| WrapError::Seal)?;
        Ok(Self { key: LessSafeKey::new(key), id })
    }

    /// Names the key in the rows that it wrapped.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// nonce[12] ‖ ciphertext ‖ tag[16].
    pub(crate) fn wrap(&self, secret: &[u8], context: &[u8]) -> Result<Vec<u8>, WrapError> {
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce)?;
        let mut sealed = Zeroizing::new(secret.to_vec());
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), sealed.as_mut_slice())
            .map_err(|_| WrapError::Seal)?;
        Ok([nonce.as_slice(), sealed.as_slice(), tag.as_ref()].concat())
    }

    pub(crate) fn open(&self, wrapped: &[u8], context: &[u8]) -> Result<Zeroizing<Vec<u8>>, WrapError> {
        let (nonce, rest) = wrapped.split_first_chunk::<NONCE_LEN>().ok_or(WrapError::Open)?;
        let mut buffer = Zeroizing::new(rest.to_vec());
        let opened = self
            .key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context), buffer.as_mut_slice())
            .map_err(|_| WrapError::Open)?
            .len();
        buffer.truncate(opened);
        Ok(buffer)
    }
}

pub(crate) fn random(bytes: &mut [u8]) -> Result<(), WrapError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| WrapError::Randomness)
}

const KEY_LEN: usize = 32;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        Kek::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(Kek::create(&path), Err(KekError::File { .. })));
        for mode in [0o640, 0o604, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(Kek::read(&path), Err(KekError::Mode { .. })), "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Kek::read(&path).is_ok());
        fs::write(&path, [0; 33]).unwrap();
        assert!(matches!(Kek::read(&path), Err(KekError::Form { .. })));
    }

    #[test]
    fn a_wrapped_secret_opens_only_whole_and_in_its_context() {
        let kek = Kek::from_bytes(&[1; 32]).unwrap();
        let wrapped = kek.wrap(b"secret", b"context").unwrap();
        assert_eq!(kek.open(&wrapped, b"context").unwrap().as_slice(), b"secret");
        assert_ne!(wrapped, kek.wrap(b"secret", b"context").unwrap(), "nonces are fresh");
        assert_eq!(kek.open(&wrapped, b"Context").unwrap_err(), WrapError::Open);
        assert_eq!(Kek::from_bytes(&[2; 32]).unwrap().open(&wrapped, b"context").unwrap_err(), WrapError::Open);
        for at in 0..wrapped.len() {
            let mut changed = wrapped.clone();
            changed[at] ^= 1;
            assert_eq!(kek.open(&changed, b"context").unwrap_err(), WrapError::Open, "byte {at}");
            assert!(kek.open(&wrapped[..at], b"context").is_err());
        }
    }
}
