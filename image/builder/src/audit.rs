// SPDX-License-Identifier: Apache-2.0
//! Compares a rebuilt image with a published one, and says which input changed or which bytes differ.
//!
//! What this does **not** establish: that the published description is signed. `measure bundle verify` checks that.

mod bytes;
mod published;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use types::{Refusal, Sha256Digest};

pub use self::bytes::Place;
pub use self::published::Published;
use crate::cache::CacheError;
use crate::files::{self, FileError};
use crate::image::ImageManifest;

/// Why two images could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The published description is none.
    #[error("{path}: {rule}")]
    Published {
        /// What was given.
        path: String,
        /// The rule it breaks.
        rule: String,
    },
    /// The published files are not the ones that their own description names.
    #[error("{path}: {file} is not the file that image.json beside it describes")]
    Inconsistent {
        /// The directory.
        path: String,
        /// The file.
        file: String,
    },
    /// The rebuilt directory is no finished image.
    #[error("{0} is no finished image: it has no image.json that can be read")]
    NotBuilt(String),
    /// A file operation failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<FileError> for AuditError {
    fn from(error: FileError) -> Self {
        Self::Cache(error.into())
    }
}

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Whether every published file has the bytes of the rebuilt one.
    pub identical: bool,
    /// The profile.
    pub profile: String,
    /// Each file.
    pub files: Vec<FileAudit>,
    /// Inputs whose locks differ, or that only one side has.
    pub inputs: Vec<InputAudit>,
    /// `not_checked`: the published description was taken as it is.
    pub signature: &'static str,
}

/// One file of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileAudit {
    /// Its name.
    pub name: String,
    /// Whether the bytes are equal.
    pub identical: bool,
    /// Digest of the published file; `None` when there is none.
    pub published: Option<Sha256Digest>,
    /// Digest of the rebuilt file; `None` when there is none.
    pub rebuilt: Option<Sha256Digest>,
    /// Where they differ, as far as the published bytes are at hand.
    pub differences: Vec<Place>,
}

/// An input whose lock differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InputAudit {
    /// Lock name, or `sources` for this repository's own.
    pub name: String,
    /// Digest when the published image was built.
    pub published: Option<Sha256Digest>,
    /// Digest here.
    pub rebuilt: Option<Sha256Digest>,
}

impl Audit {
    /// One reason for each file that differs.
    #[must_use]
    pub fn reasons(&self) -> Vec<Refusal> {
        let cause = self.cause();
        let reason = |file: &FileAudit| {
            let places: Vec<_> = file.differences.iter().map(ToString::to_string).collect();
            let places =
                if places.is_empty() { "the published bytes are not at hand".to_owned() } else { places.join("; ") };
            let detail = match (&file.published, &file.rebuilt) {
                (Some(published), Some(rebuilt)) => format!("published {published}, rebuilt {rebuilt}: {places}"),
                (None, _) => "it was not published".to_owned(),
                (_, None) => "it was not rebuilt".to_owned(),
            };
            Refusal::new("image_differs", &file.name, detail, cause.as_str())
        };
        self.files.iter().filter(|file| !file.identical).map(reason).collect()
    }

    /// What to look at first.
    fn cause(&self) -> String {
        if self.inputs.is_empty() {
            return "the locks are equal: check out the commit of the release, and see the differing bytes".to_owned();
        }
        let names: Vec<_> = self.inputs.iter().map(|input| input.name.as_str()).collect();
        format!("these inputs differ: {}; check out the commit of the release", names.join(", "))
    }
}

/// Compares the image in `built` with what was published.
///
/// # Errors
/// [`AuditError`] when one of them is not what it should be.
pub fn audit(published: &Published, built: &Path) -> Result<Audit, AuditError> {
    let manifest = read_manifest(built).ok_or_else(|| AuditError::NotBuilt(built.display().to_string()))?;
    let mut names: Vec<&String> = published.files.keys().collect();
    names.extend(manifest.files.iter().map(|f| &f.name).filter(|name| !published.files.contains_key(*name)));
    let mut audited = Vec::new();
    for name in names {
        let expected = published.files.get(name).copied();
        let path = built.join(name);
        let rebuilt = if path.is_file() { Some(files::sha256_file(&path)?.1) } else { None };
        let identical = expected.is_some() && expected == rebuilt;
        let both = published.directory.as_ref().filter(|_| !identical && rebuilt.is_some() && expected.is_some());
        let differences = match both {
            Some(directory) => {
                let read = |path: &Path| files::read_capped(path, MAX_FILE);
                bytes::differences(name, &read(&directory.join(name))?, &read(&path)?)
            }
            None => Vec::new(),
        };
        audited.push(FileAudit { name: name.clone(), identical, published: expected, rebuilt, differences });
    }
    Ok(Audit {
        identical: !audited.is_empty() && audited.iter().all(|file| file.identical),
        profile: manifest.profile.clone(),
        files: audited,
        inputs: changed_inputs(&published.inputs, &inputs_of(&manifest)),
        signature: "not_checked",
    })
}

fn changed_inputs(
    published: &BTreeMap<String, Sha256Digest>,
    rebuilt: &BTreeMap<String, Sha256Digest>,
) -> Vec<InputAudit> {
    let names = published.keys().chain(rebuilt.keys().filter(|name| !published.contains_key(*name)));
    let one = |name: &String| InputAudit {
        name: name.clone(),
        published: published.get(name).copied(),
        rebuilt: rebuilt.get(name).copied(),
    };
    // A statement need not name this repository's sources: its commit does.
    let comparable = |input: &InputAudit| input.name != SOURCES || input.published.is_some();
    names.map(one).filter(comparable).filter(|input| input.published != input.rebuilt).collect()
}

/// Digests of the lock files that entered, and of this repository's own sources.
fn inputs_of(manifest: &ImageManifest) -> BTreeMap<String, Sha256Digest> {
    let mut inputs: BTreeMap<_, _> = manifest.inputs.iter().map(|i| (i.name.clone(), i.lock_sha256)).collect();
    inputs.insert(SOURCES.to_owned(), manifest.toolchain.sources);
    inputs
}

fn read_manifest(directory: &Path) -> Option<ImageManifest> {
    serde_json::from_slice(&files::read_capped(&directory.join("image.json"), MAX_MANIFEST).ok()?).ok()
}

const SOURCES: &str = "sources";
const MAX_MANIFEST: u64 = 4 << 20;
const MAX_FILE: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::FileDigest;
    use crate::image::{ManifestFile, ManifestInput, SCHEMA, ToolVersions};

    fn image(dir: &Path, lock: &[u8], files: &[(&str, &[u8])]) {
        std::fs::create_dir_all(dir).unwrap();
        let file = |(name, bytes): &(&str, &[u8])| {
            std::fs::write(dir.join(name), bytes).unwrap();
            let FileDigest { size, sha256, sha384 } = FileDigest::of(bytes);
            ManifestFile { name: (*name).to_owned(), size, sha256, sha384, origin: "x".into() }
        };
        let manifest = ImageManifest {
            schema: SCHEMA.into(),
            profile: "sim".into(),
            command_line: "a".into(),
            source_date_epoch: 1,
            files: files.iter().map(file).collect(),
            initrd: Vec::new(),
            root_disk: None,
            inputs: vec![ManifestInput {
                name: "ovmf".into(),
                package: "ovmf".into(),
                version: "1".into(),
                sha256: Sha256Digest::of(lock),
                lock_sha256: Sha256Digest::of(lock),
            }],
            toolchain: ToolVersions { kernel: "k".into(), programs: "p".into(), sources: Sha256Digest::ZERO },
        };
        std::fs::write(dir.join("image.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    }

    fn compare(published: (&[u8], &[(&str, &[u8])]), rebuilt: (&[u8], &[(&str, &[u8])])) -> Audit {
        let dir = tempfile::tempdir().unwrap();
        image(&dir.path().join("a"), published.0, published.1);
        image(&dir.path().join("b"), rebuilt.0, rebuilt.1);
        audit(&Published::read(&dir.path().join("a")).unwrap(), &dir.path().join("b")).unwrap()
    }

    #[test]
    fn equal_images_are_identical() {
        let files: &[(&str, &[u8])] = &[("cmdline", b"a"), ("vmlinuz", b"k")];
        let audit = compare((b"l", files), (b"l", files));
        assert!(audit.identical && audit.reasons().is_empty() && audit.inputs.is_empty());
    }

    #[test]
    fn a_difference_names_file_place_and_input() {
        let audit = compare((b"l", &[("cmdline", b"quiet a=1")]), (b"m", &[("cmdline", b"quiet a=2")]));
        assert!(!audit.identical);
        let reasons = audit.reasons();
        assert_eq!(reasons[0].field, "cmdline");
        assert!(reasons[0].detail.contains("a=1") && reasons[0].detail.contains("a=2"), "{}", reasons[0].detail);
        assert!(reasons[0].fix.contains("ovmf"), "{}", reasons[0].fix);
    }

    #[test]
    fn a_file_that_only_one_side_has_is_a_difference() {
        let one: &[(&str, &[u8])] = &[("cmdline", b"a")];
        let two: &[(&str, &[u8])] = &[("cmdline", b"a"), ("vmlinuz", b"k")];
        assert!(!compare((b"l", one), (b"l", two)).identical);
        assert!(!compare((b"l", two), (b"l", one)).identical);
        assert!(!compare((b"l", &[]), (b"l", &[])).identical);
    }

    #[test]
    fn a_published_directory_must_be_consistent() {
        let dir = tempfile::tempdir().unwrap();
        image(dir.path(), b"l", &[("cmdline", b"a")]);
        std::fs::write(dir.path().join("cmdline"), "b").unwrap();
        assert!(matches!(Published::read(dir.path()), Err(AuditError::Inconsistent { .. })));
        std::fs::remove_file(dir.path().join("image.json")).unwrap();
        assert!(matches!(Published::read(dir.path()), Err(AuditError::Published { .. })));
    }
}
