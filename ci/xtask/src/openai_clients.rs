// SPDX-License-Identifier: Apache-2.0
//! The official clients of OpenAI's API, unmodified, by locked versions and digests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::demo::report::milliseconds;
use crate::{packages, process, setup, workspace};

/// Whose clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Languages {
    /// All there are.
    All,
    /// Python's alone.
    Python,
    /// JavaScript's alone.
    Javascript,
}

/// Where they are; those are missing that are not wanted or whose language is not installed.
pub(crate) struct Clients {
    /// For Python's path.
    python: Option<PathBuf>,
    /// A `node_modules`.
    javascript: Option<PathBuf>,
}

impl Clients {
    /// Installs what is missing and can be installed.
    pub(crate) fn install(languages: Languages) -> anyhow::Result<Self> {
        let wants = |language| [Languages::All, language].contains(&languages);
        let has = |client: &str, programs: &[&str]| {
            let missing = programs.iter().find(|program| !setup::on_path(program));
            if let Some(missing) = missing {
                eprintln!("SKIPPED: the official {client} client ({missing} is not installed)");
            }
            missing.is_none()
        };
        let python = wants(Languages::Python) && has("Python", &["python3"]);
        let python = python.then(|| packages::python(NAME)).transpose()?;
        let javascript = wants(Languages::Javascript) && has("JavaScript", &["node", "npm"]);
        let javascript = javascript.then(|| packages::javascript(NAME)).transpose()?;
        Ok(Self { python, javascript })
    }

    /// Tells tests where they are.
    pub(crate) fn name_in(&self, command: &mut Command) {
        command.envs(self.python.as_ref().map(|path| ("CHRYSALIS_PYTHON_PACKAGES", path)));
        command.envs(self.javascript.as_ref().map(|path| ("CHRYSALIS_NODE_MODULES", path)));
    }

    /// Has each ask a real model at `base_url` for everything that the API promises, in as few tokens as that takes. Gives
    /// what became of each.
    pub(crate) fn ask(&self, base_url: &str, model: &str, room: &Path) -> anyhow::Result<Vec<Value>> {
        let scripts = workspace::root()?.join("guest-runtime/client/tests");
        let mut results = Vec::new();
        for (name, command) in [("python", self.python(&scripts)), ("javascript", self.javascript(&scripts, room)?)] {
            let Some(mut command) = command else {
                results.push(json!({ "name": name, "result": "skipped" }));
                continue;
            };
            let start = Instant::now();
            let what = format!("the official client ({name})");
            let (said, status) = process::output(&what, command.arg(base_url).arg(model))?;
            anyhow::ensure!(status.success() && said == "ok\n", "{what}: {status} {said}");
            results.push(json!({
                "name": name, "result": "passed", "milliseconds": milliseconds(start.elapsed().as_secs_f64()),
            }));
        }
        Ok(results)
    }

    fn python(&self, scripts: &Path) -> Option<Command> {
        let mut command = packages::python_with(self.python.as_ref()?);
        command.arg(scripts.join("official_client_real.py"));
        Some(command)
    }

    /// A module is looked up beside the script that imports it.
    fn javascript(&self, scripts: &Path, room: &Path) -> anyhow::Result<Option<Command>> {
        let Some(modules) = &self.javascript else { return Ok(None) };
        std::fs::create_dir_all(room).with_context(|| room.display().to_string())?;
        let script = room.join("official_client_real.mjs");
        std::fs::copy(scripts.join("official_client_real.mjs"), &script).context("the client's script")?;
        std::os::unix::fs::symlink(modules, room.join("node_modules")).context("node_modules")?;
        let mut command = process::command("node");
        command.arg(script);
        Ok(Some(command))
    }
}

/// The directory below `ci` with the locks.
const NAME: &str = "openai-clients";
