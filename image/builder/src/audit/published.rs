// SPDX-License-Identifier: Apache-2.0
//! What was published: a directory that `image build` wrote, or a release's statement, alone or in a bundle.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use types::Sha256Digest;

use super::{AuditError, MAX_MANIFEST, inputs_of, read_manifest};
use crate::files;

/// Digests of what was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The profile.
    pub profile: String,
    /// Each file's digest.
    pub files: BTreeMap<String, Sha256Digest>,
    /// Digests of the lock files, by name.
    pub inputs: BTreeMap<String, Sha256Digest>,
    /// The files themselves, when they are at hand.
    pub directory: Option<PathBuf>,
}

impl Published {
    /// Reads a directory with `image.json`, a statement (`release.json`) or a bundle. Signatures are not checked.
    ///
    /// # Errors
    /// [`AuditError::Published`] or [`AuditError::Inconsistent`].
    pub fn read(path: &Path) -> Result<Self, AuditError> {
        if path.is_dir() { from_directory(path) } else { from_statement(path) }
    }
}

fn from_directory(path: &Path) -> Result<Published, AuditError> {
    let shown = path.display().to_string();
    let manifest = read_manifest(path).ok_or_else(|| AuditError::Published {
        path: shown.clone(),
        rule: "it has no image.json that can be read".into(),
    })?;
    let mut digests = BTreeMap::new();
    for file in &manifest.files {
        let plain = !file.name.is_empty() && !file.name.contains('/') && !file.name.starts_with('.');
        if !plain || files::sha256_file(&path.join(&file.name))?.1 != file.sha256 {
            return Err(AuditError::Inconsistent { path: shown, file: file.name.clone() });
        }
        digests.insert(file.name.clone(), file.sha256);
    }
    let inputs = inputs_of(&manifest);
    Ok(Published { profile: manifest.profile, files: digests, inputs, directory: Some(path.to_owned()) })
}

fn from_statement(path: &Path) -> Result<Published, AuditError> {
    let refuse = |rule: &str| AuditError::Published { path: path.display().to_string(), rule: rule.to_owned() };
    let bytes = files::read_capped(path, MAX_MANIFEST)?;
    let statement = match serde_json::from_slice::<Bundle>(&bytes) {
        Ok(bundle) => STANDARD.decode(bundle.envelope.payload).map_err(|_| refuse("its payload must be base64"))?,
        Err(_) => bytes,
    };
    let statement: Statement = serde_json::from_slice(&statement)
        .map_err(|e| refuse(&format!("it must be an image's directory, a release's statement or bundle: {e}")))?;
    let digests =
        |list: Vec<Subject>| -> BTreeMap<_, _> { list.into_iter().map(|s| (s.name, s.digest.sha256)).collect() };
    let files = digests(statement.subject);
    if files.is_empty() || files.keys().any(|name| name.contains('/') || name.starts_with('.')) {
        return Err(refuse("its subjects must be plain file names"));
    }
    let inputs = digests(statement.predicate.locks);
    Ok(Published { profile: statement.predicate.profile, files, inputs, directory: None })
}

// Only what a comparison needs: whether the rest is sound is for `measure bundle verify` to say.
#[derive(Deserialize)]
struct Bundle {
    #[serde(rename = "dsseEnvelope")]
    envelope: Envelope,
}

#[derive(Deserialize)]
struct Envelope {
    payload: String,
}

#[derive(Deserialize)]
struct Statement {
    subject: Vec<Subject>,
    predicate: Predicate,
}

#[derive(Deserialize)]
struct Predicate {
    profile: String,
    locks: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    name: String,
    digest: SubjectDigest,
}

#[derive(Deserialize)]
struct SubjectDigest {
    sha256: Sha256Digest,
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATEMENT: &str = r#"{"_type":"x","subject":[{"name":"initrd","digest":{"sha256":"78e0d54df11fc77406cb7a0bc9a39e5bca6d1cbe06556b91d9a73491c52decdf"}}],
        "predicate":{"profile":"sim","locks":[]}}"#;

    fn read(text: &str) -> Result<Published, AuditError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Published::read(file.path())
    }

    #[test]
    fn statements_and_bundles_are_read() {
        let plain = read(STATEMENT).unwrap();
        assert_eq!((plain.profile.as_str(), plain.files.len()), ("sim", 1));
        let payload = STANDARD.encode(STATEMENT);
        assert_eq!(read(&format!(r#"{{"dsseEnvelope":{{"payload":"{payload}"}}}}"#)).unwrap(), plain);
    }

    #[test]
    fn other_documents_are_refused() {
        for text in
            ["{}", "x", r#"{"dsseEnvelope":{"payload":"*"}}"#, &STATEMENT.replace("\"initrd\"", "\"../initrd\"")]
        {
            assert!(matches!(read(text), Err(AuditError::Published { .. })), "{text}");
        }
    }
}
