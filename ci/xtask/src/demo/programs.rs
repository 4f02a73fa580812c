// SPDX-License-Identifier: Apache-2.0
//! The programs of this repository that the demo runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{process, workspace};

use super::report::Report;

/// Built programs.
pub(crate) struct Programs {
    directory: PathBuf,
}

const PACKAGES: &[&str] = &["image", "model", "measure", "host-agent", "tdx-sim"];

impl Programs {
    /// Builds them.
    pub(crate) fn build(report: &mut Report) -> anyhow::Result<Self> {
        report.step("build", "host programs", || {
            let mut cargo = process::command("cargo");
            cargo.args(["build", "--locked", "--bins"]).current_dir(workspace::root()?);
            for package in PACKAGES {
                cargo.args(["-p", package]);
            }
            process::run("build", &mut cargo)
        })?;
        Ok(Self { directory: workspace::target()?.join("debug") })
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
