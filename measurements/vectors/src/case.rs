// SPDX-License-Identifier: Apache-2.0
//! One directory per attack: `case.toml` and the bytes that it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use types::Refusal;

use crate::verifier;

/// What stands in a `case.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Number of the attack; 0 for inputs that must be accepted.
    pub attack: u32,
    /// What is tried.
    pub title: String,
    /// How the bytes were made.
    pub origin: String,
    /// Who must refuse.
    pub verifier: Verifier,
    /// Time of verification, RFC 3339.
    pub at: String,
    /// Files by what they are for: in the case's directory, or in `../common`.
    pub inputs: BTreeMap<String, String>,
    /// Every reason of the refusal, in order. Empty for attack 0 and for no other.
    pub expected: Vec<Reason>,
}

/// Which check is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verifier {
    /// Quote, release and appraisal of evidence at a key release. Inputs: root, collateral, evidence, bundle, trust,
    /// challenge, exporter.
    Appraise,
    /// A release bundle under a trust policy. Inputs: bundle, trust.
    Bundle,
    /// A bundle, and a checkpoint that the verifier knows. Inputs: bundle, trust, known, proof.
    History,
    /// A witness that is asked to cosign. Inputs: trust, known, checkpoint, proof.
    Witness,
}

/// A reason as users see it, without the words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// Code of the refusal.
    pub code: String,
    /// Field that was looked at.
    pub field: String,
}

impl Reason {
    /// A reason by its parts.
    #[must_use]
    pub fn new(code: &str, field: &str) -> Self {
        Self { code: code.to_owned(), field: field.to_owned() }
    }
}

impl From<&Refusal> for Reason {
    fn from(refusal: &Refusal) -> Self {
        Self::new(&refusal.code, &refusal.field)
    }
}

impl Case {
    /// Reads `case.toml` of a directory and checks its rules.
    ///
    /// # Errors
    /// An unknown field, an expectation that is missing, an input outside of the directory and `../common`.
    pub fn read(dir: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(dir.join("case.toml")).with_context(|| dir.display().to_string())?;
        let case: Self = toml::from_str(&text).with_context(|| format!("{}: case.toml", dir.display()))?;
        ensure!(
            (case.attack == 0) == case.expected.is_empty(),
            "{}: an attack has expected reasons, and attack 0 has none",
            dir.display()
        );
        let name = dir.file_name().and_then(|name| name.to_str()).context("a directory without name")?;
        let number = format!("{:02}-", case.attack);
        ensure!(name.starts_with(&number), "{name}: the name of attack {} begins with {number}", case.attack);
        for path in case.inputs.values() {
            let file = path.strip_prefix("../common/").unwrap_or(path);
            let plain = !file.is_empty() && file.chars().all(|c| c.is_ascii_lowercase() || "0123456789.-".contains(c));
            ensure!(plain && file != "." && file != "..", "{name}: the input {path} is not a plain file name");
        }
        Ok(case)
    }

    /// Verifies the inputs and compares the reasons.
    ///
    /// # Errors
    /// An input that can't be read, or other reasons than the expected ones.
    pub fn check(&self, dir: &Path) -> Result<()> {
        let refusals = verifier::run(self, &Inputs { dir, paths: &self.inputs })?;
        let complete = |refusal: &Refusal| ![&refusal.detail, &refusal.fix].into_iter().any(String::is_empty);
        ensure!(refusals.iter().all(complete), "{}: a refusal without detail or fix: {refusals:?}", dir.display());
        let found: Vec<_> = refusals.iter().map(Reason::from).collect();
        ensure!(
            found == self.expected,
            "{} ({}):\nexpected {:?}\nfound    {refusals:#?}",
            dir.display(),
            self.title,
            self.expected
        );
        Ok(())
    }
}

/// The files of a case.
pub struct Inputs<'a> {
    dir: &'a Path,
    paths: &'a BTreeMap<String, String>,
}

impl Inputs<'_> {
    /// The bytes of an input.
    ///
    /// # Errors
    /// The case does not name it, or the file can't be read.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.paths.get(name).with_context(|| format!("case.toml names no input '{name}'"))?;
        std::fs::read(self.dir.join(path)).with_context(|| format!("{}/{path}", self.dir.display()))
    }
}

/// Directories of all committed cases, sorted; `common` is none.
///
/// # Errors
/// A directory can't be read.
pub fn directories(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for item in std::fs::read_dir(root).with_context(|| root.display().to_string())? {
        let path = item?.path();
        if path.is_dir() && !path.ends_with("common") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Where the committed cases are.
#[must_use]
pub fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("attacks")
}
