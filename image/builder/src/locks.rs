// SPDX-License-Identifier: Apache-2.0
//! Lock files: one TOML file per thing that enters from outside, pinned by digest. They never name a host.

mod set;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::Sha256Digest;

pub use self::set::{Linked, LockedPackage, NamedSet, Only, PackageSet, TreeLink, TreeText, read_sets};
use crate::files::{self, FileError};

/// Why a lock file was refused.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not TOML of the expected shape.
    #[error("lock {path}: {source}")]
    Syntax {
        /// The lock file.
        path: PathBuf,
        /// The parser's reason.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A field breaks a rule.
    #[error("lock {path}, field {field}: {rule}")]
    Field {
        /// The lock file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// The rule it breaks.
        rule: &'static str,
    },
}

/// Where a package comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A file of a Debian archive; `path` is its pool path.
    Debian,
    /// A file of the Python package index; `path` is the file's name.
    Pypi,
    /// A package of the Rust package registry; `path` is the file's name.
    Crate,
}

/// One locked input.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Kind of source.
    pub kind: Kind,
    /// Package name.
    pub package: String,
    /// Exact version.
    pub version: String,
    /// Pool path (Debian) or file name (others). Never a host.
    pub path: String,
    /// Size of the file in bytes; nothing longer is read.
    pub size: u64,
    /// SHA-256 of the file.
    pub sha256: Sha256Digest,
    /// SPDX licence expression.
    pub licence: String,
    /// Why the project needs it.
    pub reason: String,
    /// The Debian suite that updates are taken from; without it a lock is bumped by hand.
    #[serde(default)]
    pub suite: Option<String>,
    /// Files taken out of it.
    #[serde(default, rename = "member")]
    pub members: Vec<Member>,
}

/// A file inside a locked package.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Path inside the package.
    pub path: String,
    /// The name under which it is kept.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of its bytes.
    pub sha256: Sha256Digest,
}

/// A lock together with the digest of the file that states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedLock {
    /// The lock file's name without `.toml`.
    pub name: String,
    /// What it says.
    pub lock: Lock,
    /// SHA-256 of the lock file.
    pub lock_sha256: Sha256Digest,
}

impl NamedLock {
    /// Reads one lock file.
    ///
    /// # Errors
    /// [`LockError`] naming the field and the rule.
    pub fn read(path: &Path) -> Result<Self, LockError> {
        let bytes = files::read_capped(path, MAX_LOCK)?;
        let lock = parse(path, &bytes)?;
        let name = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { name, lock, lock_sha256: Sha256Digest::of(&bytes) })
    }

    /// The member kept under `name`.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.lock.members.iter().find(|m| m.name == name)
    }

    /// The locked file's own name.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.lock.path.rsplit('/').next().unwrap_or(&self.lock.path)
    }
}

/// All lock files of a directory that state one file, by name. Sets of packages and the Rust toolchain are left out: see
/// [`read_sets`].
///
/// # Errors
/// [`LockError`] for the first one refused.
pub fn read_all(directory: &Path) -> Result<Vec<NamedLock>, LockError> {
    of_kind(directory, |kind| !matches!(kind, "debian-set" | "rust"))?
        .iter()
        .map(|path| NamedLock::read(path))
        .collect()
}

/// Paths of the lock files in `directory` whose field `kind` is wanted, sorted.
fn of_kind(directory: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, LockError> {
    let mut found = Vec::new();
    for name in files::list_files(directory)?.iter().filter(|n| n.extension().is_some_and(|e| e == "toml")) {
        let path = directory.join(name);
        let text = files::read_capped(&path, MAX_LOCK)?;
        // A file without a readable kind is refused by whoever reads it in full.
        let kind = toml::from_str::<KindOnly>(&String::from_utf8_lossy(&text)).map(|k| k.kind).unwrap_or_default();
        if is_wanted(&kind) {
            found.push(path);
        }
    }
    Ok(found)
}

#[derive(Deserialize)]
struct KindOnly {
    kind: String,
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Lock, LockError> {
    let refuse = |field, rule| LockError::Field { path: path.to_owned(), field, rule };
    let text = std::str::from_utf8(bytes).map_err(|_| refuse("file", "must be UTF-8"))?;
    let lock: Lock =
        toml::from_str(text).map_err(|e| LockError::Syntax { path: path.to_owned(), source: Box::new(e) })?;
    check(path, &lock)?;
    Ok(lock)
}

/// Checks the fields of a lock that the file at `path` states.
pub(crate) fn check(path: &Path, lock: &Lock) -> Result<(), LockError> {
    let refuse = |field, rule| LockError::Field { path: path.to_owned(), field, rule };
    if !is_plain_path(&lock.path) {
        return Err(refuse("path", "must be a relative path of plain components, without a host"));
    }
    if lock.kind != Kind::Debian && lock.path.contains('/') {
        return Err(refuse("path", "must be a file name"));
    }
    if lock.kind == Kind::Debian && !lock.path.starts_with("pool/") {
        return Err(refuse("path", "must be a pool path"));
    }
    if !is_word(&lock.package) {
        return Err(refuse("package", "must be letters, digits and .+-_"));
    }
    if !is_word(&lock.version) {
        return Err(refuse("version", "must be letters, digits and .+-_~:"));
    }
    if lock.size == 0 || lock.size > MAX_INPUT {
        return Err(refuse("size", "must be between 1 byte and 4 GiB"));
    }
    if lock.licence.trim().is_empty() || lock.reason.trim().is_empty() {
        return Err(refuse("licence, reason", "must be stated"));
    }
    if lock.suite.as_deref().is_some_and(|suite| !is_word(suite)) {
        return Err(refuse("suite", "must be letters, digits and .+-_"));
    }
    for member in &lock.members {
        if !is_plain_path(&member.path) || !is_word(&member.name) {
            return Err(refuse("member", "path and name must be plain"));
        }
        if member.size == 0 || member.size > MAX_INPUT {
            return Err(refuse("member.size", "must be between 1 byte and 4 GiB"));
        }
    }
    Ok(())
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(['-', '.'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-_~:".contains(&b))
}

fn is_plain_path(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".+-_~".contains(&b);
    text.split('/').all(|part| !matches!(part, "" | "." | "..") && part.bytes().all(plain))
}

const MAX_LOCK: u64 = 256 << 10;
const MAX_INPUT: u64 = 4 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
kind = "debian"
package = "ovmf"
version = "2025.02-8+deb13u1"
path = "pool/main/e/edk2/ovmf_2025.02-8+deb13u1_all.deb"
size = 5
sha256 = "78e0d54df11fc77406cb7a0bc9a39e5bca6d1cbe06556b91d9a73491c52decdf"
licence = "BSD-2-Clause-Patent"
reason = "firmware"
"#;

    fn read(text: &str) -> Result<Lock, LockError> {
        parse(Path::new("x.toml"), text.as_bytes())
    }

    #[test]
    fn a_good_lock_is_read() {
        assert_eq!(read(GOOD).unwrap().size, 5);
    }

    #[test]
    fn each_bad_field_is_named() {
        let cases = [
            ("pool/main", "http://mirror/pool/main", "path"),
            ("pool/main", "pool/../main", "path"),
            ("pool/main", "main", "path"),
            ("path = \"pool", "path = \"/pool", "path"),
            ("package = \"ovmf\"", "package = \"-o\"", "package"),
            ("version = \"2025.02-8+deb13u1\"", "version = \"1 2\"", "version"),
            ("size = 5", "size = 0", "size"),
            ("size = 5", "size = 5000000000", "size"),
            ("reason = \"firmware\"", "reason = \" \"", "licence, reason"),
        ];
        for (from, to, expected) in cases {
            let error = read(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(matches!(error, LockError::Field { field, .. } if field == expected), "{to}: {error}");
        }
    }

    #[test]
    fn unknown_and_missing_fields_and_bad_digests_are_refused() {
        let extra = format!("{GOOD}url = \"x\"\n");
        let short = GOOD.replace("decdf", "");
        let upper = GOOD.replace("78e0d54d", "78E0D54D");
        let missing = GOOD.replace("licence", "#");
        for text in [extra, short, upper, missing] {
            assert!(matches!(read(&text), Err(LockError::Syntax { .. })), "{text}");
        }
    }

    #[test]
    fn the_repository_locks_are_good() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../locks");
        let names: Vec<_> = read_all(&directory).unwrap().into_iter().map(|l| l.name).collect();
        assert_eq!(names, ["linux-source", "model-minilm", "model-smollm2", "ovmf", "vhost-device-vsock"]);
    }
}
