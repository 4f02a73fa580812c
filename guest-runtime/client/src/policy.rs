// SPDX-License-Identifier: Apache-2.0
//! What a client demands of a guest: a policy file and the files that it names.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use appraise::{Policy, PolicyError};
use gpu_verify::{LibraryError, RimLibrary};
use release::{ReleaseError, TrustPolicy, TrustPolicyError, VerifiedRelease};
use serde::{Deserialize, Serialize};
use tdx_verify::{Collateral, CollateralError};

/// The policy file (`chrysalis/client-policy/v1`), JSON in any layout, unknown fields refused. Names of files are
/// relative to its own folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// `chrysalis/client-policy/v1`.
    pub schema: String,
    /// Platforms, releases, models (at least one must be named), service pins, instances.
    pub appraisal: Policy,
    /// File with the keys that releases are signed, logged and witnessed by.
    pub release_trust: PathBuf,
    /// Files with the bundles of acceptable releases.
    pub release_bundles: Vec<PathBuf>,
    /// Files with collateral, one for each kind of platform.
    pub collateral: Vec<PathBuf>,
    /// Files with reference manifests (RIM) of the drivers, VBIOSes and switches that `appraisal.gpu` accepts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_rims: Vec<PathBuf>,
    /// Files with OCSP answers about certificates of GPUs and manifests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_ocsp: Vec<PathBuf>,
}

/// A policy with everything that it needs; releases are verified by signer, log and witnesses.
#[derive(Debug, Clone)]
pub struct ClientPolicy {
    /// What is demanded.
    pub appraisal: Policy,
    /// Releases that may explain a guest's registers.
    pub releases: Vec<VerifiedRelease>,
    /// Collateral, one for each kind of platform.
    pub collateral: Vec<Collateral>,
    /// Reference manifests of GPUs.
    pub gpu_rims: RimLibrary,
    /// OCSP answers about GPUs.
    pub gpu_ocsp: Vec<Vec<u8>>,
}

/// Why a policy could not be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// A file can't be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file is too large.
    #[error("{path} is longer than {MAX_FILE} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The policy file has another form.
    #[error("{path} is no client policy: {detail}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The rule.
        detail: String,
    },
    /// The part `appraisal`.
    #[error("{path}: appraisal: {source}")]
    Appraisal {
        /// The file.
        path: PathBuf,
        /// The rule.
        #[source]
        source: PolicyError,
    },
    /// The trust file.
    #[error("{path}: {source}")]
    Trust {
        /// The file.
        path: PathBuf,
        /// The rule.
        #[source]
        source: TrustPolicyError,
    },
    /// A release was refused.
    #[error("{path}: {source}")]
    Release {
        /// The file.
        path: PathBuf,
        /// The rule.
        #[source]
        source: ReleaseError,
    },
    /// A collateral file.
    #[error("{path}: {source}")]
    Collateral {
        /// The file.
        path: PathBuf,
        /// The rule.
        #[source]
        source: CollateralError,
    },
    /// The manifests of `gpu_rims`.
    #[error("{path}: gpu_rims: {source}")]
    Rims {
        /// The policy file.
        path: PathBuf,
        /// Which manifest, and the rule.
        #[source]
        source: LibraryError,
    },
}

impl PolicyFile {
    /// Value of the field `schema`.
    pub const SCHEMA: &str = "chrysalis/client-policy/v1";

    fn check(self, path: &Path) -> Result<Self, PolicyFileError> {
        let malformed = |detail: &str| PolicyFileError::Malformed { path: path.to_owned(), detail: detail.to_owned() };
        if self.schema != Self::SCHEMA {
            return Err(malformed("the field schema must be \"chrysalis/client-policy/v1\""));
        }
        if self.appraisal.models.is_none() {
            return Err(malformed("appraisal.models must name the models that are accepted"));
        }
        if self.appraisal.rules.is_some() {
            return Err(malformed(
                "appraisal.rules: this program runs no rules; leave them to the attestation service",
            ));
        }
        if self.release_bundles.is_empty() || self.collateral.is_empty() {
            return Err(malformed("release_bundles and collateral must name at least one file each"));
        }
        // The same rules as for a policy that stands in a file of its own.
        let bytes = serde_json::to_vec(&self.appraisal).map_err(|error| malformed(&error.to_string()))?;
        let appraisal =
            Policy::from_json(&bytes).map_err(|source| PolicyFileError::Appraisal { path: path.to_owned(), source })?;
        Ok(Self { appraisal, ..self })
    }
}

impl ClientPolicy {
    /// Reads a policy file and the files that it names, and verifies the releases at `now` (seconds since 1970).
    ///
    /// # Errors
    /// [`PolicyFileError`] names file and rule.
    pub fn load(path: &Path, now: u64) -> Result<Self, PolicyFileError> {
        let file: PolicyFile = serde_json::from_slice(&read(path)?)
            .map_err(|error| PolicyFileError::Malformed { path: path.to_owned(), detail: error.to_string() })?;
        let file = file.check(path)?;
        let folder = path.parent().unwrap_or_else(|| Path::new(""));
        let trust_path = folder.join(&file.release_trust);
        let trust = TrustPolicy::parse(&read(&trust_path)?)
            .map_err(|source| PolicyFileError::Trust { path: trust_path, source })?;
        let releases = file.release_bundles.iter().map(|name| read_release(&folder.join(name), &trust, now));
        let collateral = file.collateral.iter().map(|name| read_collateral(&folder.join(name)));
        let all = |names: &[PathBuf]| names.iter().map(|name| read(&folder.join(name))).collect::<Result<Vec<_>, _>>();
        let rims = |source| PolicyFileError::Rims { path: path.to_owned(), source };
        Ok(Self {
            gpu_rims: RimLibrary::new(all(&file.gpu_rims)?).map_err(rims)?,
            gpu_ocsp: all(&file.gpu_ocsp)?,
            appraisal: file.appraisal,
            releases: releases.collect::<Result<_, _>>()?,
            collateral: collateral.collect::<Result<_, _>>()?,
        })
    }
}

fn read_release(path: &Path, trust: &TrustPolicy, now: u64) -> Result<VerifiedRelease, PolicyFileError> {
    VerifiedRelease::verify(&read(path)?, trust, now)
        .map_err(|source| PolicyFileError::Release { path: path.to_owned(), source })
}

fn read_collateral(path: &Path) -> Result<Collateral, PolicyFileError> {
    Collateral::from_json(&read(path)?).map_err(|source| PolicyFileError::Collateral { path: path.to_owned(), source })
}

/// Reads a file of at most [`MAX_FILE`] bytes.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, PolicyFileError> {
    let error = |source| PolicyFileError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(error)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > MAX_FILE { Err(PolicyFileError::TooLarge { path: path.to_owned() }) } else { Ok(bytes) }
}

/// Most bytes of any file that is read. The largest is an evidence document.
const MAX_FILE: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut serde_json::Value)) -> String {
        let mut json = serde_json::json!({
            "schema": PolicyFile::SCHEMA,
            "appraisal": {"schema": Policy::SCHEMA, "models": [{"name": "m", "revision": "1", "identity": "00".repeat(32)}]},
            "release_trust": "trust.json",
            "release_bundles": ["release.json"],
            "collateral": ["collateral.json"],
        });
        change(&mut json);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.json");
        std::fs::write(&path, json.to_string()).unwrap();
        ClientPolicy::load(&path, 0).unwrap_err().to_string()
    }

    #[test]
    fn the_form_is_strict_and_errors_name_the_file() {
        assert!(refusal(|_| ()).contains("trust.json"));
        assert!(refusal(|json| json["allow_simulated"] = true.into()).contains("unknown field"));
        assert!(refusal(|json| json["appraisal"]["allow_debug"] = true.into()).contains("unknown field"));
        assert!(refusal(|json| json["appraisal"]["models"] = serde_json::Value::Null).contains("appraisal.models"));
        assert!(refusal(|json| json["appraisal"]["releases"] = serde_json::json!([])).contains("releases"));
        let rules = serde_json::json!({"engine": "cedar-4", "claims": "chrysalis/claims/v1", "source": "permit(principal, action, resource);"});
        assert!(refusal(|json| json["appraisal"]["rules"] = rules).contains("appraisal.rules"));
        assert!(refusal(|json| json["schema"] = "x".into()).contains("schema"));
        assert!(refusal(|json| json["collateral"] = serde_json::json!([])).contains("collateral"));
    }
}
