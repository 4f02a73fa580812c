// SPDX-License-Identifier: Apache-2.0
//! A key in a file that only its owner can read: AES-256-GCM with random nonces.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use types::Sha256Digest;
use zeroize::Zeroizing;

use crate::{KekError, KeyWrap, MAX_SECRET, WrapError, random};

/// A key in a file.
pub struct FileKek {
    key: LessSafeKey,
    id: String,
}

impl FileKek {
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
        let (owner, user) = (metadata.uid(), own_user().map_err(fail)?);
        // Root may read a service's key, as it may read everything.
        if owner != user && user != 0 {
            return Err(KekError::Owner { path: path.to_owned(), owner, user });
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
}

impl KeyWrap for FileKek {
    fn id(&self) -> &str {
        &self.id
    }

    fn is_remote(&self) -> bool {
        false
    }

    /// nonce[12] ‖ ciphertext ‖ tag[16].
    fn wrap(&self, secret: &[u8], context: &[u8]) -> Result<Vec<u8>, WrapError> {
        if secret.len() > MAX_SECRET {
            return Err(WrapError::Seal);
        }
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce)?;
        let mut sealed = Zeroizing::new(secret.to_vec());
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), sealed.as_mut_slice())
            .map_err(|_| WrapError::Seal)?;
        Ok([nonce.as_slice(), sealed.as_slice(), tag.as_ref()].concat())
    }

    fn open(&self, wrapped: &[u8], context: &[u8]) -> Result<Zeroizing<Vec<u8>>, WrapError> {
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

/// The user that this process acts as.
fn own_user() -> io::Result<u32> {
    Ok(fs::metadata("/proc/self")?.uid())
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
        FileKek::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(FileKek::create(&path), Err(KekError::File { .. })));
        for mode in [0o640, 0o604, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(FileKek::read(&path), Err(KekError::Mode { .. })), "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(FileKek::read(&path).is_ok());
        fs::write(&path, [0; 33]).unwrap();
        assert!(matches!(FileKek::read(&path), Err(KekError::Form { .. })));
    }

    #[test]
    fn a_wrapped_secret_opens_only_whole_and_in_its_context() {
        let kek = FileKek::from_bytes(&[1; 32]).unwrap();
        let wrapped = kek.wrap(b"secret", b"context").unwrap();
        assert_eq!(kek.open(&wrapped, b"context").unwrap().as_slice(), b"secret");
        assert_ne!(wrapped, kek.wrap(b"secret", b"context").unwrap(), "nonces are fresh");
        assert_eq!(kek.open(&wrapped, b"Context").unwrap_err(), WrapError::Open);
        assert_eq!(FileKek::from_bytes(&[2; 32]).unwrap().open(&wrapped, b"context").unwrap_err(), WrapError::Open);
        for at in 0..wrapped.len() {
            let mut changed = wrapped.clone();
            changed[at] ^= 1;
            assert_eq!(kek.open(&changed, b"context").unwrap_err(), WrapError::Open, "byte {at}");
            assert!(kek.open(&wrapped[..at], b"context").is_err());
        }
    }
}
