// SPDX-License-Identifier: Apache-2.0
//! Schemathesis, in the cache, by locked versions and digests; and its run against the attestation service.

use std::path::PathBuf;

use crate::{packages, process, workspace};

/// Installs what is missing and runs the test.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut command = process::command("cargo");
    command.args([
        "nextest",
        "run",
        "--locked",
        "--package",
        "attestation-service",
        "--test",
        "service",
        "schemathesis::",
    ]);
    command.args(["--success-output", "final"]).current_dir(workspace::root()?).env(VARIABLE, install()?);
    process::run("schemathesis", &mut command)
}

/// The directory for Python's path.
pub(crate) fn install() -> anyhow::Result<PathBuf> {
    packages::python("schemathesis")
}

/// Where the test finds it.
pub(crate) const VARIABLE: &str = "CHRYSALIS_SCHEMATHESIS";
