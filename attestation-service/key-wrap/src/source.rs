// SPDX-License-Identifier: Apache-2.0
//! Which key wraps, as it stands on a command line: nothing secret stands in it.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::file::FileKek;
use crate::pkcs11::{Pkcs11Kek, Pkcs11Settings};
use crate::transit::{TransitKek, TransitSettings};
use crate::{KekError, KeyWrap};

/// Where a key-wrapping key is.
///
/// ```text
/// file:PATH
/// pkcs11:token=LABEL;object=LABEL?module-path=PATH&pin-source=file:PATH|env:NAME      (RFC 7512)
/// transit:https://HOST[:PORT]/MOUNT/KEY?token-file=PATH&ca-file=PATH[&namespace=NAME]
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KekSource {
    /// 32 bytes in a file.
    File(PathBuf),
    /// An AES key in a PKCS#11 token.
    Pkcs11(Pkcs11Settings),
    /// A key of a transit service.
    Transit(TransitSettings),
}

/// Why the text does not name a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KekSourceError(pub(crate) String);

/// Why a file with a secret is not used.
#[derive(Debug, thiserror::Error)]
#[error("could not read {}: {reason}", path.display())]
pub struct PrivateFileError {
    /// The file.
    pub path: PathBuf,
    /// Why not.
    pub reason: String,
}

impl KekSource {
    /// The key, which must be there.
    ///
    /// # Errors
    /// [`KekError`].
    pub fn open(&self) -> Result<Box<dyn KeyWrap>, KekError> {
        Ok(match self {
            Self::File(path) => Box::new(FileKek::read(path)?),
            Self::Pkcs11(settings) => Box::new(Pkcs11Kek::open(settings, false)?),
            Self::Transit(settings) => Box::new(TransitKek::open(settings)?),
        })
    }

    /// A key for a new store: a file is made, and must not be there; a token makes one where it has none of this name;
    /// a transit service must have it.
    ///
    /// # Errors
    /// [`KekError`].
    pub fn create(&self) -> Result<Box<dyn KeyWrap>, KekError> {
        Ok(match self {
            Self::File(path) => Box::new(FileKek::create(path)?),
            Self::Pkcs11(settings) => Box::new(Pkcs11Kek::open(settings, true)?),
            Self::Transit(settings) => Box::new(TransitKek::open(settings)?),
        })
    }
}

impl From<PathBuf> for KekSource {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl FromStr for KekSource {
    type Err = KekSourceError;

    fn from_str(text: &str) -> Result<Self, KekSourceError> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("pkcs11", rest)) => Pkcs11Settings::parse(rest).map(Self::Pkcs11),
            Some(("transit", rest)) => TransitSettings::parse(rest).map(Self::Transit),
            _ => Err(KekSourceError("a key-wrapping key is file:PATH, pkcs11:… or transit:https://…".to_owned())),
        }
    }
}

/// A small text file that nobody but its owner may read, without the line's end.
///
/// # Errors
/// [`PrivateFileError`].
pub fn private_text(path: &Path) -> Result<Zeroizing<String>, PrivateFileError> {
    let fail = |reason: String| PrivateFileError { path: path.to_owned(), reason };
    let file = File::open(path).map_err(|e| fail(e.to_string()))?;
    let metadata = file.metadata().map_err(|e| fail(e.to_string()))?;
    if !metadata.is_file() || metadata.mode() & 0o077 != 0 {
        return Err(fail("it must be a plain file that only its owner may read: run `chmod 600` on it".to_owned()));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|e| fail(e.to_string()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(fail(format!("it has more than {MAX_FILE} bytes")));
    }
    let end = text.trim_end_matches(['\n', '\r']).len();
    text.truncate(end);
    Ok(text)
}

/// `NAME=VALUE` pairs, each known and at most once, percent-decoded.
pub(crate) fn pairs<const N: usize>(
    text: &str,
    separator: char,
    known: [&str; N],
) -> Result<[Option<String>; N], KekSourceError> {
    let mut values = [const { None }; N];
    for pair in text.split(separator).filter(|pair| !pair.is_empty()) {
        let (name, value) =
            pair.split_once('=').ok_or_else(|| KekSourceError(format!("`{pair}` is not NAME=VALUE")))?;
        let place = known.iter().zip(values.iter_mut()).find(|(known, _)| **known == name).map(|(_, place)| place);
        let place =
            place.ok_or_else(|| KekSourceError(format!("`{name}` is not known: one of {}", known.join(", "))))?;
        let value = decoded(value).ok_or_else(|| KekSourceError(format!("the value of `{name}` is malformed")))?;
        if place.replace(value).is_some() {
            return Err(KekSourceError(format!("`{name}` stands twice")));
        }
    }
    Ok(values)
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            // `from_str_radix` would take a sign.
            if !digits.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            bytes.push(u8::from_str_radix(core::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.is_empty() && !text.contains('\0'))
}

const MAX_FILE: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_strictly_and_hold_no_secret() {
        let file: KekSource = "file:/x/kek".parse().unwrap();
        assert_eq!(file, KekSource::File("/x/kek".into()));
        let token = "pkcs11:token=my%20token;object=kek?module-path=/usr/lib/m.so&pin-source=file:/x/pin";
        assert!(matches!(token.parse(), Ok(KekSource::Pkcs11(_))));
        let transit = "transit:https://vault.example:8200/transit/kek?token-file=/x/token&ca-file=/x/ca";
        assert!(matches!(transit.parse(), Ok(KekSource::Transit(_))));
        for bad in [
            "",
            "/x/kek",
            "file:",
            "pkcs11:token=t?module-path=/m&pin-source=file:/p",
            "pkcs11:token=t;object=o;object=o?module-path=/m&pin-source=file:/p",
            "pkcs11:token=t;object=o?module-path=/m&pin-value=1234",
            "pkcs11:token=t;object=o?module-path=m.so&pin-source=file:/p",
            "pkcs11:token=t;object=o?module-path=/m&pin-source=1234",
            "pkcs11:token=%+5;object=o?module-path=/m&pin-source=file:/p",
            "pkcs11:token=%zz;object=o?module-path=/m&pin-source=file:/p",
            "transit:http://vault.example/transit/kek?token-file=/t",
            "transit:https://user@vault.example/transit/kek?token-file=/t",
            "transit:https://vault%2eexample/transit/kek?token-file=/t",
            "transit:https://vault.example evil.example/transit/kek?token-file=/t",
            "transit:https:///transit/kek?token-file=/t",
            "transit:https://vault.example/kek?token-file=/t",
            "transit:https://vault.example/transit/../sys/kek?token-file=/t",
            "transit:https://vault.example/transit/kek",
            "transit:https://vault.example/transit/kek?token=secret",
        ] {
            assert!(bad.parse::<KekSource>().is_err(), "{bad}");
        }
    }
}
