// SPDX-License-Identifier: Apache-2.0
//! Schemathesis, in the cache, by locked versions and digests; and its run against the attestation service.

use std::path::PathBuf;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::{process, workspace};

/// Installs what is missing and runs the test.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut command = process::command("cargo");
    command.args(["nextest", "run", "--locked", "--package", "attestation-service", "--test", "schemathesis"]);
    command.args(["--success-output", "final"]).current_dir(workspace::root()?).env(VARIABLE, install()?);
    process::run("schemathesis", &mut command)
}

/// The directory for Python's path. It is named by the digest of the lock and stands there whole or not at all.
pub(crate) fn install() -> anyhow::Result<PathBuf> {
    let lock = workspace::root()?.join("ci/schemathesis/requirements.txt");
    let bytes = std::fs::read(&lock).with_context(|| lock.display().to_string())?;
    let (version, _) = process::output("python3", process::command("python3").arg("--version"))?;
    let digest = Sha256::new().chain_update(version).chain_update(bytes).finalize();
    let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let parent = workspace::cache()?.join("schemathesis");
    let place = parent.join(name);
    if place.is_dir() {
        return Ok(place);
    }
    std::fs::create_dir_all(&parent).with_context(|| parent.display().to_string())?;
    let made = tempfile::tempdir_in(&parent).context("temporary directory")?;
    eprintln!("installing schemathesis below {}", parent.display());
    let mut pip = process::command("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]);
    pip.args(["--only-binary=:all:", "--target"]).arg(made.path()).arg("--requirement").arg(&lock);
    process::run("installation of schemathesis", &mut pip)?;
    std::fs::rename(made.keep(), &place).with_context(|| place.display().to_string())?;
    Ok(place)
}

/// Where the test finds it.
pub(crate) const VARIABLE: &str = "CHRYSALIS_SCHEMATHESIS";
