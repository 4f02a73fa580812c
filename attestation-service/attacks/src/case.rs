// SPDX-License-Identifier: Apache-2.0
//! One directory per attack: `case.toml` and the bytes that it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use types::{Refusal, Sha256Digest};
pub use vectors::case::{Reason, directories};

/// What stands in a `case.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Number of the attack; 0 for what must be accepted, and for recorded inputs that are no attack.
    pub attack: u32,
    /// What is tried.
    pub title: String,
    /// Where the bytes or the steps come from.
    pub origin: String,
    /// How it is run.
    pub run: Run,
    /// Time of verification from files, RFC 3339. Over the wire it is the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Every reason of the refusal, in order. Empty for what must be accepted.
    pub expected: Vec<Reason>,
    /// The reasons over the wire (of a released program: when the policy is set), where they are others than from files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wire: Option<Vec<Reason>>,
    /// Files by what they are for: in the case's directory, in `../common`, or recorded ones (`vectors:PATH`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, Vec<String>>,
    /// SHA-256 of recorded inputs, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digests: BTreeMap<String, Sha256Digest>,
    /// More arguments of the program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
    /// What happens, in order, each with its verb `do`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "step")]
    pub steps: Vec<toml::Table>,
    /// What is done to a channel, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<String>,
    /// The guest that shows the GPUs over the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuGuest>,
}

/// A guest with GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuGuest {
    /// How many its configuration names.
    pub configured: u8,
    /// Version of the driver, as the driver says.
    pub driver: String,
    /// How many more there were when the boot measured them.
    #[serde(default)]
    pub gone: u8,
}

/// How a case is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Run {
    /// `appraise --quote`, and in a request for a key over TLS. Inputs: root, quote, collateral, policy.
    Quote,
    /// Steps with a running service, a simulated guest and the programs: for what needs a fresh challenge.
    Live,
    /// `appraise-gpu`, and a guest that asks for a key with these GPUs. Inputs: root (roots of the maker), report, chain,
    /// switch-report, switch-chain, rim, ocsp, driver-state, policy.
    Gpu,
    /// `attested-proxy check` against a guest or a server that is none. The scenario says which.
    Channel,
    /// `model verify`. Inputs: index, objects, key.
    Model,
    /// The released programs with everything that could make them trust a simulator. The scenario says what.
    Released,
    /// `appraise` by the released program: recorded on hardware, at a time that has passed.
    Recorded,
    /// `appraise-gpu` by the released program.
    RecordedGpu,
}

impl Run {
    /// In words, for the page.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Quote => "files, wire",
            Self::Live => "wire, in steps",
            Self::Gpu => "files, wire",
            Self::Channel => "attested-proxy against a guest",
            Self::Model => "model verify",
            Self::Released => "released programs",
            Self::Recorded | Self::RecordedGpu => "files, released program",
        }
    }
}

impl Case {
    /// Reads `case.toml` of a directory and checks its rules.
    ///
    /// # Errors
    /// An unknown field, an expectation that is missing, an input that is elsewhere.
    pub fn read(dir: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(dir.join("case.toml")).with_context(|| dir.display().to_string())?;
        let case: Self = toml::from_str(&text).with_context(|| format!("{}: case.toml", dir.display()))?;
        let name = name(dir)?;
        ensure!(case.attack == 0 || !case.expected.is_empty(), "{name}: an attack has expected reasons");
        ensure!(
            (case.run == Run::Live) != case.steps.is_empty(),
            "{name}: steps are for live cases, and those have some"
        );
        let number = format!("{:02}-", case.attack);
        ensure!(name.starts_with(&number), "{name}: the name of attack {} begins with {number}", case.attack);
        for path in case.inputs.values().flatten() {
            let (place, file) = match path.strip_prefix(VECTORS) {
                Some(file) => {
                    ensure!(case.digests.contains_key(file), "{name}: no digest of {file}");
                    (VECTORS, file)
                }
                None => ("", path.strip_prefix("../common/").unwrap_or(path)),
            };
            let plain = |part: &str| {
                !part.is_empty()
                    && part != "."
                    && part != ".."
                    && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
            };
            let deep = if place == VECTORS { 2 } else { 1 };
            let parts: Vec<_> = file.split('/').collect();
            ensure!(
                parts.len() == deep && parts.iter().all(|part| plain(part)),
                "{name}: the input {path} is elsewhere"
            );
        }
        Ok(case)
    }

    /// The reasons over the wire.
    #[must_use]
    pub fn over_the_wire(&self) -> &[Reason] {
        self.wire.as_deref().unwrap_or(&self.expected)
    }

    /// Paths of an input's files; `None` where a recorded one is not here.
    ///
    /// # Errors
    /// The case does not name the input, or a recorded file has other bytes than the case was written for.
    pub fn files(&self, dir: &Path, input: &str) -> Result<Option<Vec<PathBuf>>> {
        let paths = self.inputs.get(input).with_context(|| format!("case.toml names no input '{input}'"))?;
        let mut found = Vec::new();
        for path in paths {
            let Some(file) = path.strip_prefix(VECTORS) else {
                found.push(dir.join(path));
                continue;
            };
            let path = recorded().join(file);
            if !path.is_file() {
                return Ok(None);
            }
            let digest = Sha256Digest::of(&std::fs::read(&path).with_context(|| path.display().to_string())?);
            ensure!(self.digests.get(file) == Some(&digest), "{file} has another digest: {digest}");
            found.push(path);
        }
        Ok(Some(found))
    }

    /// Compares what was found with what is expected.
    ///
    /// # Errors
    /// Other reasons, or one without detail or fix.
    pub fn compare(&self, dir: &Path, how: &str, expected: &[Reason], refusals: &[Refusal]) -> Result<()> {
        let found: Vec<_> = refusals.iter().map(Reason::from).collect();
        let name = name(dir)?;
        ensure!(
            found == expected,
            "{name} ({how}; {}):\n  expected {}\n  found    {}\n{refusals:#?}",
            self.title,
            show(expected),
            show(&found)
        );
        let complete = |refusal: &Refusal| ![&refusal.detail, &refusal.fix].into_iter().any(String::is_empty);
        ensure!(refusals.iter().all(complete), "{name} ({how}): a refusal without detail or fix: {refusals:?}");
        Ok(())
    }
}

/// Name of an object of a model pack.
#[must_use]
pub fn object_name(number: usize) -> String {
    format!("{number:06}")
}

/// Reasons in one line.
#[must_use]
pub fn show(reasons: &[Reason]) -> String {
    let all: Vec<_> = reasons.iter().map(|reason| format!("{} ({})", reason.code, reason.field)).collect();
    if all.is_empty() { "accepted".to_owned() } else { all.join(", ") }
}

/// A directory's own name.
///
/// # Errors
/// It has none.
pub fn name(dir: &Path) -> Result<&str> {
    dir.file_name().and_then(|name| name.to_str()).context("a directory without name")
}

/// Where the committed cases are.
#[must_use]
pub fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

/// Where data that others published is, when it is here: it is never committed.
#[must_use]
pub fn recorded() -> PathBuf {
    std::env::var_os("CHRYSALIS_VECTORS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"), PathBuf::from)
}

/// Begins the path of a recorded input.
const VECTORS: &str = "vectors:";
