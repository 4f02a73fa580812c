// SPDX-License-Identifier: Apache-2.0
//! The programs of this repository that the demo runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{process, programs};

use super::report::Report;

const NAMES: [&str; 8] = [
    "attestation-service-sim",
    "attested-proxy-sim",
    "host-agent",
    "image",
    "measure",
    "model",
    "replay-probe",
    "tdx-sim",
];

/// Built programs.
pub(crate) struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// Builds them.
    pub(crate) fn build(report: &mut Report) -> anyhow::Result<Self> {
        let directory = report.step("build", "host programs", || programs::build(&NAMES))?;
        Ok(Self { directory })
    }

    /// A command that runs one of them.
    pub(crate) fn command(&self, name: &str) -> Command {
        process::command(self.path(name))
    }

    /// Where one of them is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A command for the image builder in this repository.
    pub(crate) fn image(&self, root: &Path) -> Command {
        let mut command = self.command("image");
        command.arg("--json").arg("--workspace").arg(root);
        command
    }
}
